"""The expected value of the classification loss in the first step, computed from the initial scores.

A difference from the observed loss means that the prior was not applied, or that the reduction of the loss is wrong.
"""

import copy
import math

import torch
from torch import Tensor

from detector.core.structures import BoxCoder, Predictions, Priors, Targets
from detector.losses.criterion import Criterion

SAME_LOSS = 0.1  # relative difference


def judge_first_loss(observed: float, expected: float) -> str:
    """Return whether the first classification loss agrees with `expected_initial_loss`, or what to examine.

    Args:
        observed: the classification loss of the first step.
        expected: the loss that equal scores give.
    """
    if math.isclose(observed, expected, rel_tol=SAME_LOSS):
        return "they agree"
    return "they differ, so look for an error in the loss or in model.head.prior"


@torch.no_grad()
def expected_initial_loss(
    criterion: Criterion,
    targets: Targets,
    priors: Priors,
    coder: BoxCoder,
    num_fg: Tensor,
    prior: float,
    num_batches: int,
) -> Tensor:
    """Return the classification loss of a batch whose scores are all `prior`, a 0-dim tensor.

    For a loss that is a sum over rows, the loss of a single row is computed for each label and multiplied by the number
    of rows with the label. The sum is divided by `num_fg`. A loss
    that takes a mean instead of the sum differs from this value. Any other loss is computed on equal logits.

    Args:
        criterion: the losses. Their state does not change.
        targets: the targets of the batch.
        priors: the priors of the batch.
        coder: the box coder of the model.
        num_fg: the normalizer of the step.
        prior: the initial score, 0..1.
        num_batches: the number of batches of the step on this rank.
    """
    labels, num_classes, loss = targets.labels, criterion.num_classes, copy.deepcopy(criterion.active_classification)
    logit = math.log(prior / (1 - prior))
    is_sum_over_rows = loss.row_additive and not loss.use_quality and not criterion.sampler.needs_logits
    if is_sum_over_rows and criterion.normaliser != "image":
        row = torch.full((1, num_classes), logit, device=labels.device)
        row_labels = torch.arange(num_classes + 1, device=labels.device)
        losses = torch.stack([loss.eval()(row, label[None], 1) for label in row_labels])
        counts = torch.bincount(labels[labels >= 0], minlength=num_classes + 1)
        return (losses * counts).sum() / num_fg.clamp(min=1)
    logits = torch.full((*labels.shape, num_classes), logit, device=labels.device)
    raw = logits.new_zeros((*labels.shape, coder.num_outputs))
    predictions = Predictions(logits, raw, priors, coder, box_quality=torch.zeros_like(labels, dtype=logits.dtype))
    return copy.deepcopy(criterion)(predictions, targets, num_fg, num_batches).weighted["cls"]
