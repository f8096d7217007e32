"""The computation of a probe: the value and gradient of every loss on a trained model's scores, as histograms."""

import torch
from torch import Tensor

from detector.core.structures import Predictions, Targets, is_foreground
from detector.evaluation.anchor_scores import AnchorScores
from detector.geometry.boxes import paired_iou
from detector.imbalance.probe_result import CumulativeLoss, Histogram, LossByScore, LossProbe, ProbeResult
from detector.imbalance.vocabulary import GROUPS, AnchorCounts, by_group
from detector.kernels.reference import binary_targets
from detector.losses.base import ClassificationLoss

# Elements are counted in 60 bins of the gradient norm. They group into the 30 bins of GHM. A score is the norm or 1
# minus the norm, so they also group into 20 bins of the score.
BINS = 60
NORM_BINS = 30
SCORE_BINS = 20
# Bins of the logit from -MAX_LOGIT to MAX_LOGIT. Scores near 0 have different logits, but share a bin of the norm.
LOGIT_BINS, MAX_LOGIT = 600, 30.0
# Bins of the decimal logarithm of an element's loss. A bin is 0.6% wide. Losses below 1e-12 share the lowest bin.
LOSS_BINS = 6000
LOWEST, HIGHEST = -12.0, 4.0
CURVE_POINTS = 200


class Probe:
    """An accumulator that computes every loss on the logits of a trained model, batch by batch, in constant memory.

    Every loss gets the inputs that it gets in training. The losses with running counts (`ghm_c`, `equalized_focal`)
    count the batches of this pass. Their first batches are weighted as the first steps of a training.
    """

    def __init__(self, losses: dict[str, ClassificationLoss]):
        """Start without batches.

        Args:
            losses: the losses by name.
        """
        self.losses = {name: _LossHistograms(loss) for name, loss in losses.items()}
        # of background and of foreground elements
        self.counts = torch.zeros(2, BINS, dtype=torch.float64)
        self.logit_counts = torch.zeros(2, LOGIT_BINS, dtype=torch.float64)
        self.rows = {"foreground": 0, "background": 0, "ignored": 0}
        self.anchor_scores = AnchorScores()
        self.num_images = 0

    @torch.inference_mode(False)
    def update(self, predictions: Predictions, targets: Targets) -> None:
        """Add a batch.

        Args:
            predictions: the predictions of the model.
            targets: the targets of the batch.
        """
        # autograd refuses tensors that were made in inference mode, so the tensors are cloned
        logits, labels = predictions.logits.float().clone(), targets.labels.clone()
        num_classes = logits.shape[-1]
        is_fg = binary_targets(labels, num_classes)
        norms = torch.where(is_fg, 1 - logits.sigmoid(), logits.sigmoid())
        is_ignored = (labels < 0)[..., None]
        bins = _bins_of_elements(norms, BINS, is_fg, is_ignored)
        self.counts += _counts(bins, BINS)
        fractions = (logits + MAX_LOGIT) / (2 * MAX_LOGIT)
        self.logit_counts += _counts(_bins_of_elements(fractions, LOGIT_BINS, is_fg, is_ignored), LOGIT_BINS)
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
            histograms.update(logits, labels, predictions.priors.level_sizes, quality, bins)

    def compute(self) -> ProbeResult:
        """Return the result of the batches so far, with default `split`, `class_names` and `trained_with`."""
        return ProbeResult(
            num_images=self.num_images,
            rows=AnchorCounts(**self.rows),
            elements=dict(zip(GROUPS, by_group(self.counts).long().tolist(), strict=True)),
            gradient_norm=_histogram(_coarser(self.counts, NORM_BINS), 0, 1),
            logits=_histogram(self.logit_counts, -MAX_LOGIT, MAX_LOGIT),
            anchor_level=self.anchor_scores.compute(),
            losses={name: histograms.compute(self.counts) for name, histograms in self.losses.items()},
        )


