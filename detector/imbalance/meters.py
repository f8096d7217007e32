"""Meters of the imbalance in a training step. They are device tensors and need no host synchronization."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detector.core.structures import is_foreground
from detector.imbalance.vocabulary import EASY_BELOW
from detector.kernels import gradient_norm_histogram
from detector.kernels.reference import binary_targets

NORM_BINS = 10
HARDEST = 0.01  # the fraction of an image's elements whose loss `loss_share_top1` adds up
PART_KINDS = ("num_fg", "num_bg", "loss_share_fg", "loss_share_bg", "gradient_share_fg", "gradient_share_bg")
GRADIENT_SHARE_RANGE = (0.02, 0.98)
MIN_SCORE_RATIO = 1.5  # with a lower ratio of mean foreground to mean background score, the model has collapsed


def gradient_sums(gradient: Tensor, labels: Tensor) -> Tensor:
    """Sum |d loss / d logit| over foreground elements (binary target 1) and over all elements, (2,) fp32.

    Args:
        gradient: the gradient of the logits, (..., K).
        labels: (...) int64, 0..K-1 where the anchor is foreground.
    """
    num_classes = gradient.shape[-1]
    is_fg = is_foreground(labels, num_classes)
    at_label = gradient.gather(-1, labels.clamp(0, num_classes - 1)[..., None])[..., 0]
    return torch.stack((at_label.abs().float().masked_fill(~is_fg, 0).sum(), gradient.abs().sum(dtype=torch.float32)))


def meter_names(levels: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Return the names of the values of `read`, in order. The meters of a level or class are named `part/kind`.

    Args:
        levels: the names of the pyramid levels.
        class_names: the names of the classes.
    """
    parts = [*levels, *(f"class {name}" for name in class_names)]
    return [
        *("num_bg", "num_ignored", "loss_share_top1", "effective_negatives", "mean_p_fg", "mean_p_bg"),
        "mean_p_hard_bg",
        *(f"gradient_norm_{i:02d}" for i in range(NORM_BINS)),
        *(f"{part}/{kind}" for kind in PART_KINDS for part in parts),
    ]


@torch.no_grad()
def measure(logits: Tensor, gradient: Tensor, elements: Tensor, labels: Tensor, level_sizes: tuple[int, ...]) -> Tensor:
    """Return the sums from which `read` computes the meters, 1-dim fp32.

    The sums of several batches and ranks can be added.

    Args:
        logits: (B, A, K).
        gradient: the gradient of the logits, (B, A, K).
        elements: the loss of each element, (B, A, K); 0 in ignored rows.
        labels: (B, A), 0..K-1 foreground, K background, negative ignored.
        level_sizes: the number of anchors of each level.
    """
    num_classes = logits.shape[-1]
    targets = binary_targets(labels, num_classes)
    is_bg = ~targets & (labels >= 0)[..., None]
    scores = logits.float().sigmoid()
    is_hard = is_bg & (scores >= EASY_BELOW)
    size = gradient.abs().float()
    loss_bg, gradient_bg = (x.masked_fill(targets, 0) for x in (elements, size))
    values = [
        (labels == num_classes).sum(),
        (labels < 0).sum(),
        loss_bg.flatten(1).topk(max(1, math.ceil(HARDEST * loss_bg[0].numel())), sorted=False).values.sum(),
        gradient_bg.square().sum(),
        *((scores * mask).sum() for mask in (targets, is_bg, is_hard)),
        (labels >= 0).sum() * num_classes,
        is_hard.sum(),
        *gradient_norm_histogram(logits, labels, NORM_BINS),
    ]
    loss_fg, gradient_fg = (x.masked_fill(~targets, 0) for x in (elements, size))
    num_fg, *shares = (
        torch.cat((_by_level(x, level_sizes), x.sum(dim=0)))
        for x in (x.sum(dim=0).float() for x in (targets, loss_fg, loss_bg, gradient_fg, gradient_bg))  # A K
    )
    levels_bg = _by_level((labels == num_classes).sum(dim=0), level_sizes)
    num_bg = torch.cat((levels_bg, (labels >= 0).sum() - num_fg[len(level_sizes) :]))
    return torch.cat((torch.stack([v.float() for v in values]), num_fg, num_bg, *shares))


