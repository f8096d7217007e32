"""Functions that build the losses from a config and a training set."""

from collections.abc import Mapping
from typing import Any

from detector.build.data import facts
from detector.build.model import outline
from detector.config import Config
from detector.core.errors import UserError
from detector.core.registry import Part
from detector.core.structures import BoxCoder
from detector.data.dataset import DetectionDataset
from detector.geometry.assignment import ASSIGNERS
from detector.geometry.coders import DistributionCoder
from detector.losses.base import BoxLoss, ClassificationLoss
from detector.losses.criterion import Criterion
from detector.models.heads import Head


def build_criterion(config: Config, dataset: DetectionDataset) -> Criterion:
    """Return the criterion for a training set.

    A loss whose `num_classes` or `class_counts` is null in the config gets the values of the training set.

    Raises:
        UserError: a value of the config does not fit the number of classes, or a box loss does not fit the head or
            `loss.box_rows`.
    """
    head = outline(config).head
    one_to_many = None if head.one_to_one is None else _build(config, dataset, head)
    return _build(config, dataset, head, one_to_many)


def _build(config: Config, dataset: DetectionDataset, head: Head, one_to_many: Criterion | None = None) -> Criterion:
    known, warmup = facts(dataset), config.loss.warmup
    boxes = [_build_box_loss(term.loss, known, config, head.coder) for term in config.loss.box]
    if config.loss.box_rows == "quality" and not getattr(ASSIGNERS.get(config.assigner.type), "gives_quality", False):
        raise UserError(
            f"loss.box_rows: quality needs the qualities of an assigner, but {config.assigner.type} gives no quality",
            "set loss.box_rows=equal, or choose an assigner that gives a quality",
        )
    return Criterion(
        config.loss,
        build_classification_loss(config.loss.classification, known),
        boxes,
        config.anchor_sampler.build(known),
        known["num_classes"],
        head.quality,
        one_to_many,
        None if warmup is None else build_classification_loss(warmup, known, "loss.warmup"),
    )


def _build_box_loss(part: Part[BoxLoss], known: Mapping[str, Any], config: Config, coder: BoxCoder) -> BoxLoss:
    """Return the box loss. Raise UserError where the loss does not fit the box coder or `loss.box_rows`."""
    loss, has_distributions = part.build(known), isinstance(coder, DistributionCoder)
    if not loss.on_boxes and loss.on_distributions != has_distributions:
        if has_distributions:
            remedy = "set loss.box to dfl and a loss of decoded boxes, for example giou, or set model.head.reg_max=null"
            raise UserError(f"loss.box: {part.type} compares numbers, but the head predicts distributions", remedy)
        remedy = "set model.head.type=points and model.head.reg_max=16, or choose another box loss"
        raise UserError(f"loss.box: {part.type} compares distributions, but the head predicts numbers", remedy)
    if loss.self_normalised and config.loss.box_rows != "equal":
        raise UserError(
            f"loss.box_rows: {config.loss.box_rows} weights the boxes, but {part.type} computes its own weights",
            "set loss.box_rows=equal, or choose another box loss",
        )
    return loss


def build_classification_loss(
    part: Part[ClassificationLoss], known: Mapping[str, Any], config_key: str = "loss.classification"
) -> ClassificationLoss:
    """Return the classification loss for a training set.

    Args:
        part: the loss of the config.
        known: the properties of the training set (`detector.build.facts`).
        config_key: the key of the loss in the config.

    Raises:
        UserError: a value of the config does not fit the number of classes.
    """
    num_classes = known["num_classes"]
    spec = part.parameters
    for key in ("alpha", "class_weights", "class_counts"):
        if isinstance(spec.get(key), list) and len(spec[key]) != num_classes:
            raise UserError(
                f"{config_key}.{key}: the list has {len(spec[key])} values, but there are {num_classes} classes",
                "give a value for each class",
            )
    if spec.get("num_classes", num_classes) not in (None, num_classes):
        raise UserError(
            f"{config_key}.num_classes: {spec['num_classes']}, but the data set has {num_classes} classes",
            f"set {config_key}.num_classes=null",
        )
    return part.build(known)
