"""Focal loss and the losses that change its formula."""

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
    """Focal loss: cross entropy with a small weight for each easy element.

    Formula of an element: -alpha_t (1 - p_t)^gamma log(p_t), where p_t is p for target 1 and 1 - p for target 0
    (Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5). With gamma = 2, an element with p_t = 0.9
    counts 100 times less than in cross entropy. So the many easy background elements do not dominate the loss.

    Shapes: logits (..., K) and labels (...), as in `ClassificationLoss.forward`.

    When to use: as the first loss against foreground/background imbalance. The published optimum is gamma = 2 with
    alpha = 0.25.

    Args:
        alpha: the weight of target 1. Target 0 gets 1 - alpha. A list has one alpha for each class. With null, both
            weights are 1.
        gamma: the exponent. 0 gives cross entropy.
        rescale: multiply the loss by (its sum with gamma = 0) / (its sum). The sums are over the batch and all ranks,
            and the factor gets no gradient. Then gamma changes only the shape of the loss, not its size against the
            box loss.
        class_weights: the weight of the rows of each class, or a rule that computes it (see `make_class_weights`).
            Background rows have the weight 1.
        class_counts: the number of objects of each class, for the rule. A config takes it from the training set.
        beta: the beta of the rule `effective_number`.
    """

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
        self.alpha = None if isinstance(alpha, list) else alpha
        alpha_k = torch.tensor(alpha, dtype=torch.float64) if isinstance(alpha, list) else None
        self.register_buffer("alpha_k", alpha_k, persistent=False)
        weights = make_class_weights(class_weights, class_counts, beta)
        self.register_buffer("class_weight", weights, persistent=False)

    def split(
        self,
        logits: Tensor,
        labels: Tensor,
        num_fg: Tensor | float,
        level_sizes: tuple[int, ...] | None = None,
        quality: Tensor | None = None,
    ) -> Tensor:
        """Return the foreground and the background loss. See `ClassificationLoss.split`."""
        terms_of = partial(
            focal_terms, alpha=self._alpha, class_weight=self.class_weight, scale=one_over(num_fg, logits)
        )
        terms = terms_of(logits, labels, gamma=self.gamma)
        if not self.rescale:
            return terms
        cross_entropy = terms_of(logits.detach(), labels, gamma=0)
        return terms * _rescale_factor(cross_entropy, terms.detach())

    def elements(
        self, logits: Tensor, labels: Tensor, level_sizes: tuple[int, ...] | None = None, quality: Tensor | None = None
    ) -> Tensor:
        """Return the loss of each element. See `ClassificationLoss.elements`."""
        targets = binary_targets(labels, logits.shape[-1])

        def weighted(gamma: float) -> Tensor:
            elements = focal_elements(widen(logits), targets, self._alpha, gamma)
            if self.class_weight is not None:
                elements = elements * row_weights(labels, self.class_weight)[..., None]
            return counted(elements, labels).to(widen(logits).dtype)

        focal = weighted(self.gamma)
        if not self.rescale:
            return focal
        return focal * _rescale_factor(weighted(0), focal)

    @property
    def _alpha(self) -> float | Tensor | None:
        return self.alpha if self.alpha_k is None else self.alpha_k


def _rescale_factor(cross_entropy: Tensor, focal: Tensor) -> Tensor:
    """Return the sum of the cross entropy over all ranks, divided by that of the focal loss; 1 if the latter is 0."""
    cross_entropy_sum, focal_sum = sum_over_ranks(torch.stack((cross_entropy.sum(), focal.sum())))
    return torch.where(focal_sum > 0, cross_entropy_sum / focal_sum, 1)


@CLASSIFICATION_LOSSES.register("poly_focal")
class PolyFocalLoss(ElementwiseLoss):
    """Focal loss with another first coefficient in its expansion in powers of 1 - p_t.

    Formula of an element: alpha_t (-(1 - p_t)^gamma log(p_t) + epsilon (1 - p_t)^(gamma + 1)). p_t is p for target 1
    and 1 - p for target 0. Source: Leng et al. 2022, "PolyLoss", the Poly-1 form of focal loss.

    Shapes: logits (..., K) and labels (...), as in `ClassificationLoss.forward`.

    When to use: to tune focal loss with one more parameter. epsilon > 0 increases the gradient, which helps image
    classification. For detectors the paper prefers epsilon < 0, down to -1, whose gradient is milder.

    Args:
        alpha: the weight of target 1. Target 0 gets 1 - alpha. With null, both weights are 1.
        gamma: the exponent of focal loss.
        epsilon: the change of the first coefficient, which is 1 in focal loss. 0 gives focal loss.
    """

    def __init__(self, *, alpha: UnitFloat | None = 0.25, gamma: NonNegativeFloat = 2.0, epsilon: FiniteFloat = -1.0):
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.epsilon = epsilon

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each element. See `ElementwiseLoss.elementwise`."""
        log_miss = F.logsigmoid(torch.where(targets, -logits, logits))  # log(1 - p_t)
        first = ((self.gamma + 1) * log_miss).exp() * self.epsilon
        if self.alpha is not None:
            first = first * alpha_weights(targets, self.alpha, logits.dtype)
        return focal_elements(logits, targets, self.alpha, self.gamma) + first


@CLASSIFICATION_LOSSES.register("asymmetric")
class AsymmetricLoss(ElementwiseLoss):
    """Focal loss with a larger exponent for the background, which ignores the easiest background.

    Formula of an element: -(1 - p)^gamma_pos log(p) for target 1, and -q^gamma_neg log(1 - q) with
    q = max(p - shift, 0) for target 0 (Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification",
    section 2). The defaults are those of the paper.

    Shapes: logits (..., K) and labels (...), as in `ClassificationLoss.forward`.

    When to use: where the foreground is so rare that it should keep its full gradient, or with many labels in an image.

    Args:
        gamma_pos: the exponent of the foreground elements.
        gamma_neg: the exponent of the background elements.
        shift: the score up to which a background element does not count.
    """

    def __init__(
        self, *, gamma_pos: NonNegativeFloat = 0.0, gamma_neg: NonNegativeFloat = 4.0, shift: UnitFloat = 0.05
    ):
        super().__init__()
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.shift = shift

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each element. See `ElementwiseLoss.elementwise`."""
        foreground = focal_elements(logits, torch.ones_like(targets), None, self.gamma_pos)
        shifted = logits.sigmoid() - self.shift
        is_counted = ~(shifted <= 0)  # a NaN counts, so that the loss shows it
        shifted = shifted.where(is_counted, 1)  # every power has a derivative at 1
        # 1 - q = (1 - p) + shift, in logarithms: finite at p = 1 also where the shift is 0
        log_shift = math.log(self.shift) if self.shift > 0 else -math.inf
        log_miss = torch.logaddexp(F.logsigmoid(-logits), logits.new_full((), log_shift))
        background = torch.where(is_counted, -log_miss * shifted**self.gamma_neg, 0)
        return torch.where(targets, foreground, background)


