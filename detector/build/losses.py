"""Functions that build the losses from a config and a training set."""

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
    """Return the criterion for a training set.

    A loss whose `num_classes` or `class_counts` is null in the config gets the values of the training set.

    Raises:
        UserError: a value of the config does not fit the number of classes.
    """
    known = facts(dataset)
    return Criterion(
        config.loss,
        build_classification_loss(config.loss.classification, known),
        [term.loss.build(known) for term in config.loss.box],
        config.anchor_sampler.build(known),
        known["num_classes"],
    )


def build_classification_loss(part: Part[ClassificationLoss], known: Mapping[str, Any]) -> ClassificationLoss:
    """Return the classification loss for a training set.

    Args:
        part: the loss of the config.
        known: the properties of the training set (`detector.build.facts`).

    Raises:
        UserError: a value of the config does not fit the number of classes.
    """
    num_classes = known["num_classes"]
    spec = part.parameters
    for key in ("alpha", "class_weights", "class_counts"):
        if isinstance(spec.get(key), list) and len(spec[key]) != num_classes:
            raise UserError(
                f"loss.classification.{key}: the list has {len(spec[key])} values, but there are {num_classes} classes",
                "give a value for each class",
            )
    if spec.get("num_classes", num_classes) not in (None, num_classes):
        raise UserError(
            f"loss.classification.num_classes: {spec['num_classes']}, but the data set has {num_classes} classes",
            "set loss.classification.num_classes=null",
        )
    return part.build(known)
