"""The losses, from a config and a training set."""

from collections.abc import Mapping
from typing import Any

from detector.build.data import facts
from detector.config import Config
from detector.core.errors import UserError
from detector.core.registry import Part
from detector.data.dataset import DetectionDataset
from detector.losses.base import ClassificationLoss
from detector.losses.criterion import Criterion


def build_criterion(config: Config, dataset: DetectionDataset) -> Criterion:
    """The losses for a training set; `num_classes` and `class_counts`, where a loss has them and the config does not
    say, are the set's own. Raises UserError where the config says otherwise."""
    known = facts(dataset)
    return Criterion(
        config.loss,
        build_classification_loss(config.loss.classification, known),
        [term.loss.build(known) for term in config.loss.box],
        config.anchor_sampler.build(known),
        known["num_classes"],
    )


def build_classification_loss(part: Part[ClassificationLoss], known: Mapping[str, Any]) -> ClassificationLoss:
    """The classification loss, with what it needs to know of the training set (`facts`); see `build_criterion`."""
    num_classes = known["num_classes"]
    spec = part.parameters
    for key in ("alpha", "class_weights", "class_counts"):
        if isinstance(spec.get(key), list) and len(spec[key]) != num_classes:
            raise UserError(f"loss.classification.{key}: {len(spec[key])} values for {num_classes} classes")
    if spec.get("num_classes", num_classes) not in (None, num_classes):
        raise UserError(f"loss.classification.num_classes: {spec['num_classes']}, but the data set has {num_classes}")
    return part.build(known)
