"""What every loss makes of one trained model's scores: one pass over a split, histograms only."""

import torch
from torch import Tensor

from detector.core.structures import Predictions, Targets, is_foreground
from detector.evaluation.anchor_scores import AnchorScores
from detector.geometry.boxes import paired_iou
from detector.imbalance.probe_result import CumulativeLoss, LossByScore, LossProbe, NormHistogram, ProbeResult
from detector.imbalance.vocabulary import GROUPS, AnchorCounts, by_group
from detector.kernels.reference import binary_targets
from detector.losses.base import ClassificationLoss

# Elements are counted in 60 bins of the gradient norm, which group into the 30 that GHM counts and, as a score is the
# norm or 1 minus it, into 20 bins of the score.
BINS = 60
NORM_BINS = 30
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
        self.counts = torch.zeros(2, BINS, dtype=torch.float64)  # of background and of foreground elements
        self.rows = {"foreground": 0, "background": 0, "ignored": 0}
        self.anchor_scores = AnchorScores()
        self.num_images = 0

    @torch.inference_mode(False)
    def update(self, predictions: Predictions, targets: Targets) -> None:
        # clones, as gradients cannot flow from what was made for inference
        logits, labels = predictions.logits.float().clone(), targets.labels.clone()
        num_classes = logits.shape[-1]
        is_fg = binary_targets(labels, num_classes)
        norms = torch.where(is_fg, 1 - logits.sigmoid(), logits.sigmoid())
        place = (norms * BINS).clamp_(0, BINS - 1).to(torch.uint8).add_(BINS * is_fg)
        place.masked_fill_((labels < 0)[..., None], 2 * BINS)
        self.counts += sum(_sum(image, 2 * BINS).view(2, -1) for image in place)
        for name, mask in (
            ("foreground", is_foreground(labels, num_classes)),
            ("background", labels == num_classes),
            ("ignored", labels < 0),
        ):
            self.rows[name] += int(mask.sum())
        self.anchor_scores.update(logits, labels)
        self.num_images += len(labels)
        with torch.no_grad():
            quality = paired_iou(predictions.boxes.clone(), targets.boxes.clone())
        for histograms in self.losses.values():
            histograms.update(logits, labels, predictions.priors.level_sizes, quality, place)

    def compute(self) -> ProbeResult:
        """Return the result of the batches so far, without a split, class names and the loss that trained the model."""
        background, foreground = _coarser(self.counts, NORM_BINS).long().tolist()
        return ProbeResult(
            num_images=self.num_images,
            rows=AnchorCounts(**self.rows),
            elements=dict(zip(GROUPS, by_group(self.counts).long().tolist(), strict=True)),
            gradient_norm=NormHistogram(
                edges=torch.linspace(0, 1, NORM_BINS + 1).tolist(), foreground=foreground, background=background
            ),
            anchor_level=self.anchor_scores.compute(),
            losses={name: histograms.compute(self.counts) for name, histograms in self.losses.items()},
        )


