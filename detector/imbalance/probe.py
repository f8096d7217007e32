"""What every loss makes of one trained model's scores: one pass over a split, histograms only."""

from typing import NamedTuple

import torch
from torch import Tensor

from detector.evaluation.anchor_scores import AnchorScores
from detector.geometry.boxes import decode, paired_iou
from detector.imbalance.vocabulary import GROUPS, group_index
from detector.kernels.reference import binary_targets
from detector.losses.base import ClassificationLoss
from detector.structures import Predictions, Targets

NORM_BINS = 30  # as GHM counts them
SCORE_BINS = 20
# Losses of single elements, by their logarithm: 0.6% a bin; everything below 1e-12 is as good as nothing.
LOSS_BINS = 6000
LOWEST, HIGHEST = -12.0, 4.0
CURVE_POINTS = 200


class Probe:
    """Re-scores `losses` (by name) on the logits of a trained model, batch by batch; the memory does not grow.

    Every loss sees what it would be given in training. Those that keep counts of their own (`ghm_c`, `equalized_focal`)
    count this pass as it goes, so that their first batches weigh as a training's first steps do.
    """

    def __init__(self, losses: dict[str, ClassificationLoss]):
        self.losses = {name: _LossHistograms(loss) for name, loss in losses.items()}
        self.groups = torch.zeros(len(GROUPS), dtype=torch.int64)
        self.norms = torch.zeros(2, NORM_BINS, dtype=torch.int64)  # background, foreground
        self.rows = {"foreground": 0, "background": 0, "ignored": 0}
        self.anchor_scores = AnchorScores()
        self.num_images = 0

    @torch.inference_mode(False)
    def update(self, predictions: Predictions, targets: Targets) -> None:
        # clones, as gradients cannot flow from what was made for inference
        logits, labels = predictions.logits.float().clone(), targets.labels.clone()
        num_classes = logits.shape[-1]
        is_fg = binary_targets(labels, num_classes)
        counts = (labels >= 0)[..., None].expand_as(is_fg)
        scores = logits.sigmoid()
        norms = torch.where(is_fg, 1 - scores, scores)[counts]
        targets_1d = is_fg[counts]
        place = _Places(
            group=group_index(norms, targets_1d),
            norm=_bin(norms, NORM_BINS) + NORM_BINS * targets_1d,
            score=_bin(scores[counts], SCORE_BINS) + SCORE_BINS * targets_1d,
            target=targets_1d,
            counts=counts,
        )
        self.groups += _count(place.group, len(GROUPS)).long()
        self.norms += _count(place.norm, 2 * NORM_BINS).long().view(2, -1)
        foreground = (labels >= 0) & (labels < num_classes)
        for name, mask in (("foreground", foreground), ("background", labels == num_classes), ("ignored", labels < 0)):
            self.rows[name] += int(mask.sum())
        self.anchor_scores.update(logits, labels)
        self.num_images += len(labels)
        with torch.no_grad():
            quality = paired_iou(decode(predictions.deltas.float().clone(), predictions.anchors), targets.boxes.clone())
        for histograms in self.losses.values():
            histograms.update(logits, labels, predictions.level_sizes, quality, place)

    def compute(self) -> dict:
        """Plain numbers; see the README for what each is. A share of nothing is 0, a mean of nothing NaN."""
        background, foreground = self.norms.tolist()
        return {
            "num_images": self.num_images,
            "rows": self.rows,
            "elements": dict(zip(GROUPS, self.groups.tolist(), strict=True)),
            "gradient_norm": {
                "edges": torch.linspace(0, 1, NORM_BINS + 1).tolist(),
                "foreground": foreground,
                "background": background,
            },
            "anchor_level": self.anchor_scores.compute(),
            "losses": {name: histograms.compute() for name, histograms in self.losses.items()},
        }


class _Places(NamedTuple):
    """Where each element that counts goes, (E,) each: the same for all losses. counts (B, A, K) says which do."""

    group: Tensor
    norm: Tensor
    score: Tensor
    target: Tensor
    counts: Tensor