class _LossHistograms:
    """The sums of a loss over background and foreground elements.

    The sums of the loss and of the absolute gradient are by gradient norm. The numbers of elements and the sums of the
    loss are also by the size of the loss.
    """

    def __init__(self, loss: ClassificationLoss):
        self.loss = loss.train()
        self.by_norm = torch.zeros(2, 2, BINS, dtype=torch.float64)  # loss, gradient
        self.by_loss = torch.zeros(2, 2, LOSS_BINS + 1, dtype=torch.float64)  # count, loss

    def update(self, logits: Tensor, labels: Tensor, level_sizes: tuple, quality: Tensor, bins: Tensor) -> None:
        """Add a batch.

        Args:
            logits: (B, A, K).
            labels: (B, A).
            level_sizes: the number of anchors of each level.
            quality: (B, A) the IoU of each predicted box with its target.
            bins: (B, A, K) the bin of each element: background, then foreground, then a last bin for ignored elements.
        """
        settings = {"level_sizes": level_sizes, "quality": quality}
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            num_fg = max(1, int(is_foreground(labels, logits.shape[-1]).sum()))
            (gradient,) = torch.autograd.grad(self.loss(leaf, labels, num_fg, **settings), leaf)
        with torch.no_grad():
            elements = self.loss.elements(logits, labels, **settings)
        elements /= 1 if self.loss.self_normalised else num_fg
        # one image at a time, to limit the memory
        for bins_of_image, gradients, losses in zip(bins, gradient.abs_(), elements, strict=True):
            self.by_norm += torch.stack([_sum(bins_of_image, 2 * BINS, x) for x in (losses, gradients)]).view(2, 2, -1)
            is_fg = (bins_of_image >= BINS) & (bins_of_image < 2 * BINS)
            total, foreground = _by_size(losses), _by_size(losses[is_fg])
            total[0, 0] -= (bins_of_image == 2 * BINS).sum().cpu()  # ignored elements, whose loss is 0
            self.by_loss += torch.stack((total - foreground, foreground), dim=1).clamp_(min=0)

    def compute(self, counts: Tensor) -> LossProbe:
        """Return the result. `counts` is (2, BINS), the numbers of background and foreground elements."""
        loss, gradient = (x / x.sum().clamp(min=1e-300) for x in by_group(self.by_norm))
        # a background element's score is the gradient norm, a foreground element's score is 1 minus the norm
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


def _bins_of_elements(fractions: Tensor, num_bins: int, is_fg: Tensor, is_ignored: Tensor) -> Tensor:
    """Return the bin of each element: of background, then of foreground, then a last bin for ignored elements.

    Args:
        fractions: (B, A, K) the place of each element in the range of the bins, 0..1.
        num_bins: the number of bins of the range.
        is_fg: (B, A, K) whether the target is 1.
        is_ignored: (B, A, 1) whether the anchor is ignored.
    """
    bins = (fractions * num_bins).clamp_(0, num_bins - 1).nan_to_num_(0).to(torch.int16).add_(num_bins * is_fg)
    return bins.masked_fill_(is_ignored, 2 * num_bins)


def _counts(bins: Tensor, num_bins: int) -> Tensor:
    """Return the numbers of background and foreground elements in each bin, (2, num_bins)."""
    # one image at a time, to limit the memory
    images = (_sum(image, 2 * num_bins).view(2, -1) for image in bins)
    return sum(images, start=torch.zeros(2, num_bins, dtype=torch.float64))


def _histogram(counts: Tensor, low: float, high: float) -> Histogram:
    background, foreground = counts.long().tolist()
    edges = torch.linspace(low, high, counts.shape[-1] + 1, dtype=torch.float64).tolist()
    return Histogram(edges=edges, foreground=foreground, background=background)


def _cumulative(counts: Tensor, losses: Tensor) -> CumulativeLoss:
    """Return the fraction of the loss against the fraction of the elements, the elements of low loss first.

    The curve goes from (0, 0) to (1, 1) and has at most CURVE_POINTS points (Lin et al. 2017, figure 4).
    """
    is_used = counts > 0
    if not is_used.any() or losses.sum() == 0:
        return CumulativeLoss(elements=[], loss=[])
    x, y = (torch.cat((torch.zeros(1), v[is_used].cumsum(0) / v.sum())) for v in (counts, losses))
    # equal steps of x + y show both the steep parts and the flat parts of the curve
    along = (x + y) / 2
    wanted = torch.linspace(0, 1, CURVE_POINTS, dtype=along.dtype)
    points = torch.searchsorted(along, wanted).clamp(max=len(along) - 1).unique()
    return CumulativeLoss(elements=x[points].tolist(), loss=y[points].tolist())


def _by_size(losses: Tensor) -> Tensor:
    """Return the number and the sum of the losses in each bin of the logarithm, (2, LOSS_BINS + 1)."""
    bins = losses.clamp(min=0).log10_().sub_(LOWEST).mul_(LOSS_BINS / (HIGHEST - LOWEST)).add_(1)
    bins = bins.clamp_(0, LOSS_BINS).nan_to_num_(LOSS_BINS).int()  # a NaN appears in the sum of the highest bin
    return torch.stack([_sum(bins, LOSS_BINS + 1, x) for x in (None, losses)])


def _coarser(histograms: Tensor, num_bins: int) -> Tensor:
    """Group the bins: (..., BINS) -> (..., num_bins)."""
    return histograms.unflatten(-1, (num_bins, -1)).sum(dim=-1)


def _sum(bins: Tensor, num_bins: int, weights: Tensor | None = None) -> Tensor:
    """Add up the weights, or the number, of the elements in each bin below `num_bins`: (num_bins,) fp64 on the CPU."""
    weights = None if weights is None else weights.flatten().double()
    return torch.bincount(bins.flatten(), weights, minlength=num_bins)[:num_bins].double().cpu()