class _LossHistograms:
    """One loss's sums over background and foreground elements: their losses and absolute gradients by gradient norm,
    their number and losses by the size of the loss."""

    def __init__(self, loss: ClassificationLoss):
        self.loss = loss.train()
        self.by_norm = torch.zeros(2, 2, BINS, dtype=torch.float64)  # loss, gradient
        self.by_loss = torch.zeros(2, 2, LOSS_BINS + 1, dtype=torch.float64)  # count, loss

    def update(self, logits: Tensor, labels: Tensor, level_sizes: tuple, quality: Tensor, place: Tensor) -> None:
        """place (B, A, K): the bin of each element, foreground after background, ignored ones last."""
        settings = {"level_sizes": level_sizes, "quality": quality}
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            num_fg = max(1, int(is_foreground(labels, logits.shape[-1]).sum()))
            (gradient,) = torch.autograd.grad(self.loss(leaf, labels, num_fg, **settings), leaf)
        with torch.no_grad():
            elements = self.loss.elements(logits, labels, **settings)
        elements /= 1 if self.loss.self_normalised else num_fg
        for own, pull, losses in zip(place, gradient.abs_(), elements, strict=True):  # image by image, for the memory
            self.by_norm += torch.stack([_sum(own, 2 * BINS, x) for x in (losses, pull)]).view(2, 2, -1)
            is_fg = (own >= BINS) & (own < 2 * BINS)
            everything, foreground = _by_size(losses), _by_size(losses[is_fg])
            everything[0, 0] -= (own == 2 * BINS).sum().cpu()  # ignored elements, whose loss is 0
            self.by_loss += torch.stack((everything - foreground, foreground), dim=1).clamp_(min=0)

    def compute(self, counts: Tensor) -> LossProbe:
        loss, gradient = (x / x.sum().clamp(min=1e-300) for x in by_group(self.by_norm))
        # a background element's score is its gradient norm, a foreground element's 1 minus it
        number, losses = (_coarser(torch.stack((x[0], x[1].flip(0))), SCORE_BINS) for x in (counts, self.by_norm[0]))
        mean_bg, mean_fg = torch.where(number > 0, losses / number, torch.nan).tolist()
        reweighted = _coarser(self.by_norm[1], NORM_BINS).sum(dim=0)
        background, foreground = (_cumulative(*curve) for curve in zip(*self.by_loss, strict=True))
        return LossProbe(
            loss=dict(zip(GROUPS, loss.tolist(), strict=True)),
            gradient=dict(zip(GROUPS, gradient.tolist(), strict=True)),
            loss_foreground=float(loss[:2].sum()),
            gradient_foreground=float(gradient[:2].sum()),
            cumulative={"background": background, "foreground": foreground},
            reweighted=(reweighted / reweighted.sum().clamp(min=1e-300)).tolist(),
            loss_by_p=LossByScore(
                p=[(i + 0.5) / SCORE_BINS for i in range(SCORE_BINS)], background=mean_bg, foreground=mean_fg
            ),
        )


def _cumulative(counts: Tensor, losses: Tensor) -> CumulativeLoss:
    """The elements in the order of their loss, easy ones first: the fraction of the loss that the first `elements` of
    them have (Lin et al. 2017, figure 4). (0, 0) to (1, 1), at most CURVE_POINTS places between."""
    used = counts > 0
    if not used.any() or losses.sum() == 0:
        return CumulativeLoss(elements=[], loss=[])
    x, y = (torch.cat((torch.zeros(1), v[used].cumsum(0) / v.sum())) for v in (counts, losses))
    # Places evenly spread along the curve: where it is steep the loss moves, where it is flat the elements do.
    along = (x + y) / 2
    wanted = torch.linspace(0, 1, CURVE_POINTS, dtype=along.dtype)
    kept = torch.searchsorted(along, wanted).clamp(max=len(along) - 1).unique()
    return CumulativeLoss(elements=x[kept].tolist(), loss=y[kept].tolist())


def _by_size(losses: Tensor) -> Tensor:
    """(2, LOSS_BINS + 1): how many losses have about this logarithm, and their sum."""
    place = losses.clamp(min=0).log10_().sub_(LOWEST).mul_(LOSS_BINS / (HIGHEST - LOWEST)).add_(1)
    place = place.clamp_(0, LOSS_BINS).nan_to_num_(LOSS_BINS).int()  # NaN shows in the sum of the highest bin
    return torch.stack([_sum(place, LOSS_BINS + 1, x) for x in (None, losses)])


def _coarser(histograms: Tensor, bins: int) -> Tensor:
    """(..., BINS) -> (..., bins)."""
    return histograms.unflatten(-1, (bins, -1)).sum(dim=-1)


def _sum(place: Tensor, size: int, weights: Tensor | None = None) -> Tensor:
    """(size,) fp64 on the CPU: the weights, else the number, of the elements in each place below `size`."""
    weights = None if weights is None else weights.flatten().double()
    return torch.bincount(place.flatten(), weights, minlength=size)[:size].double().cpu()
