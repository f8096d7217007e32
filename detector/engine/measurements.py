"""The measurements of a training step: the loss and its terms, the share of the gradient, and the meters."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.core.distributed import sum_over_ranks
from detector.core.structures import Predictions, Targets
from detector.imbalance.meters import gradient_sums, measure, ratio, read
from detector.losses.criterion import Criterion
from detector.losses.terms import LossTerms


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The results of the forward and backward passes of a batch.

    Attributes:
        terms: the loss terms.
        gradient: (2,), the sums of |d loss / d logit| over the foreground elements and over all elements.
        logit_range: (2,), the lowest and the highest logit.
        meters: the summand of this batch in the meters of its step, or None in a step without a reading.
    """

    terms: LossTerms
    gradient: Tensor
    logit_range: Tensor
    meters: Tensor | None


def measure_batch(
    criterion: Criterion, predictions: Predictions, targets: Targets, terms: LossTerms, has_meters: bool
) -> BatchResult:
    """Return the results of a batch after its backward pass.

    Args:
        criterion: the losses.
        predictions: the predictions. The logits have their gradient.
        targets: the targets.
        terms: the loss terms.
        has_meters: whether the meters are read in this step.
    """
    gradient = predictions.logits.grad
    assert gradient is not None
    logits, labels, meters = predictions.logits.detach(), targets.labels, None
    if has_meters:
        sizes, quality = predictions.priors.level_sizes, criterion.quality(predictions, targets)
        elements = criterion.active_classification.elements(logits, labels, level_sizes=sizes, quality=quality)
        meters = measure(logits, gradient, elements.detach(), labels, sizes)
    return BatchResult(terms.detach(), gradient_sums(gradient, labels), torch.stack(logits.aminmax()), meters)


def measure_step(
    results: Sequence[BatchResult], num_fg: Tensor, is_interrupted: bool, meter_names: Sequence[str]
) -> dict[str, Tensor]:
    """Return the measurements of a step by name, as 0-dim tensors.

    The loss, its terms and the foreground share of the gradient are those of all ranks. `rank_loss`, `logit_min` and
    `logit_max` are those of this rank.

    Args:
        results: the results of the batches of this rank.
        num_fg: the number of foreground elements of these batches.
        is_interrupted: whether this rank received a signal to stop.
        meter_names: the names of the meters, which are added in a step with a reading.
    """
    rows = []
    for result in results:
        fg_gradient, gradient = result.gradient.unbind()
        rows.append(
            {
                "loss": result.terms.total(),
                **result.terms.weighted,
                **result.terms.parts,
                "fg_gradient_share": fg_gradient,
                "gradient": gradient,
            }
        )
    of_rank = {name: torch.stack([row[name].detach() for row in rows]).sum() for name in rows[0]}
    of_rank |= {"num_fg": num_fg, "interrupted": torch.full_like(num_fg, is_interrupted)}
    summed = sum_over_ranks(torch.stack(list(of_rank.values()))).unbind()
    measured = dict(zip(of_rank, summed, strict=True))
    measured["fg_gradient_share"] = ratio(measured["fg_gradient_share"], measured.pop("gradient"))
    low, high = torch.stack([result.logit_range for result in results]).unbind(dim=1)
    measured |= {"rank_loss": of_rank["loss"], "logit_min": low.amin(), "logit_max": high.amax()}
    meters = [result.meters for result in results if result.meters is not None]
    if meters:
        values = read(sum_over_ranks(torch.stack(meters).sum(dim=0)))
        measured |= dict(zip(meter_names, values.unbind(), strict=True))
    return measured