@CLASSIFICATION_LOSSES.register("equalized_focal")
class EqualizedFocalLoss(ClassificationLoss):
    """Focal loss with a larger gamma for each class whose background gradient dominates.

    Formula of an element of class k: -alpha_t (gamma_k / gamma) (1 - p_t)^gamma_k log(p_t), with
    gamma_k = gamma + scale (1 - g_k) and g_k = min(P_k / N_k, 1). p_t is p for target 1 and 1 - p for target 0
    (Li et al. 2022, "Equalized Focal Loss for Dense Long-Tailed Object Detection", section 3). P_k is the sum of the
    absolute gradients of the foreground elements of class k. N_k is the same sum for the background elements. The sums
    are over all training batches so far and over all ranks, before the division by `num_fg`. g_k is 1 while N_k is 0.

    Shapes: logits (..., K) and labels (...), as in `ClassificationLoss.forward`.

    When to use: with long-tailed classes, as in LVIS.

    Args:
        alpha: the weight of target 1. Target 0 gets 1 - alpha. With null, both weights are 1.
        gamma: the exponent of a balanced class.
        scale: the largest increase of the exponent.
        num_classes: K. A config takes it from the training set.

    Raises:
        ValueError: `num_classes` is missing.
    """

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
            raise ValueError("equalized_focal: num_classes is missing; give the number of classes")
        self.alpha = alpha
        self.gamma = gamma
        self.scale = scale
        self.register_buffer("gradient_sums", torch.zeros(2, num_classes, dtype=torch.float64))  # P, N

    def split(
        self,
        logits: Tensor,
        labels: Tensor,
        num_fg: Tensor | float,
        level_sizes: tuple[int, ...] | None = None,
        quality: Tensor | None = None,
    ) -> Tensor:
        """Return the foreground and the background loss. See `ClassificationLoss.split`.

        In training mode, the gradients of this step are added to the sums. They change the loss from the next step on.
        """
        formula = self._formula(logits)
        if self.training:
            self._count(logits.detach(), labels, formula)
        return elementwise_terms(formula, logits, labels, scale=one_over(num_fg, logits))

    def elements(
        self, logits: Tensor, labels: Tensor, level_sizes: tuple[int, ...] | None = None, quality: Tensor | None = None
    ) -> Tensor:
        """Return the loss of each element. See `ClassificationLoss.elements`."""
        return counted(self._formula(logits)(widen(logits), binary_targets(labels, logits.shape[-1])), labels)

    def _formula(self, logits: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the formula of this step, with gamma in fp32, or in fp64 for fp64 logits."""
        foreground, background = self.gradient_sums
        ratio = torch.where(background > 0, foreground / background, 1).clamp(max=1)
        gamma = (self.gamma + self.scale * (1 - ratio)).to(torch.promote_types(logits.dtype, torch.float32))

        def formula(logits: Tensor, targets: Tensor) -> Tensor:
            return gamma / self.gamma * focal_elements(logits, targets, self.alpha, gamma)

        return formula

    def _count(self, logits: Tensor, labels: Tensor, formula: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Add the absolute gradients of this step to the sums."""
        with torch.enable_grad():
            wide = widen(logits).requires_grad_()
            (slopes,) = torch.autograd.grad(
                elementwise_terms(formula, wide, labels, scale=one_over(1, wide)).sum(), wide
            )
        slopes = slopes.abs()
        targets = binary_targets(labels, logits.shape[-1])
        sums = [slopes.masked_fill(mask, 0).flatten(0, -2).sum(0, dtype=torch.float64) for mask in (~targets, targets)]
        self.gradient_sums += sum_over_ranks(torch.stack(sums))
