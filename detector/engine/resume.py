"""Rules for resuming: which config keys may change silently, which with a warning, and which not at all."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from detector.core.errors import UserError
from detector.core.strict_yaml import read_yaml

FREE = "may change"
WARN = "may change, with a warning"
SWITCH = "may change with a warning, but may not go from or to null"
STOP = "may not change"

# The paths of the data may change, because the records are compared.
LOCATION_KEYS = (
    "data.root",
    *(f"data.{split}.{name}" for split in ("train", "val") for name in ("annotations", "images", "split")),
)

# The longest prefix of a key in this table gives its rule. A key without a prefix here may not change.
RULES = {
    "imports": FREE,
    **dict.fromkeys(LOCATION_KEYS, WARN),
    "data.invalid": FREE,  # the comparison of the records detects a change
    "data.keep_empty": FREE,
    "data.num_workers": FREE,
    "data.cache": FREE,
    "data.train.cache": FREE,
    "data.val.cache": FREE,
    "data.train.one_based": WARN,  # the boxes are compared
    "data.val.one_based": WARN,
    "data.bits": WARN,
    "data.sampler": WARN,
    "data.short_side": WARN,
    "data.long_side": WARN,
    "data.aspect_buckets": WARN,
    "data.transforms": WARN,
    "model.weights": WARN,  # the checkpoint contains the weights
    "anchor_sampler": WARN,
    "loss": WARN,
    "train.epochs": WARN,
    "train.batch_size": WARN,  # if the number of steps of an epoch stays equal
    "train.accumulation": WARN,
    "train.device": FREE,
    "train.precision": WARN,
    "train.lr": WARN,
    "train.weight_decay": WARN,
    "train.momentum": WARN,
    "train.decay_norms_and_biases": WARN,
    "train.schedule": WARN,
    "train.milestones": WARN,
    "train.step_factor": WARN,
    "train.warmup_steps": WARN,
    "train.warmup_factor": WARN,
    "train.clip_norm": WARN,
    "train.ema_decay": SWITCH,
    "train.compile": FREE,
    "train.channels_last": FREE,
    "train.evaluate_every": FREE,
    "train.log_every": FREE,
    "train.meter_every": FREE,
    "train.save_every": FREE,
    "train.keep_checkpoints": FREE,
    "train.loggers": FREE,
    "faults": FREE,
    "evaluation": WARN,
    "evaluation.batch_size": FREE,
}

# If these keys change, an AP cannot be compared with earlier values.
METRIC_KEYS = ("evaluation", "data.short_side", "data.long_side", "data.bits")

# the config key of each part of a Criterion
PARTS = {
    "classification": "loss.classification",
    "warmup": "loss.warmup",
    "boxes": "loss.box",
    "sampler": "anchor_sampler",
}
MAX_VALUE = 100  # characters of a value in a message
ABSENT = "not known"  # the value of a key that one of two releases does not have


def compare_runs(
    checkpoint: dict[str, Any], description: dict[str, Any], steps_per_epoch: int, origin: Path
) -> dict[str, str]:
    """Return the changes since a checkpoint that need a warning, as a text with both values for each key.

    Args:
        checkpoint: the contents of the checkpoint.
        description: the config, class_names, category_ids and data of the current run.
        steps_per_epoch: the number of optimizer steps of an epoch of the current run.
        origin: the path of the checkpoint.

    Raises:
        UserError: the current run has other classes, data or settings that may not change.
    """
    new_run = f"start a new run from its weights with model.weights={origin}"
    for key in ("class_names", "category_ids"):
        if list(checkpoint[key]) != list(description[key]):
            raise UserError(
                f"{origin}: the classes differ: {key}: {_short(list(checkpoint[key]))} before, "
                f"{_short(list(description[key]))} now",
                f"resume with the data of the run, or {new_run}",
            )
    has_records = "data" in checkpoint  # older releases do not write them
    rules = RULES if has_records else RULES | dict.fromkeys(LOCATION_KEYS, STOP)
    before, now = (read_yaml(run["config"], f"config of {origin}") for run in (checkpoint, description))
    warned, stopped = _compare(before, now, rules)
    if stopped:
        raise UserError(
            f"{origin}: settings that may not change differ: {'; '.join(stopped.values())}",
            f"resume with the settings of the run, or {new_run}",
        )
    done, epochs = checkpoint["training"]["epochs_done"], now["train"]["epochs"]
    if done >= epochs != before["train"]["epochs"]:
        raise UserError(
            f"{origin}: train.epochs: {before['train']['epochs']} before, {epochs} now, but {done} epochs are done",
            "give a higher number, or evaluate the checkpoint with `detector evaluate`",
        )
    for split, old in checkpoint.get("data", {}).items():
        new = description["data"][split]
        if new != old:
            raise UserError(
                f"{origin}: data.{split}: the names, sizes or boxes of the images differ: {old['images']} images with "
                f"{old['objects']} objects before, {new['images']} images with {new['objects']} objects now",
                f"restore the files, or {new_run}",
            )
    steps = checkpoint["training"]["steps_per_epoch"]
    if steps != steps_per_epoch:
        changed = f" ({'; '.join(warned.values())})" if warned else ""
        raise UserError(
            f"{origin}: steps of an epoch: {steps} before, {steps_per_epoch} now{changed}",
            "resume with the data, train.batch_size and train.accumulation of the run",
        )
    return warned


def _compare(before: Any, now: Any, rules: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the changes between two resolved configs that need a warning, and those that stop the run."""
    warned, stopped = {}, {}
    for key, old, new in _differences(before, now):
        prefixes = [name for name in rules if _is_below(key, name)]
        rule = rules[max(prefixes, key=len)] if prefixes else STOP
        text = f"{key}: {_short(old)} before, {_short(new)} now"
        is_absent = ABSENT in (old, new)  # another release wrote the config
        if not is_absent and (rule == STOP or (rule == SWITCH and None in (old, new))):
            stopped[key] = text
        elif rule != FREE:
            warned[key] = text
    return warned, stopped


