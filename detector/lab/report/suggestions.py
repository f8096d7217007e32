"""The next steps that the numbers of a source suggest, with the commands for them."""

import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detector.core.wording import counted, listed, number, percent, short
from detector.data.dataset import DetectionDataset
from detector.imbalance.advisor import SHARED_CLASS, Advice, advise
from detector.imbalance.remedies import count_labels
from detector.lab.report.errors import ERRORS, error_shares
from detector.lab.report.series import read_series
from detector.lab.report.sources import Source

MAX_SUGGESTIONS = 5
BALANCED = {"data.sampler": "class_balanced"}
WEAK = 0.75  # of the mean AP of the other classes
FEW_OBJECTS = 30  # validation objects; with fewer, the AP of a class is uncertain
LATE = 0.9  # a loss that settles after this part of the run still moves at the end
SAME = 0.2  # relative difference of numbers that the advice does not mention


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A next step: what to do, why, the commands, and the settings that they change with the reasons."""

    title: str
    reason: str
    commands: list[str]
    settings: list[tuple[str, str]] = field(default_factory=list)


def suggest(source: Source, dataset: DetectionDataset | None) -> list[Suggestion]:
    """Suggest at most five next steps, the most important first.

    Args:
        source: a folder's files.
        dataset: its validation set, where it can be read.
    """
    advised = _advice(source)
    steps = [
        _largest_error(source, dataset),
        _advised(source, advised),
        _weak_class(source, dataset, advised),
        _longer_training(source),
        _missing(source),
        _other_seed(source),
    ]
    chosen: list[Suggestion] = []
    for step in steps:
        given = {command for earlier in chosen for command in earlier.commands}
        if step is not None and not given.issuperset(step.commands):
            chosen.append(step)
    return chosen[:MAX_SUGGESTIONS]


def _largest_error(source: Source, dataset: DetectionDataset | None) -> Suggestion | None:
    shares = error_shares(source.anatomy) if source.anatomy is not None else {}
    if source.anatomy is None or not shares:
        return None
    name, share = next(iter(shares.items()))
    reason = f"This type is {percent(share)} of the AP50 that errors cost. "
    images = _quoted(dataset.records[0].path.parent) if dataset is not None else "IMAGES"
    look = (
        f"detector infer --checkpoint {_checkpoint(source)} {images} "
        f"--score {source.anatomy.curves.best_f1.score:.2f} --out {_quoted(source.folder / 'errors')}"
    )
    has_max_iou = _is_set(source.setting("assigner"), {"type": "max_iou"})
    confusions, balance = "Look at the confusions.", []
    shares_of_images = [share for _, share in _class_counts(source, dataset).values()]
    if not shares_of_images or min(shares_of_images) <= SHARED_CLASS:
        confusions, balance = f"{confusions} Draw images of rare classes more often.", [_train(source, BALANCED)]
    remedies: dict[str, tuple[str, list[str]]] = {
        "Bkg": (
            "Look at the wrong detections first. An object without an annotation needs a label. A background that "
            "looks like an object needs more images of it.",
            [look],
        ),
        "Miss": ("Objects need more anchors." if has_max_iou else "A larger input gives small objects more anchors.",
                 [_train(source, {"assigner": "atss"} if has_max_iou else _larger_input(source))]),
        "Loc": ("A larger input gives finer boxes.", [_train(source, _larger_input(source))]),
        "Cls": (confusions, [look, *balance]),
        "Both": ("Look at the wrong detections first: wrong labels have this effect.",
                 [look, f"detector check --cfg {_config(source)}"]),
        "Dupe": ("Non-maximum suppression at a lower IoU removes more duplicates.",
                 [f"detector evaluate --checkpoint {_checkpoint(source)} evaluation.nms_iou={_lower_nms(source)}"]),
    }  # fmt: skip
    text, commands = remedies[name]
    return Suggestion(f"Reduce {ERRORS[name]}", reason + text, commands)


def _advice(source: Source) -> list[Advice]:
    """Return the advice of the census and the probe that the config does not follow yet."""
    if source.census is None:
        return []
    advice = advise(source.census, source.probe if _can_advise_from_probe(source) else None, _gamma(source))
    return [step for step in advice if not _is_set(source.setting(step.key), step.value)]


def _advised(source: Source, advice: list[Advice]) -> Suggestion | None:
    if not advice:
        return None
    probe = f" --probe {_quoted(source.files['probe.json'])}" if _can_advise_from_probe(source) else ""
    files = f"--census {_quoted(source.files['census.json'])}{probe} --cfg {_config(source)}"
    command = f"detector advise {files} --gamma {_gamma(source):g}"
    instruments = "The census and the probe advise" if probe else "The census advises"
    return Suggestion(
        "Train with the advised settings",
        f"{instruments} other values than the config has.",
        [f"{command} --out advice.yaml", "detector train --cfg ./advice.yaml"],
        [(f"{step.key}: {_flow(step.value)}", f"{step.reason.rstrip('.')}.") for step in advice],
    )


def _weak_class(source: Source, dataset: DetectionDataset | None, advice: list[Advice]) -> Suggestion | None:
    if source.metrics is None or any("sampler" in step.key or "weights" in step.key for step in advice):
        return None
    measured = {name: values.AP for name, values in source.metrics.per_class.items() if not math.isnan(values.AP)}
    if len(measured) < 2:
        return None
    weakest = min(measured, key=measured.__getitem__)
    others = (sum(measured.values()) - measured[weakest]) / (len(measured) - 1)
    if measured[weakest] >= WEAK * others:
        return None
    reason = f"Its AP is {number(measured[weakest], 2)}; the mean of the other classes is {number(others, 2)}. "
    if dataset is not None:
        num_objects = int(dataset.class_counts()[dataset.class_names.index(weakest)])
        if num_objects < FEW_OBJECTS:
            reason += f"The validation split has only {counted(num_objects, 'object')} of it, so its AP is uncertain. "
    counts = _class_counts(source, dataset)
    num_objects, share = counts.get(weakest, (0, 0.0))
    if share > SHARED_CLASS:
        reason += f"{percent(share)} of the images have this class, so no sampler can draw it more often. "
    elif num_objects * 2 > max((count for count, _ in counts.values()), default=0):
        reason += "It is not rare, so another sampler may not help. "
    elif not _is_set(source.setting("data.sampler"), {"type": "class_balanced"}):
        reason += "Images of rare classes can be drawn more often."
        return Suggestion(f"Improve {short(weakest)}", reason, [_train(source, BALANCED)])
    reason += "A larger input may help."
    return Suggestion(f"Improve {short(weakest)}", reason, [_train(source, _larger_input(source))])


def _class_counts(source: Source, dataset: DetectionDataset | None) -> dict[str, tuple[int, float]]:
    """Return the objects of each class and its share of the images: of the census, else of the validation split."""
    if source.census is not None and source.census.num_images:
        return {row.name: (row.objects, row.images / source.census.num_images) for row in source.census.by_class}
    if dataset is None or not len(dataset):
        return {}
    images = count_labels([np.unique(labels) for labels in dataset.labels_by_image()], len(dataset.class_names))
    objects = dataset.class_counts()
    return {name: (int(objects[k]), float(images[k] / len(dataset))) for k, name in enumerate(dataset.class_names)}


def _longer_training(source: Source) -> Suggestion | None:
    loss, epochs = read_series(source.steps, "loss"), source.setting("train.epochs")
    if len(loss) < 2 or not isinstance(epochs, int) or loss.settled_at() <= LATE * loss.steps[-1]:
        return None
    reason = f"The loss still moves at the end of the {epochs} epochs."
    return Suggestion("Train longer", reason, [_train(source, {"train.epochs": 2 * epochs})])


def _missing(source: Source) -> Suggestion | None:
    """Suggest the measurements that the source lacks."""
    commands = {}
    if source.is_run:
        if source.anatomy is None:
            commands["the types of its errors"] = f"detector evaluate --checkpoint {_checkpoint(source)}"
        if source.probe is None:
            commands["the other losses on its scores"] = f"detector probe --checkpoint {_checkpoint(source)}"
        if source.census is None:
            commands["the counts of its anchors"] = f"detector census --cfg {_config(source)}"
    if not commands:
        return None
    return Suggestion(
        "Measure more", f"The report of this run lacks {listed(list(commands))}.", list(commands.values())
    )


def _other_seed(source: Source) -> Suggestion | None:
    seed = source.setting("train.seed")
    if not isinstance(seed, int) or source.metrics is None:
        return None
    reason = "Two runs that differ in the seed alone differ in AP. Compare settings over several seeds."
    return Suggestion("Repeat with another seed", reason, [_train(source, {"train.seed": seed + 1})])


def _train(source: Source, overrides: dict[str, Any]) -> str:
    words = [shlex.quote(f"{key}={value}") for key, value in overrides.items()]
    return " ".join(["detector train --cfg", _config(source), *words])


def _larger_input(source: Source) -> dict[str, Any]:
    """Return the override for a short side that is a third larger, in multiples of 32 pixels."""
    side = source.setting("data.short_side")
    side = max(side) if isinstance(side, list) else side
    return {"data.short_side": 32 * math.ceil(side * 4 / 3 / 32) if isinstance(side, int) else "PIXELS"}


def _lower_nms(source: Source) -> float:
    now = source.setting("evaluation.nms_iou")
    return round(max(0.1, (now if isinstance(now, float) else 0.5) - 0.1), 2)


def _gamma(source: Source) -> float:
    gamma = source.setting("loss.classification.gamma")
    return gamma if isinstance(gamma, int | float) else 2.0


def _can_advise_from_probe(source: Source) -> bool:
    return source.probe is not None and "cross_entropy" in source.probe.losses


def _is_set(current: Any, advised: Any) -> bool:
    """Whether a config's value has all values of an advised part. Numbers may differ by a fifth."""
    if isinstance(advised, dict) and isinstance(current, dict):
        return all(_is_set(current.get(key), value) for key, value in advised.items())
    if isinstance(advised, float) and isinstance(current, int | float):
        return math.isclose(current, advised, rel_tol=SAME)
    return current == (advised["type"] if isinstance(advised, dict) else advised)


def _flow(value: Any) -> str:
    """Return an advised value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {text}" for name, text in value.items()) + "}"
    return str(value)


def _config(source: Source) -> str:
    return _quoted(source.files["config.yaml"]) if "config.yaml" in source.files else "CONFIG"


def _checkpoint(source: Source) -> str:
    return _quoted(source.folder / "checkpoints/best.pt")


def _quoted(path: Path) -> str:
    """Return a path for a shell. A file in the working directory gets `./`, since a bare name is a config's name."""
    return shlex.quote(str(path) if len(path.parts) > 1 else f"./{path}")