class _LossHistograms:
    """One loss's sums: of its elements' losses and absolute gradients by group, norm, score, and size of the loss."""

    def __init__(self, loss: ClassificationLoss):
        self.loss = loss.train()
        self.by_group = torch.zeros(2, len(GROUPS), dtype=torch.float64)  # loss, gradient
        self.by_norm = torch.zeros(NORM_BINS, dtype=torch.float64)
        self.by_score = torch.zeros(2, 2 * SCORE_BINS, dtype=torch.float64)  # count, loss
        self.by_loss = torch.zeros(2, 2 * (LOSS_BINS + 1), dtype=torch.float64)  # count, loss

    def update(self, logits: Tensor, labels: Tensor, level_sizes: tuple, quality: Tensor, place: _Places) -> None:
        settings = {"level_sizes": level_sizes, "quality": quality}
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            num_fg = max(1, int(((labels >= 0) & (labels < logits.shape[-1])).sum()))
            (gradient,) = torch.autograd.grad(self.loss(leaf, labels, num_fg, **settings), leaf)
        divisor = 1 if self.loss.self_normalised else num_fg
        with torch.no_grad():
            elements = self.loss.elements(logits, labels, **settings)[place.counts].double() / divisor
        pull = gradient[place.counts].abs().double()
        self.by_group += torch.stack([_count(place.group, len(GROUPS), x) for x in (elements, pull)])
        self.by_norm += _count(place.norm, 2 * NORM_BINS, pull).view(2, -1).sum(dim=0)
        size = ((elements.clamp(min=1e-300).log10() - LOWEST) * (LOSS_BINS / (HIGHEST - LOWEST))).long() + 1
        size = size.clamp(0, LOSS_BINS) + (LOSS_BINS + 1) * place.target
        for sums, places in ((self.by_score, place.score), (self.by_loss, size)):
            sums += torch.stack([_count(places, sums.shape[1], x) for x in (None, elements)])

    def compute(self) -> dict:
        loss, gradient = ((x / x.sum().clamp(min=1e-300)).tolist() for x in self.by_group)
        counts, losses = (x.view(2, -1) for x in self.by_score)
        means = torch.where(counts > 0, losses / counts, torch.nan).tolist()
        curves = zip(*(x.view(2, -1) for x in self.by_loss), strict=True)
        return {
            "loss": dict(zip(GROUPS, loss, strict=True)),
            "gradient": dict(zip(GROUPS, gradient, strict=True)),
            "loss_foreground": sum(loss[:2]),
            "gradient_foreground": sum(gradient[:2]),
            "cumulative": dict(zip(("background", "foreground"), (_cumulative(*c) for c in curves), strict=True)),
            "reweighted": (self.by_norm / self.by_norm.sum().clamp(min=1e-300)).tolist(),
            "loss_by_p": {
                "p": [(i + 0.5) / SCORE_BINS for i in range(SCORE_BINS)],
                "background": means[0],
                "foreground": means[1],
            },
        }


def _cumulative(counts: Tensor, losses: Tensor) -> dict[str, list[float]]:
    """The elements in the order of their loss, easy ones first: the fraction of the loss that the first `elements` of
    them have (Lin et al. 2017, figure 4). (0, 0) to (1, 1), at most CURVE_POINTS places between."""
    used = counts > 0
    if not used.any() or losses.sum() == 0:
        return {"elements": [], "loss": []}
    x, y = (torch.cat((torch.zeros(1), v[used].cumsum(0) / v.sum())) for v in (counts, losses))
    # Places evenly spread along the curve: where it is steep the loss moves, where it is flat the elements do.
    along = (x + y) / 2
    wanted = torch.linspace(0, 1, CURVE_POINTS, dtype=along.dtype)
    kept = torch.searchsorted(along, wanted).clamp(max=len(along) - 1).unique()
    return {"elements": x[kept].tolist(), "loss": y[kept].tolist()}


def _bin(values: Tensor, bins: int) -> Tensor:
    return (values * bins).long().clamp(0, bins - 1)


def _count(place: Tensor, size: int, weights: Tensor | None = None) -> Tensor:
    """(size,) fp64 on the CPU."""
    return torch.bincount(place, weights, minlength=size).double().cpu()
