"""Binary cross entropy, with the class weight alpha."""

from torch import Tensor

from detector.kernels import focal_terms
from detector.losses.base import ClassificationLoss, one_over
from detector.registry import CLASSIFICATION_LOSSES, UnitFloat


@CLASSIFICATION_LOSSES.register("cross_entropy")
class CrossEntropyLoss(ClassificationLoss):
    """-alpha_t log(p_t) for each of the K sigmoid classifiers; alpha for target 1, 1 - alpha for target 0, both 1 where
    alpha is null. With `model.prior` it trains a dense detector; without, the background drowns it (Lin et al. 2017,
    section 3). Use it as the baseline. Runs on the focal kernel with gamma = 0."""

    def __init__(self, *, alpha: UnitFloat | None = None):
        super().__init__()
        self.alpha = alpha

    def split(
        self, logits: Tensor, labels: Tensor, num_fg: Tensor | float, level_sizes: tuple[int, ...] | None = None
    ) -> Tensor:
        return focal_terms(logits, labels, alpha=self.alpha, gamma=0, scale=one_over(num_fg, logits))
