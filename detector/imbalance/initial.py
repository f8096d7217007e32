"""The classification loss that the initial scores should give in the first step.

A difference from the observed loss shows that the prior was not applied, or that the loss reduces its rows wrongly.
"""

import copy
import math

import torch
from torch import Tensor

from detector.core.structures import BoxCoder, Predictions, Priors, Targets
from detector.losses.criterion import Criterion


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
    """Return the classification loss of a batch if every score were `prior` and every box the prior's box, a 0-dim
    tensor.

    For a loss that is a sum over rows, this is the loss of a single row of each label, times the number of those rows,
    over `num_fg`: a loss that takes a mean in place of the sum then differs. For any other loss, this is the loss of
    equal logits.

    Args:
        criterion: the losses, which stay as they are.
        targets: the targets of the batch.
        priors: the priors of the batch.
        coder: the box coder of the model.
        num_fg: the normalizer of the step.
        prior: the initial score.
        num_batches: the batches of the step on this rank.
    """
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
    raw = coder.encode(priors.boxes, priors.boxes).expand(len(labels), -1, -1)
    predictions = Predictions(logits, raw, priors, coder)
    return copy.deepcopy(criterion)(predictions, targets, num_fg, num_batches).weighted["cls"]
