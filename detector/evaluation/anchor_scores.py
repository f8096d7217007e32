"""The separation of foreground and background by the scores of single anchors, in constant memory."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detector.core.distributed import sum_over_ranks
from detector.core.json_records import JsonRecord, Number
from detector.core.structures import is_foreground
from detector.evaluation.curves import Curve

RANGE = 24.0  # larger absolute logits share the outer bins: sigmoid(-24) is 4e-11
BINS = 2**15


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorRanking(JsonRecord):
    """The ranking of foreground anchors above background anchors by their scores (see `Curve`).

    Both numbers are in 0..1. They are NaN without foreground, without background, and where a score is NaN.
    """

    roc_auc: Number
    average_precision: Number


class AnchorScores:
    """Histograms of the anchors' scores. The score of an anchor is its highest logit over the classes.

    The bins of the logit are equal. Two scores closer than 0.0015 may tie. All scores beyond RANGE tie, also infinite
    scores. A tie counts half in ROC-AUC.
    """

    def __init__(self):
        self.counts = torch.zeros(2, BINS + 1, dtype=torch.int64)  # background, foreground; the last bin is for NaN

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count anchors.

        Args:
            logits: (..., K).
            labels: (...), 0..K-1 foreground, K background, -1 ignored. Ignored anchors are not counted.
        """
        best = logits.amax(dim=-1).float()
        # the clamp comes before the conversion, because an infinite float has no integer
        bins = ((best + RANGE) * (BINS / (2 * RANGE))).clamp(0, BINS - 1).nan_to_num(BINS).long()
        num_classes = logits.shape[-1]
        masks = labels == num_classes, is_foreground(labels, num_classes)
        for row, mask in zip(self.counts, masks, strict=True):
            row += torch.bincount(bins[mask], minlength=BINS + 1).cpu()

    def compute(self) -> AnchorRanking:
        """Return the ranking of foreground against background anchors over all ranks."""
        counts = sum_over_ranks(self.counts)
        background, foreground = counts[:, :BINS].flip(1).numpy()  # in descending order of the score
        if counts[:, BINS].any() or not foreground.any() or not background.any():
            return AnchorRanking(roc_auc=math.nan, average_precision=math.nan)
        used = np.flatnonzero(background + foreground)
        curve = Curve(-used, foreground[used].cumsum(), background[used].cumsum())
        return AnchorRanking(roc_auc=curve.roc_auc(), average_precision=curve.average_precision())
