"""What may differ between a run and the config that continues it: nothing, something with a warning, or anything."""

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

# Where the data are: they may have moved, and the records themselves are compared.
PLACES = (
    "data.root",
    *(f"data.{split}.{name}" for split in ("train", "val") for name in ("annotations", "images", "split")),
)

# The longest prefix of a key in this table gives its rule. A key without a prefix here may not change.
RULES = {
    "imports": FREE,
    **dict.fromkeys(PLACES, WARN),
    "data.invalid": FREE,  # what it leaves out shows in the records
    "data.keep_empty": FREE,
    "data.num_workers": FREE,
    "data.cache": FREE,
    "data.train.cache": FREE,
    "data.val.cache": FREE,
    "data.train.one_based": WARN,  # the boxes are compared themselves
    "data.val.one_based": WARN,
    "data.bits": WARN,
    "data.sampler": WARN,
    "data.short_side": WARN,
    "data.long_side": WARN,
    "data.aspect_buckets": WARN,
    "data.transforms": WARN,
    "model.weights": WARN,  # the checkpoint has its own
    "anchor_sampler": WARN,
    "loss": WARN,
    "train.epochs": FREE,
    "train.batch_size": WARN,  # as long as an epoch keeps its number of steps
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

# After a change of these, an AP cannot be compared with those before.
METRIC_KEYS = ("evaluation", "data.short_side", "data.long_side", "data.bits")

PARTS = {"classification": "loss.classification", "boxes": "loss.box", "sampler": "anchor_sampler"}  # of a Criterion
MAX_VALUE = 100  # characters of a value in a message
ABSENT = "not known"  # the value of a key that one of the two releases does not have


def compare_runs(checkpoint: dict[str, Any], own: dict[str, Any], steps_per_epoch: int, origin: Path) -> dict[str, str]:
    """What has changed since `checkpoint`, read from `origin`, and deserves a warning: `key: text with both values`.
    `own` is the description that checkpoints get now (config, class_names, category_ids, data).

    Raises UserError where the run would go on as another one: with other classes, data or structure.
    """
    other = f"start a new run from its weights: model.weights={origin}"
    for key in ("class_names", "category_ids"):
        if list(checkpoint[key]) != list(own[key]):
            raise UserError(
                f"{origin} was trained on other classes: {key}: {_short(list(checkpoint[key]))} before, "
                f"{_short(list(own[key]))} now",
                f"resume on its own data, or {other}",
            )
    rules = RULES if "data" in checkpoint else RULES | dict.fromkeys(PLACES, STOP)  # an older release
    before, now = (read_yaml(one["config"], f"config of {origin}") for one in (checkpoint, own))
    warned, stopped = _compare(before, now, rules)
    if stopped:
        raise UserError(
            f"{origin} comes from a run with other settings: {'; '.join(stopped.values())}",
            f"continue with the run's own, or {other}",
        )
    done, epochs = checkpoint["training"]["epochs_done"], now["train"]["epochs"]
    if done >= epochs != before["train"]["epochs"]:
        raise UserError(
            f"{origin}: train.epochs: {before['train']['epochs']} before, {epochs} now, and {done} are done already",
            "give a higher number, or evaluate the checkpoint with `detector evaluate`",
        )
    for split, old in checkpoint.get("data", {}).items():
        new = own["data"][split]
        if new != old:
            raise UserError(
                f"data.{split} is not what {origin} was trained with: {old['images']} images with {old['objects']} "
                f"objects before, {new['images']} with {new['objects']} now, and their names, sizes or boxes differ",
                f"restore the files, or {other}",
            )
    steps = checkpoint["training"]["steps_per_epoch"]
    if steps != steps_per_epoch:
        changed = f" ({'; '.join(warned.values())})" if warned else ""
        raise UserError(
            f"{origin} counts {steps} steps an epoch, this config {steps_per_epoch}{changed}",
            "resume with the run's own data, train.batch_size and train.accumulation",
        )
    return warned


def _compare(before: Any, now: Any, rules: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The changes between two resolved configs that are worth a warning, and those that stop the run."""
    warned, stopped = {}, {}
    for key, old, new in _differences(before, now):
        prefixes = [name for name in rules if _is_below(key, name)]
        rule = rules[max(prefixes, key=len)] if prefixes else STOP
        text = f"{key}: {_short(old)} before, {_short(new)} now"
        is_absent = ABSENT in (old, new)  # only where another release wrote the config
        if not is_absent and (rule == STOP or (rule == SWITCH and None in (old, new))):
            stopped[key] = text
        elif rule != FREE:
            warned[key] = text
    return warned, stopped


def changes_metrics(changed: Iterable[str]) -> bool:
    """Whether an AP cannot be compared with those before these keys changed."""
    return any(_is_below(key, name) for key in changed for name in METRIC_KEYS)


def _is_below(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(f"{prefix}.")


def load_criterion(criterion: nn.Module, saved: dict[str, Any], changed: set[str]) -> list[str]:
    """Load the state of the losses.

    A loss starts with new state if its type changed or its saved state does not fit. Return the keys of those losses.
    """
    own, fresh = criterion.state_dict(), []
    for key in sorted({*PARTS.values(), "loss.normaliser"}):
        names = {name for name in {*own, *saved} if PARTS.get(name.partition(".")[0], "loss.normaliser") == key}
        fits = all(name in own and name in saved and own[name].shape == saved[name].shape for name in names)
        if key in changed or (not fits and any(other.startswith(f"{key}.") for other in changed)):
            saved = {name: value for name, value in saved.items() if name not in names}
            saved |= {name: own[name] for name in names if name in own}
            fresh += [key] if names else []
    criterion.load_state_dict(saved)
    return fresh


def _differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The deepest keys whose values differ, with both values.

    A part (a mapping with a `type`) of another type is one key. Lists of the same types are compared part by part;
    other lists of parts differ by their types.
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
