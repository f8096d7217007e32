"""The classification loss that prior initialisation promises for the first step: a prior that was not applied, and in a
loss that adds up over rows a wrong reduction, show as a difference from the observed one."""

import copy
import math

import torch
from torch import Tensor

from detector.core.structures import Predictions, Targets
from detector.geometry.coders import DeltaCoder
from detector.losses.criterion import Criterion


@torch.no_grad()
def expected_initial_loss(
    criterion: Criterion,
    targets: Targets,
    anchors: Tensor,
    level_sizes: tuple[int, ...],
    num_fg: Tensor,
    prior: float,
    num_batches: int,
) -> Tensor:
    """The classification loss of one of `num_batches` batches if every score were `prior` and every box its anchor, a
    0-dim tensor.

    For a loss that adds up over rows, it is computed from one row of each label, times their number, over num_fg: so a
    loss that averages where it should sum is found out. For another it is the loss itself, on equal logits."""
    labels, num_classes, loss = targets.labels, criterion.num_classes, copy.deepcopy(criterion.classification)
    logit = math.log(prior / (1 - prior))
    by_rows = loss.row_additive and not loss.use_quality and not criterion.sampler.needs_logits
    if by_rows and criterion.normaliser != "image":
        row = torch.full((1, num_classes), logit, device=labels.device)
        kinds = torch.arange(num_classes + 1, device=labels.device)
        losses = torch.stack([loss.eval()(row, kind[None], 1) for kind in kinds])
        counts = torch.bincount(labels[labels >= 0], minlength=num_classes + 1)
        return (losses * counts).sum() / num_fg.clamp(min=1)
    logits = torch.full((*labels.shape, num_classes), logit, device=labels.device)
    predictions = Predictions(logits, torch.zeros_like(targets.boxes), anchors, level_sizes, DeltaCoder())
    return copy.deepcopy(criterion)(predictions, targets, num_fg, num_batches)["cls"]
