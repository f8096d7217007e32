"""The settings of a run that matter most, as rows of a table."""

from typing import Any

from detector.core.wording import counted
from detector.lab.report.series import read_series
from detector.lab.report.sources import Source

SHOWN_IN_PARTS = ("split", "num_images", "alpha", "gamma", "class_weights", "threshold", "count", "foreground_fraction")
FIRST_LINE = "# detector at commit "  # of config.yaml


def settings_rows(source: Source) -> list[tuple[str, str]]:
    """Return the name and the value of each setting. A setting that config.yaml lacks is left out."""
    rows = {
        "Data": _part(source, "data.train") + _text(source, "data.root", " in {}").removesuffix(" in ."),
        "Validation": _part(source, "data.val") or _text(source, "data.split", "{} of the images train"),
        "Input size": _text(source, "data.short_side", "short side {}", "data.long_side", "long side up to {} pixels"),
        "Image sampler": _part(source, "data.sampler"),
        "Backbone": _part(source, "model.backbone"),
        "Pyramid": _text(source, "model.levels", "levels {}", "model.width", "width {}"),
        "Assigner": _part(source, "assigner"),
        "Anchor sampler": _part(source, "anchor_sampler"),
        "Classification loss": _part(source, "loss.classification"),
        "Box loss": _joined(_part(source, "loss.box"), _text(source, "loss.box_weight", "weight {}")),
        "Training": _text(source, "train.epochs", "{} epochs", "train.batch_size", "batches of {} images"),
        "Optimizer": _text(source, "train.optimizer", "{}", "train.lr", "learning rate {}"),
        "Schedule": _text(source, "train.schedule", "{}", "train.warmup_steps", "warmup over {} steps"),
        "Seed": _text(source, "train.seed", "{}"),
        "Time": training_time(source),
        "Version": _version(source.config_text),
    }
    return [(name, value) for name, value in rows.items() if value]


def training_time(source: Source) -> str:
    """Return the duration of the training steps without evaluations, from the images per second in metrics.csv."""
    speed = read_series(source.steps, "images_per_s")
    images = _number(source, "train.batch_size") * _number(source, "train.accumulation", 1)
    if not images or not len(speed) or (speed.values <= 0).any():
        return ""
    seconds = float((images / speed.values).sum())
    steps = counted(len(speed), "step")
    units = {"hours": 3600, "minutes": 60, "seconds": 1}
    unit = next((unit for unit, size in units.items() if seconds >= 2 * size), "seconds")
    return f"{seconds / units[unit]:.3g} {unit} for {steps} ({images * len(speed) / seconds:,.0f} images/s)"


def _version(config_text: str) -> str:
    first = config_text.partition("\n")[0]
    return f"commit {first.removeprefix(FIRST_LINE)}" if first.startswith(FIRST_LINE) else ""


def _number(source: Source, key: str, default: int = 0) -> int:
    value = source.setting(key)
    return value if isinstance(value, int) else default


def _text(source: Source, *keys_and_texts: str) -> str:
    """Join the texts whose keys have a value, with the value in place of `{}`."""
    pairs = zip(keys_and_texts[::2], keys_and_texts[1::2], strict=True)
    return _joined(*(text.format(_plain(value)) for key, text in pairs if (value := source.setting(key)) is not None))


def _part(source: Source, key: str) -> str:
    """Return the type of a part, with the parameters in SHOWN_IN_PARTS that are set."""
    value = source.setting(key)
    if not isinstance(value, dict):
        return str(value) if value is not None else ""
    given = [f"{name} {_plain(value[name])}" for name in SHOWN_IN_PARTS if value.get(name) is not None]
    return str(value.get("type", "")) + (f" ({', '.join(given)})" if given else "")


def _plain(value: Any) -> str:
    if isinstance(value, list) and len(value) == 2:
        return f"{value[0]} to {value[1]}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _joined(*texts: Any) -> str:
    return ", ".join(str(text) for text in texts if text)
