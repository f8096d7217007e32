"""Functions that build objects from a config. Below the commands, only these modules use the complete config."""

from detector.build.data import (
    build_dataset,
    build_eval_loader,
    build_train_loader,
    divide,
    evaluation_side,
    facts,
    read_dataset,
    require_objects,
    with_decisions,
)
from detector.build.evaluation import build_detection, build_evaluation, with_targets
from detector.build.instruments import build_census, build_probe
from detector.build.losses import build_classification_loss, build_criterion
from detector.build.model import build_model, build_trained_model, move_model, outline
from detector.build.training import build_trainer

__all__ = [
    "build_census",
    "build_classification_loss",
    "build_criterion",
    "build_dataset",
    "build_detection",
    "build_eval_loader",
    "build_evaluation",
    "build_model",
    "build_probe",
    "build_train_loader",
    "build_trained_model",
    "build_trainer",
    "divide",
    "evaluation_side",
    "facts",
    "outline",
    "move_model",
    "read_dataset",
    "require_objects",
    "with_decisions",
    "with_targets",
]
