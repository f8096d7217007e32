"""Focal loss and the losses that vary its formula."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.core.distributed import sum_over_ranks
from detector.core.validation import FiniteFloat, NonNegativeFloat, PositiveFloat, PositiveInt, UnitFloat
from detector.kernels import elementwise_terms, focal_terms
from detector.kernels.reference import alpha_weights, binary_targets, counted, focal_elements, row_weights, widen
from detector.losses.base import CLASSIFICATION_LOSSES, ClassificationLoss, ElementwiseLoss, one_over
from detector.losses.class_weights import Alpha, ClassCounts, ClassWeights, make_class_weights


@CLASSIFICATION_LOSSES.register("focal")
class FocalLoss(ClassificationLoss):
    """-alpha_t (1 - p_t)^gamma log(p_t) (Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5).

    An element right with p_t = 0.9 counts 100 times less at gamma = 2 than in cross entropy, so easy background stops
    drowning the foreground. alpha weighs target 1, 1 - alpha target 0; null weighs both 1; a list has one alpha for
    each class. The published optimum is gamma = 2 with alpha = 0.25; gamma = 0 is cross entropy. The first loss to try.

    rescale: multiply by (sum of its cross entropy, that is with gamma = 0) / (its own sum), a constant of the batch
    over all ranks, so that changing gamma changes the shape of the loss and not its size against the box loss.
    class_weights: multiply the row of an object of class y by w_y, given or by a rule from `class_counts`, which a
    config takes from the training set; see `make_class_weights`."""

    alpha_k: Tensor | None
    class_weight: Tensor | None

    def __init__(
        self,
        *,
        alpha: Alpha = 0.25,
        gamma: NonNegativeFloat = 2.0,
        rescale: bool = False,
        class_weights: ClassWeights = None,
        class_counts: ClassCounts = None,
        beta: UnitFloat = 0.9999,
    ):
        super().__init__()
        self.gamma = gamma
        self.rescale = rescale
        self.row_additive = not rescale
        self.alpha = alpha
        self.register_buffer(
            "alpha_k", torch.tensor(alpha, dtype=torch.float64) if isinstance(alpha, list) else None, False
        )
        self.register_buffer("class_weight", make_class_weights(class_weights, class_counts, beta), False)

    def split(self, logits: Tensor, labels: Tensor, num_fg: Tensor | float, level_sizes=None, quality=None) -> Tensor:
        terms_of = partial(
            focal_terms, alpha=self._alpha, class_weight=self.class_weight, scale=one_over(num_fg, logits)
        )
        terms = terms_of(logits, labels, gamma=self.gamma)
        if not self.rescale:
            return terms
        cross_entropy = terms_of(logits.detach(), labels, gamma=0)
        full, own = sum_over_ranks(torch.stack((cross_entropy.sum(), terms.detach().sum())))
        return terms * torch.where(own > 0, full / own, 1)

    def elements(self, logits: Tensor, labels: Tensor, level_sizes=None, quality=None) -> Tensor:
        targets = binary_targets(labels, logits.shape[-1])

        def weighted(gamma: float) -> Tensor:
            elements = focal_elements(widen(logits), targets, self._alpha, gamma)
            if self.class_weight is not None:
                elements = elements * row_weights(labels, self.class_weight)[..., None]
            return counted(elements, labels).to(widen(logits).dtype)

        own = weighted(self.gamma)
        if not self.rescale:
            return own
        full, total = sum_over_ranks(torch.stack((weighted(0).sum(), own.sum())))
        return own * torch.where(total > 0, full / total, 1)

    @property
    def _alpha(self) -> float | Tensor | None:
        return self.alpha_k if self.alpha_k is not None or isinstance(self.alpha, list) else self.alpha


@CLASSIFICATION_LOSSES.register("poly_focal")
class PolyFocalLoss(ElementwiseLoss):
    """alpha_t (-(1 - p_t)^gamma log(p_t) + epsilon (1 - p_t)^(gamma + 1)) (Leng et al. 2022, "PolyLoss", Poly-1).

    Changes the first coefficient of focal loss's expansion in powers of 1 - p_t. epsilon > 0 pushes confident
    foreground on, as pays in classification; for detectors the paper prefers epsilon < 0 down to -1, whose gradient is
    milder. epsilon = 0 is focal loss."""

    def __init__(self, *, alpha: UnitFloat | None = 0.25, gamma: NonNegativeFloat = 2.0, epsilon: FiniteFloat = -1.0):
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.epsilon = epsilon

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_miss = F.logsigmoid(torch.where(targets, -logits, logits))  # log(1 - p_t)
        first = ((self.gamma + 1) * log_miss).exp() * self.epsilon
        if self.alpha is not None:
            first = first * alpha_weights(targets, self.alpha, logits.dtype)
        return focal_elements(logits, targets, self.alpha, self.gamma) + first


@CLASSIFICATION_LOSSES.register("asymmetric")
class AsymmetricLoss(ElementwiseLoss):
    """-(1 - p)^gamma_pos log(p) for target 1 and -q^gamma_neg log(1 - q) for target 0, q = max(p - shift, 0)
    (Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification"; the paper's defaults).

    Background is focused harder than foreground, and not counted at all below p = shift. Use it where the foreground
    is so rare that even focal loss's gamma on it is a waste, or with many labels an image."""

    def __init__(
        self, *, gamma_pos: NonNegativeFloat = 0.0, gamma_neg: NonNegativeFloat = 4.0, shift: UnitFloat = 0.05
    ):
        super().__init__()
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.shift = shift

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        foreground = focal_elements(logits, torch.ones_like(targets), None, self.gamma_pos)
        shifted = logits.sigmoid() - self.shift
        counts = ~(shifted <= 0)  # NaN among them, so that it shows
        shifted = shifted.where(counts, 1)  # any value at which every power has a derivative
        # 1 - q = (1 - p) + shift, in logarithms, so that p = 1 stays finite without a shift
        log_shift = math.log(self.shift) if self.shift > 0 else -math.inf
        log_rest = torch.logaddexp(F.logsigmoid(-logits), logits.new_full((), log_shift))
        background = torch.where(counts, -log_rest * shifted**self.gamma_neg, 0)
        return torch.where(targets, foreground, background)


@CLASSIFICATION_LOSSES.register("equalized_focal")
class EqualizedFocalLoss(ClassificationLoss):
    """Focal loss whose gamma grows for the classes that background overwhelms (Li et al. 2022, "Equalized Focal Loss
    for Dense Long-Tailed Object Detection").

    -alpha_t (gamma_k / gamma) (1 - p_t)^gamma_k log(p_t) with gamma_k = gamma + scale (1 - g_k), g_k = P_k / N_k cut to
    0..1: the sums over all training batches so far, on all ranks, of the absolute gradients of these elements (before
    the division by num_fg) on class k's foreground and on its background; 1 before the first. Use it for long-tailed
    classes (LVIS). `num_classes` sizes the sums; a config takes it from the training set."""

    gradient_sums: Tensor

    def __init__(
        self,
        *,
        alpha: UnitFloat | None = 0.25,
        gamma: PositiveFloat = 2.0,
        scale: NonNegativeFloat = 8.0,
        num_classes: PositiveInt | None = None,
    ):
        super().__init__()
        if num_classes is None:
            raise ValueError("equalized_focal needs num_classes, the number of classes")
        self.alpha = alpha
        self.gamma = gamma
        self.scale = scale
        self.register_buffer("gradient_sums", torch.zeros(2, num_classes, dtype=torch.float64))  # P, N

    def split(self, logits: Tensor, labels: Tensor, num_fg: Tensor | float, level_sizes=None, quality=None) -> Tensor:
        formula = self._formula(logits)
        if self.training:
            self._count(logits.detach(), labels, formula)
        return elementwise_terms(formula, logits, labels, scale=one_over(num_fg, logits))

    def elements(self, logits: Tensor, labels: Tensor, level_sizes=None, quality=None) -> Tensor:
        return counted(self._formula(logits)(widen(logits), binary_targets(labels, logits.shape[-1])), labels)

    def _formula(self, logits: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The element-wise loss of this step, in the format that logits are computed in."""
        foreground, background = self.gradient_sums
        ratio = torch.where(background > 0, foreground / background, 1).clamp(max=1)
        gamma = (self.gamma + self.scale * (1 - ratio)).to(torch.promote_types(logits.dtype, torch.float32))

        def formula(logits: Tensor, targets: Tensor) -> Tensor:
            return gamma / self.gamma * focal_elements(logits, targets, self.alpha, gamma)

        return formula

    def _count(self, logits: Tensor, labels: Tensor, formula: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Adds this step's absolute gradients to the sums."""
        with torch.enable_grad():
            wide = widen(logits).requires_grad_()
            (slopes,) = torch.autograd.grad(
                elementwise_terms(formula, wide, labels, scale=one_over(1, wide)).sum(), wide
            )
        slopes = slopes.abs()
        targets = binary_targets(labels, logits.shape[-1])
        parts = [slopes.masked_fill(away, 0).flatten(0, -2).sum(0, dtype=torch.float64) for away in (~targets, targets)]
        self.gradient_sums += sum_over_ranks(torch.stack(parts))