def read(sums: Tensor) -> Tensor:
    """Compute the meters of a step from the sums that `measure` returns, in the order of `meter_names`.

    The meters of the step:
        num_bg, num_ignored: numbers of background and ignored anchors.
        loss_share_top1: the share of the background loss on the 1% of each image's elements (foreground included in
            the number) that have the highest background loss.
        effective_negatives: (sum |g|)^2 / sum g^2 over the background elements. It is the number of elements of equal
            gradient that would have the same two sums.
        mean_p_fg, mean_p_bg, mean_p_hard_bg: the mean score of foreground, background and hard background (p >= 0.1).
        gradient_norm_00..09: the number of elements with |p - target| in each tenth of 0..1.

    The meters of each level and class:
        num_fg, num_bg: numbers of anchors. For a class, num_bg counts all anchors that are not ignored and not of the
            class.
        loss_share_fg, loss_share_bg: the shares of the step's loss on the part's foreground and background elements.
        gradient_share_fg, gradient_share_bg: the same shares of the step's absolute gradient.

    The shares add up to 1 over all levels, and over all classes. A mean or share of an empty set is 0.

    Args:
        sums: the sum of `measure` over the batches and ranks of the step.
    """
    of_step, by_part = sums[: 9 + NORM_BINS], sums[9 + NORM_BINS :].view(len(PART_KINDS), -1)
    num_bg, num_ignored, top, squares, p_fg, p_bg, p_hard, num_elements, num_hard, *norms = of_step.unbind()
    # each element is counted twice, in its level and in its class
    num_fg, _, loss_fg, loss_bg, gradient_fg, gradient_bg = by_part.sum(dim=1) / 2
    values = [
        num_bg,
        num_ignored,
        ratio(top, loss_bg),
        ratio(gradient_bg.square(), squares),
        ratio(p_fg, num_fg),
        ratio(p_bg, num_elements - num_fg),
        ratio(p_hard, num_hard),
        *norms,
    ]
    unit = torch.ones_like(loss_fg)
    totals = torch.stack((unit, unit, *[loss_fg + loss_bg] * 2, *[gradient_fg + gradient_bg] * 2))
    return torch.cat((torch.stack(values), ratio(by_part, totals[:, None]).flatten()))


def warnings(row: dict[str, float]) -> dict[str, str]:
    """Return the warnings on a measured step, a line of text by the name of each problem.

    The problems are `collapsed` (foreground scores are close to background scores), and `background` and `foreground`
    (nearly all of the gradient is on the named side).

    Args:
        row: the meters of the step by name.
    """
    texts = {}
    if row["num_fg"] > 0 and row["mean_p_fg"] < MIN_SCORE_RATIO * row["mean_p_bg"]:
        texts["collapsed"] = (
            f"the model has collapsed to background: the mean score is {row['mean_p_fg']:.4f} on foreground and "
            f"{row['mean_p_bg']:.4f} on background; set model.head.prior=0.01 or loss.classification=focal, or lower "
            "train.lr"
        )
    low, high = GRADIENT_SHARE_RANGE
    if row["num_fg"] > 0 and not low <= row["fg_gradient_share"] <= high:
        side = "background" if row["fg_gradient_share"] < low else "foreground"
        texts[side] = (
            f"the {side} has {max(row['fg_gradient_share'], 1 - row['fg_gradient_share']):.1%} of the classification "
            "gradient; run `detector advise` to get the alpha that balances the gradient"
        )
    return texts


def _by_level(x: Tensor, level_sizes: tuple[int, ...]) -> Tensor:
    return torch.stack([part.sum() for part in x.split(level_sizes)])


def ratio(part: Tensor, total: Tensor) -> Tensor:
    """Return part / total; 0 where both are 0.

    Args:
        part: a sum that is not negative.
        total: the sum that contains `part`.
    """
    return part / total.clamp(min=torch.finfo(torch.float32).tiny)