def changes_metrics(changed: Iterable[str]) -> bool:
    """Return whether an AP after a change of these keys cannot be compared with earlier values."""
    return any(_is_below(key, name) for key in changed for name in METRIC_KEYS)


def _is_below(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(f"{prefix}.")


def load_criterion(criterion: nn.Module, saved: dict[str, Any], changed: set[str]) -> list[str]:
    """Load the state of the losses.

    A loss starts with a new state if its type changed or its saved state does not fit.

    Args:
        criterion: the losses of the current run.
        saved: the state dict of the criterion of the checkpoint.
        changed: the config keys that changed.

    Returns:
        The config keys of the losses that start with a new state.
    """
    current, fresh = criterion.state_dict(), []
    for key in sorted({*PARTS.values(), "loss.normaliser"}):
        names = {name for name in {*current, *saved} if _key_of(name) == key}
        fits = all(n in current and n in saved and current[n].shape == saved[n].shape for n in names)
        if key in changed or (not fits and any(other.startswith(f"{key}.") for other in changed)):
            saved = {name: value for name, value in saved.items() if name not in names}
            saved |= {name: current[name] for name in names if name in current}
            fresh += [key] if names else []
    criterion.load_state_dict(saved)
    return fresh


def _key_of(name: str) -> str:
    """Return the config key of a tensor of a criterion."""
    return PARTS.get(name.removeprefix("one_to_many.").partition(".")[0], "loss.normaliser")


def _differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the deepest keys whose values differ, with both values.

    A part is a mapping with a `type`. If its type differs, the part is one key. Lists of parts with equal types are
    compared part by part. Of other lists of parts, the types are the values.
    """
    if _is_list_of_parts(before) and _is_list_of_parts(now):
        types_before, types_now = ([part["type"] for part in parts] for parts in (before, now))
        if types_before != types_now:
            yield key, types_before, types_now
        else:
            for i, parts in enumerate(zip(before, now, strict=True)):
                yield from _differences(*parts, f"{key}.{i}")
    elif isinstance(before, dict) and isinstance(now, dict) and before.get("type") == now.get("type"):
        for name in now | before:
            path = f"{key}.{name}" if key else name
            yield from _differences(before.get(name, ABSENT), now.get(name, ABSENT), path)
    elif before != now:
        yield key, before, now


def _is_list_of_parts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) and "type" in item for item in value)


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."
