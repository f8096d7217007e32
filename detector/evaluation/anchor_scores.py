"""How well the scores of single anchors tell foreground from background, in constant memory."""

import numpy as np
import torch
from torch import Tensor

from detector.core.distributed import sum_over_ranks
from detector.evaluation.curves import Curve

RANGE = 24.0  # logits beyond it are as good as certain: sigmoid(-24) is 4e-11
BINS = 2**15


class AnchorScores:
    """An anchor's score is its highest logit over the classes. Scores are counted in equal bins of the logit, so two
    closer than 0.0015 may tie, and all beyond RANGE tie, infinite ones too; ties count half in ROC-AUC. A score that is
    not a number makes both results NaN."""

    def __init__(self):
        self.counts = torch.zeros(2, BINS + 1, dtype=torch.int64)  # background, foreground; NaN in the last bin

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """logits (..., K); labels (...) 0..K-1 foreground, K background, -1 left out."""
        best = logits.amax(dim=-1).float()
        # clamped as floats: an infinite float has no integer
        place = ((best + RANGE) * (BINS / (2 * RANGE))).clamp(0, BINS - 1).nan_to_num(BINS).long()
        foreground = labels < logits.shape[-1]
        for row, mask in zip(self.counts, (~foreground, foreground & (labels >= 0)), strict=True):
            row += torch.bincount(place[mask], minlength=BINS + 1).cpu()

    def compute(self) -> dict[str, float]:
        """roc_auc and average_precision (see `Curve`) of foreground against background anchors, over all ranks; NaN
        without either kind of anchor."""
        counts = sum_over_ranks(self.counts)
        background, foreground = counts[:, :BINS].flip(1).numpy()  # from the highest score down
        if counts[:, BINS].any() or not foreground.any() or not background.any():
            return {"roc_auc": float("nan"), "average_precision": float("nan")}
        used = np.flatnonzero(background + foreground)
        curve = Curve(-used, foreground[used].cumsum(), background[used].cumsum())
        return {"roc_auc": curve.roc_auc(), "average_precision": curve.average_precision()}
