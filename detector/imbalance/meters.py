"""Live meters: what a training step's imbalance looks like, as device tensors without a host sync."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detector.imbalance.vocabulary import EASY_BELOW
from detector.kernels import gradient_norm_histogram
from detector.kernels.reference import binary_targets

NORM_BINS = 10
TOP = 0.01
SANE_GRADIENT_SHARE = (0.02, 0.98)
DISTINGUISHES = 1.5  # a detector whose foreground scores below this many times its background's tells nothing apart


def gradient_sums(gradient: Tensor, labels: Tensor) -> Tensor:
    """(2,) fp32: the sum of |d loss / d logit| over foreground elements (binary target 1), and over all.

    gradient (..., K); labels (...) int64, 0..K-1 where the anchor is foreground.
    """
    num_classes = gradient.shape[-1]
    foreground = (labels >= 0) & (labels < num_classes)
    own = gradient.gather(-1, labels.clamp(0, num_classes - 1)[..., None])[..., 0]
    return torch.stack((own.abs().float().masked_fill(~foreground, 0).sum(), gradient.abs().sum(dtype=torch.float32)))


def meter_names(levels: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """The keys of `read`, in order."""
    parts = [*levels, *(f"class {name}" for name in class_names)]
    return [
        *("num_bg", "num_ignored", "loss_share_top1", "effective_negatives", "mean_p_fg", "mean_p_bg"),
        "mean_p_hard_bg",
        *(f"gradient_norm_{i:02d}" for i in range(NORM_BINS)),
        *(f"{part}/{kind}" for kind in ("num_fg", "loss_share_fg", "gradient_share_fg") for part in parts),
    ]


@torch.no_grad()
def measure(logits: Tensor, gradient: Tensor, elements: Tensor, labels: Tensor, level_sizes: tuple[int, ...]) -> Tensor:
    """The sums that `read` makes meters of: fp32, those of a step's batches and ranks add up.

    logits and their gradient (B, A, K); elements (B, A, K), each element's loss, 0 in ignored rows; labels (B, A)."""
    targets = binary_targets(labels, logits.shape[-1])
    background = ~targets & (labels >= 0)[..., None]
    scores = logits.float().sigmoid()
    pull = gradient.abs().float()

    losses_bg = elements.masked_fill(targets, 0).flatten(1)
    top = losses_bg.topk(max(1, math.ceil(TOP * losses_bg.shape[1])), sorted=False).values.sum()
    pull_bg = pull.masked_fill(targets, 0)
    masks = targets, background, background & (scores >= EASY_BELOW)
    values = [
        *((labels == logits.shape[-1]).sum(), (labels < 0).sum()),
        *(top, losses_bg.sum(), pull_bg.sum(), pull_bg.square().sum()),
        *((scores * mask).sum() for mask in masks),
        *(mask.sum() for mask in masks),
        *gradient_norm_histogram(logits, labels, NORM_BINS),
    ]
    by_anchor = (  # A K
        (x if x.dtype == torch.bool else x.masked_fill(~targets, 0)).sum(dim=0) for x in (targets, elements, pull)
    )
    parts = [torch.cat((_by_level(x, level_sizes), x.sum(dim=0))).float() for x in by_anchor]
    wholes = [torch.cat((_by_level(x, level_sizes), x.sum(dim=0))) for x in (elements.sum(dim=0), pull.sum(dim=0))]
    return torch.cat((torch.stack([v.float() for v in values]), *parts, *(whole.float() for whole in wholes)))


def read(sums: Tensor) -> Tensor:
    """A step's meters from what `measure` says of all of it, in the order of `meter_names`.

    num_bg, num_ignored: anchors. loss_share_top1: the part of the background's loss on each image's hardest 1% (of all
    elements, of which the foreground is a trifle). effective_negatives: (sum |g|)^2 / sum g^2 over background elements,
    how many equal ones would pull as they do. mean_p: of the scores of foreground elements, of background ones, and of
    hard background (p >= 0.1). gradient_norm: how many elements have |p - target| in each tenth of 0..1. For each level
    and class: foreground anchors, and the foreground's part of the loss and of the absolute gradient. A mean or share
    of nothing is 0."""
    plain, scores, numbers, norms, parts = sums.split((6, 3, 3, NORM_BINS, len(sums) - 12 - NORM_BINS))
    num_bg, num_ignored, top, loss_bg, pull_bg, square_bg = plain
    counts, own_loss, own_pull, loss, pull = parts.chunk(5)
    values = torch.stack((num_bg, num_ignored, ratio(top, loss_bg), ratio(pull_bg.square(), square_bg)))
    means = ratio(scores, numbers)
    return torch.cat((values, means, norms, counts, ratio(own_loss, loss), ratio(own_pull, pull)))


def warnings(row: dict[str, float]) -> dict[str, str]:
    """What is wrong with a measured step, by a short name: a line each."""
    found = {}
    if row["num_fg"] > 0 and row["mean_p_fg"] < DISTINGUISHES * row["mean_p_bg"]:
        found["collapsed"] = (
            f"collapsed to all background: foreground scores {row['mean_p_fg']:.4f} on average, background "
            f"{row['mean_p_bg']:.4f}; set model.prior (0.01), try loss.classification=focal, or lower train.lr"
        )
    low, high = SANE_GRADIENT_SHARE
    if row["num_fg"] > 0 and not low <= row["fg_gradient_share"] <= high:
        side = "background" if row["fg_gradient_share"] < low else "foreground"
        found[side] = (
            f"the {side} has {max(row['fg_gradient_share'], 1 - row['fg_gradient_share']):.1%} of the classification "
            "gradient; tools/advise.py says which alpha balances it"
        )
    return found


def _by_level(x: Tensor, level_sizes: tuple[int, ...]) -> Tensor:
    return torch.stack([part.sum() for part in x.split(level_sizes)])


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """A share; of nothing, 0."""
    return part / whole.clamp(min=torch.finfo(torch.float32).tiny)
