"""The result of a COCO evaluation."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from detector.core.json_records import JsonRecord, Number, validate

EVALUATE = "detector evaluate --checkpoint CHECKPOINT"  # the command that writes an evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics(JsonRecord):
    """The average precision of a class, in 0..1; NaN where the class has no objects.

    AP: mean over the IoU thresholds 0.5, 0.55, ..., 0.95.
    AP50: at IoU 0.5.
    """

    AP: Number
    AP50: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics(JsonRecord):
    """COCO's numbers of a set of detections, as metrics.json holds them. `metrics["AP"]` returns a number by its name.

    numbers: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl, in 0..1; NaN without objects. The name
        `AR100` contains the limit of detections for an image, which is 100 by default.
    per_class: the average precision of each class, by the class's name.
    settings: the settings of the evaluation, by name; empty where they were not recorded.
    """

    numbers: dict[str, Number]
    per_class: dict[str, ClassMetrics] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.numbers[name]

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of the numbers by their names, with the keys `per_class` and `settings` added."""
        values = asdict(self)
        return values.pop("numbers") | values

    @classmethod
    def from_json(cls, values: object) -> Self:
        """Return the metrics from the values that `to_json` returned.

        Raises:
            ValueError: AP is missing, or a value has a wrong type.
        """
        if not isinstance(values, dict) or "AP" not in values:
            raise ValueError("AP is missing")
        parts = {name: value for name, value in values.items() if name in ("per_class", "settings")}
        numbers = {name: value for name, value in values.items() if name not in parts}
        return validate(cls, {"numbers": numbers} | parts)
