"""Live meters: what a training step's imbalance looks like, as device tensors without a host sync."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detector.core.structures import is_foreground
from detector.imbalance.vocabulary import EASY_BELOW
from detector.kernels import gradient_norm_histogram
from detector.kernels.reference import binary_targets

NORM_BINS = 10
TOP = 0.01
PART_KINDS = ("num_fg", "num_bg", "loss_share_fg", "loss_share_bg", "gradient_share_fg", "gradient_share_bg")
SANE_GRADIENT_SHARE = (0.02, 0.98)
DISTINGUISHES = 1.5  # a detector whose foreground scores below this many times its background's tells nothing apart


def gradient_sums(gradient: Tensor, labels: Tensor) -> Tensor:
    """(2,) fp32: the sum of |d loss / d logit| over foreground elements (binary target 1), and over all.

    gradient (..., K); labels (...) int64, 0..K-1 where the anchor is foreground.
    """
    num_classes = gradient.shape[-1]
    foreground = is_foreground(labels, num_classes)
    own = gradient.gather(-1, labels.clamp(0, num_classes - 1)[..., None])[..., 0]
    return torch.stack((own.abs().float().masked_fill(~foreground, 0).sum(), gradient.abs().sum(dtype=torch.float32)))


def meter_names(levels: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """The keys of `read`, in order; those of a level or a class are `part/kind`."""
    parts = [*levels, *(f"class {name}" for name in class_names)]
    return [
        *("num_bg", "num_ignored", "loss_share_top1", "effective_negatives", "mean_p_fg", "mean_p_bg"),
        "mean_p_hard_bg",
        *(f"gradient_norm_{i:02d}" for i in range(NORM_BINS)),
        *(f"{part}/{kind}" for kind in PART_KINDS for part in parts),
    ]


@torch.no_grad()
def measure(logits: Tensor, gradient: Tensor, elements: Tensor, labels: Tensor, level_sizes: tuple[int, ...]) -> Tensor:
    """The sums that `read` makes meters of: fp32, those of a step's batches and ranks add up.

    logits and their gradient (B, A, K); elements (B, A, K), each element's loss, 0 in ignored rows; labels (B, A)."""
    num_classes = logits.shape[-1]
    targets = binary_targets(labels, num_classes)
    background = ~targets & (labels >= 0)[..., None]
    scores = logits.float().sigmoid()
    hard = background & (scores >= EASY_BELOW)
    pull = gradient.abs().float()
    loss_bg, pull_bg = (x.masked_fill(targets, 0) for x in (elements, pull))
    values = [
        (labels == num_classes).sum(),
        (labels < 0).sum(),
        loss_bg.flatten(1).topk(max(1, math.ceil(TOP * loss_bg[0].numel())), sorted=False).values.sum(),
        pull_bg.square().sum(),
        *((scores * mask).sum() for mask in (targets, background, hard)),
        (labels >= 0).sum() * num_classes,
        hard.sum(),
        *gradient_norm_histogram(logits, labels, NORM_BINS),
    ]
    loss_fg, pull_fg = (x.masked_fill(~targets, 0) for x in (elements, pull))
    num_fg, *shares = (
        torch.cat((_by_level(x, level_sizes), x.sum(dim=0)))
        for x in (x.sum(dim=0).float() for x in (targets, loss_fg, loss_bg, pull_fg, pull_bg))  # A K
    )
    levels_bg = _by_level((labels == num_classes).sum(dim=0), level_sizes)
    num_bg = torch.cat((levels_bg, (labels >= 0).sum() - num_fg[len(level_sizes) :]))
    return torch.cat((torch.stack([v.float() for v in values]), num_fg, num_bg, *shares))


def read(sums: Tensor) -> Tensor:
    """A step's meters from what `measure` says of all of it, in the order of `meter_names`.

    num_bg, num_ignored: anchors. loss_share_top1: the part of the background's loss on each image's hardest 1% (of all
    elements, of which the foreground is a trifle). effective_negatives: (sum |g|)^2 / sum g^2 over background elements,
    how many equal ones would pull as they do. mean_p: of the scores of foreground elements, of background ones, and of
    hard background (p >= 0.1). gradient_norm: how many elements have |p - target| in each tenth of 0..1.

    For each level and class: foreground anchors; background anchors (a class's: those that count and are not of it);
    and the part of the whole loss, and of the whole absolute gradient, on its foreground and on its background
    elements, so that these add up to 1 over all levels, and over all classes. A mean or share of nothing is 0."""
    whole, by_part = sums[: 9 + NORM_BINS], sums[9 + NORM_BINS :].view(len(PART_KINDS), -1)
    num_bg, num_ignored, top, squares, p_fg, p_bg, p_hard, num_elements, num_hard, *norms = whole.unbind()
    # the levels make up the whole, and the classes once more
    num_fg, _, loss_fg, loss_bg, pull_fg, pull_bg = by_part.sum(dim=1) / 2
    values = [
        num_bg,
        num_ignored,
        ratio(top, loss_bg),
        ratio(pull_bg.square(), squares),
        ratio(p_fg, num_fg),
        ratio(p_bg, num_elements - num_fg),
        ratio(p_hard, num_hard),
        *norms,
    ]
    one = torch.ones_like(loss_fg)
    of = torch.stack((one, one, *[loss_fg + loss_bg] * 2, *[pull_fg + pull_bg] * 2))
    return torch.cat((torch.stack(values), ratio(by_part, of[:, None]).flatten()))


def warnings(row: dict[str, float]) -> dict[str, str]:
    """What is wrong with a measured step, by a short name: a line each."""
    found = {}
    if row["num_fg"] > 0 and row["mean_p_fg"] < DISTINGUISHES * row["mean_p_bg"]:
        found["collapsed"] = (
            f"collapsed to all background: foreground scores {row['mean_p_fg']:.4f} on average, background "
            f"{row['mean_p_bg']:.4f}; set model.head.prior (0.01), try loss.classification=focal, or lower train.lr"
        )
    low, high = SANE_GRADIENT_SHARE
    if row["num_fg"] > 0 and not low <= row["fg_gradient_share"] <= high:
        side = "background" if row["fg_gradient_share"] < low else "foreground"
        found[side] = (
            f"the {side} has {max(row['fg_gradient_share'], 1 - row['fg_gradient_share']):.1%} of the classification "
            "gradient; `detector advise` says which alpha balances it"
        )
    return found


def _by_level(x: Tensor, level_sizes: tuple[int, ...]) -> Tensor:
    return torch.stack([part.sum() for part in x.split(level_sizes)])


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """A share; of nothing, 0."""
    return part / whole.clamp(min=torch.finfo(torch.float32).tiny)
