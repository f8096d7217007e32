"""The effect of each rule by which GHM can count, on the weights, the loss and the gradient of the same logits.

`python tests/ghm_parity.py` prints the tables of tools/benchmarks/README.md: for random logits, and for the logits of
the first 50 steps of a training. It takes a minute on a busy processor. Its arguments are overrides of the training.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from published_ghm import (
    OURS,
    OURS_BY_LEVEL,
    PUBLISHED,
    Harmonized,
    PublishedGHMC,
    PublishedGHMR,
    Step,
    cross_entropy,
    drawn_steps,
    one_hot,
)
from torch import Tensor

from detector.build import build_dataset, build_trained_model, build_trainer, with_decisions
from detector.config import load_config
from detector.core.structures import Predictions, Targets, is_foreground
from detector.core.tables import markdown
from detector.losses import BOX_LOSSES, CLASSIFICATION_LOSSES
from detector.losses.base import BoxLoss, ClassificationLoss

NUM_STEPS, MARKS = 50, (1, 10, 50)
TRAINING = ("loss.classification={type: ghm_c, power: 1.0}", "data.train.num_images=200", "train.seed=0")
EASY, HARD = 0.1, 0.9  # gradient norms
PUBLISHED_BOX_WEIGHT, MU = 10.0, 0.02  # the published settings of GHM-R

# each "..." is the published procedure with one other rule
RULES = {
    "published": PUBLISHED,
    "... all levels in one call": replace(PUBLISHED, by_level=False),
    "... separate counts for each level": replace(PUBLISHED, shares_counts=False),
    "... mean over the levels": replace(PUBLISHED, averages_levels=True),
    "... bias correction": replace(PUBLISHED, corrects_bias=True),
    "... decay of empty bins": replace(PUBLISHED, decays_empty_bins=True),
    "... two processes": replace(PUBLISHED, num_processes=2),
    "... norms in bf16": replace(PUBLISHED, rounds_norms=True),
    "ours, scope level": OURS_BY_LEVEL,
    "ours, scope batch": OURS,
}


@dataclass(frozen=True)
class Row:
    """The numbers of a loss in a step, by column."""

    name: str
    numbers: dict[str, float]


def class_result(loss: ClassificationLoss, step: Step) -> Harmonized:
    """Return the result of a classification loss of `detector`. The factor is loss / cross entropy."""
    logits, labels, _ = step.classification()
    x = torch.from_numpy(logits).requires_grad_()
    value = loss(x, step.labels, step.foreground.sum())
    (gradient,) = torch.autograd.grad(value, x)
    elements = loss.elements(x, step.labels).detach().numpy()
    elements /= 1 if loss.self_normalised else max(int(step.foreground.sum()), 1)
    return Harmonized(
        elements / cross_entropy(logits, one_hot(labels, logits.shape[-1])), value.item(), gradient.numpy()
    )


def box_result(loss: BoxLoss, step: Step) -> Harmonized:
    """Return the result of a box loss of `detector`. It has no factors."""
    predicted, target, *_ = map(torch.as_tensor, step.boxes())
    value = loss(predicted.requires_grad_(), target, step.foreground, step.foreground.sum())
    (gradient,) = torch.autograd.grad(value, predicted)
    return Harmonized(np.zeros(0), value.item(), gradient.numpy())


def describe(step: Step, result: Harmonized) -> dict[str, float]:
    """Return the numbers of a classification loss in a step.

    A weight is the factor of the cross entropy, times the number of foreground anchors: cross entropy has the weight 1.
    """
    logits, labels, _ = step.classification()
    targets = one_hot(labels, logits.shape[-1]) == 1
    norms = np.abs(1 / (1 + np.exp(-logits)) - targets)
    is_valid = np.broadcast_to((labels >= 0)[..., None], logits.shape)
    is_background = is_valid & ~targets
    groups = {
        "foreground": targets,
        "easy background": is_background & (norms < EASY),
        "hard background": is_background & (norms >= EASY) & (norms <= HARD),
        "outliers": is_valid & (norms > HARD),
    }
    weights = result.factors * int(step.foreground.sum())
    gradient = np.abs(result.gradient)
    return {name: float(weights[group].mean()) if group.any() else np.nan for name, group in groups.items()} | {
        "loss": result.loss,
        "foreground gradient": float(gradient[targets].sum() / gradient.sum()),
    }


def describe_boxes(step: Step, result: Harmonized) -> dict[str, float]:
    """Return the share of the offsets that have large errors, and their share of the absolute gradient.

    The gradient norm of a large error is above 0.9, so the error is above 0.041. The published bins have 0.9 as an
    edge.
    """
    predicted, target, foreground, _ = step.boxes()
    difference, gradient = np.abs(predicted - target)[foreground], np.abs(result.gradient)[foreground]
    is_large = difference / np.sqrt(difference**2 + MU**2) > HARD
    return {"large errors": float(is_large.mean()), "their gradient": float(gradient[is_large].sum() / gradient.sum())}


class Comparison:
    """All losses on the same steps. It has the rows of the steps `MARKS`."""

    def __init__(self) -> None:
        self.classes: dict[str, Callable[[Step], Harmonized]] = {
            name: _on(PublishedGHMC(rules=rules), Step.classification) for name, rules in RULES.items()
        }
        others = {
            "ours, power 0.5": CLASSIFICATION_LOSSES.build("ghm_c", power=0.5),
            "focal": CLASSIFICATION_LOSSES.build("focal"),
            "cross entropy": CLASSIFICATION_LOSSES.build("cross_entropy"),
        }
        self.classes |= {name: partial(class_result, loss) for name, loss in others.items()}
        # each box loss with its weight
        self.boxes: dict[str, tuple[Callable[[Step], Harmonized], float]] = {
            "GHM-R, published": (_on(PublishedGHMR(MU), Step.boxes), PUBLISHED_BOX_WEIGHT),
            "GHM-R, ours": (_on(PublishedGHMR(MU, rules=OURS), Step.boxes), PUBLISHED_BOX_WEIGHT),
            "GHM-R, power 0.5": (partial(box_result, BOX_LOSSES.build("ghm_r", mu=MU, power=0.5)), 1.0),
            "smooth L1": (partial(box_result, BOX_LOSSES.build("smooth_l1")), 1.0),
        }
        self.class_rows: list[Row] = []
        self.box_rows: list[Row] = []
        self.num_steps = 0

    def add(self, step: Step, trunk_norm: Callable[[np.ndarray, bool], float] | None = None) -> None:
        """Add a step.

        Args:
            step: the inputs of the losses.
            trunk_norm: returns the norm of the gradient of the weights before the head, from the gradient of the logits
                (true) or the offsets (false).
        """
        self.num_steps += 1
        is_marked = self.num_steps in MARKS
        for name, loss in self.classes.items():
            result = loss(step)
            if is_marked:
                numbers = describe(step, result)
                if trunk_norm is not None:
                    numbers["trunk gradient"] = trunk_norm(result.gradient, True)
                self.class_rows.append(Row(name, numbers))
        for name, (loss, weight) in self.boxes.items():
            result = loss(step)
            if is_marked:
                numbers = {"loss": weight * result.loss} | describe_boxes(step, result)
                if trunk_norm is not None:
                    numbers["trunk gradient"] = weight * trunk_norm(result.gradient, False)
                self.box_rows.append(Row(f"{name}, weight {weight:g}", numbers))

    def tables(self) -> str:
        """Return the tables in Markdown."""
        return f"{_table(self.class_rows)}\n{_table(self.box_rows)}"


def _on(loss: Callable[..., Harmonized], arguments: Callable[[Step], tuple]) -> Callable[[Step], Harmonized]:
    return lambda step: loss(*arguments(step))


def _table(rows: list[Row]) -> str:
    """Return a line for each loss. A cell has the numbers of the steps `MARKS`."""
    columns = list(rows[0].numbers)
    lines = []
    for name in dict.fromkeys(row.name for row in rows):
        steps = [row.numbers for row in rows if row.name == name]
        lines.append([name, *(" / ".join(_text(step[column]) for step in steps) for column in columns)])
    return markdown(["", *columns], lines)


def _text(number: float) -> str:
    return "-" if np.isnan(number) else f"{number:.2g}" if abs(number) < 10 else f"{number:.0f}"


def drawn() -> Comparison:
    """Return the comparison of random logits."""
    comparison = Comparison()
    for step in drawn_steps(NUM_STEPS):
        comparison.add(step)
    return comparison


def trained(overrides: list[str]) -> Comparison:
    """Return the comparison of the first steps of a training of retina_focal.yaml."""
    config = load_config("retina_focal.yaml", [*TRAINING, *overrides])
    train = build_dataset(config, "train")
    config = with_decisions(config, train)
    val = build_dataset(config, "val", train.class_names)
    comparison = Comparison()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, build_trained_model(config, train), train, val, Path(folder))
        model = trainer.model
        trunk = [p for part in (model.backbone, model.neck) for p in part.parameters() if p.requires_grad]

        def record(criterion: torch.nn.Module, arguments: tuple, _: object) -> None:
            predictions: Predictions
            targets: Targets
            predictions, targets, *_ = arguments
            if not torch.is_grad_enabled():  # the expected value of the initial loss is not a step
                return

            def trunk_norm(gradient: np.ndarray, of_logits: bool) -> float:
                outputs: Tensor = predictions.logits if of_logits else predictions.raw
                upstream = torch.from_numpy(gradient).to(outputs.dtype)
                gradients = torch.autograd.grad(outputs, trunk, upstream, retain_graph=True)
                return float(torch.stack([g.float().norm() for g in gradients]).norm())

            offsets = predictions.coder.encode(targets.boxes, predictions.priors.boxes)
            foreground = is_foreground(targets.labels, model.num_classes)
            sizes = predictions.priors.level_sizes
            step = Step(predictions.logits, targets.labels, predictions.raw, offsets, foreground, sizes)
            comparison.add(step, trunk_norm)

        trainer.criterion.register_forward_hook(record)
        model.train()
        for _, batches in zip(range(NUM_STEPS), trainer.batches(0), strict=False):
            trainer.step(batches)
    return comparison


if __name__ == "__main__":
    print("Random logits\n")
    print(drawn().tables())
    print("\nLogits of a training\n")
    print(trained(sys.argv[1:]).tables())
