"""The settings of the losses: the `loss` section of a config."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from detector.core.registry import ChosenFrom, Part
from detector.core.validation import InvalidValues, NonNegativeFloat, PositiveInt, Settings, UnitFloat
from detector.losses.base import BOX_LOSSES, CLASSIFICATION_LOSSES, BoxLoss, ClassificationLoss


@dataclass(frozen=True)
class BoxTerm:
    """A box loss that a config chooses, with the weight of its term."""

    loss: Part[BoxLoss]
    weight: float = 1.0


class BoxTerms(ChosenFrom):
    """An annotation for a field that takes a box loss, or a list of box losses.

    A loss in the list may have a `weight`, e.g. `giou`, or `[{type: giou, weight: 2.0}, {type: smooth_l1}]`.
    """

    def resolve(self, spec: Any, context: Any) -> tuple[BoxTerm, ...]:
        """Return the terms of a spec.

        Args:
            spec: the value of the field in the config.
            context: the validation context.

        Raises:
            InvalidValues: the spec of a loss is wrong, or the list is empty.
        """
        if not isinstance(spec, list):
            return (self._term(spec, context),)
        terms, problems = [], {}
        for i, each in enumerate(spec):
            try:
                terms.append(self._term(each, context))
            except InvalidValues as error:
                problems |= {(i, *path): text for path, text in error.problems.items()}
        if problems or not terms:
            raise InvalidValues(problems or {(): "[] is wrong: should name a box loss"})
        return tuple(terms)

    def to_plain(self, part: Any) -> Any:
        """Return the specs of the terms, as YAML holds them."""
        plain = [term.loss.to_dict() | ({} if term.weight == 1 else {"weight": term.weight}) for term in part]
        return plain[0] if len(plain) == 1 else plain

    def _term(self, spec: Any, context: Any) -> BoxTerm:
        if not isinstance(spec, dict) or "weight" not in spec:
            return BoxTerm(super().resolve(spec, context))
        weight = spec["weight"]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise InvalidValues({("weight",): f"{weight!r} is wrong: should be a number of 0 or more"})
        loss = super().resolve({key: value for key, value in spec.items() if key != "weight"}, context)
        return BoxTerm(loss, float(weight))


class LossSettings(Settings):
    """The `loss` section of a config.

    Attributes:
        classification: the loss of the class scores.
        warmup: the classification loss of the first steps, or null for the same loss.
        warmup_steps: the number of optimizer steps with the loss `warmup`.
        box: the box loss, or a list of box losses with weights.
        box_weight: a factor of all box terms.
        normaliser: the number that divides the losses. It is the foreground count of the step over all processes
            (global), of each process (local) or of each image (image), or the running mean of the global count (ema).
        box_rows: the weight of each foreground prior in the box terms: 1 (equal), the quality of the assigner
            (quality), or the highest class score (score). score divides the box terms by the sum of the scores of the
            step.
        quality_weight: a factor of the term of the box quality, for a head that predicts the box quality.
        one_to_many_weight: the weight w of the loss of the one-to-many head, at the start and at the end of the run. It
            changes linearly. The loss of the one-to-one head has the weight 1 - w, so its default values are 0.2 and
            0.9, as in Ultralytics' YOLO26 ("progressive loss balancing"). It has no effect without
            `model.head.one_to_one`.
    """

    classification: Annotated[Part[ClassificationLoss], ChosenFrom(CLASSIFICATION_LOSSES, "focal")] = Field(
        "focal", validate_default=True
    )
    warmup: Annotated[Part[ClassificationLoss] | None, ChosenFrom(CLASSIFICATION_LOSSES, "focal", is_optional=True)] = (
        None
    )
    warmup_steps: PositiveInt = 500
    box: Annotated[tuple[BoxTerm, ...], BoxTerms(BOX_LOSSES, "smooth_l1")] = Field("smooth_l1", validate_default=True)
    box_weight: NonNegativeFloat = 1.0
    normaliser: Literal["global", "local", "image", "ema"] = "global"
    box_rows: Literal["equal", "quality", "score"] = "equal"
    quality_weight: NonNegativeFloat = 1.0
    one_to_many_weight: tuple[UnitFloat, UnitFloat] = (0.8, 0.1)

    def classification_types(self) -> list[str]:
        """Return the types of the classification losses of the run."""
        return [self.classification.type, *([] if self.warmup is None else [self.warmup.type])]


def box_names(settings: LossSettings) -> list[str]:
    """Return the names of the box terms: `box` for a single loss, else `box_<type>`.

    If a type repeats, the position of the loss in the list is added.
    """
    types = [term.loss.type for term in settings.box]
    if len(types) == 1:
        return ["box"]
    return [f"box_{name}" if types.count(name) == 1 else f"box_{name}_{i}" for i, name in enumerate(types)]
