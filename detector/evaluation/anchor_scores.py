"""How well the scores of single anchors tell foreground from background, in constant memory."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detector.core.distributed import sum_over_ranks
from detector.core.json_records import JsonRecord, Number
from detector.core.structures import is_foreground
from detector.evaluation.curves import Curve

RANGE = 24.0  # logits beyond it are as good as certain: sigmoid(-24) is 4e-11
BINS = 2**15


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorRanking(JsonRecord):
    """How well scores rank foreground anchors above background anchors (see `Curve`).

    Both numbers are in 0..1. They are NaN without foreground, without background, and where a score is NaN.
    """

    roc_auc: Number
    average_precision: Number


class AnchorScores:
    """Histograms of the anchors' scores. An anchor's score is its highest logit over the classes.

    The bins of the logit are equal. Two scores closer than 0.0015 may tie, and all scores beyond RANGE tie, infinite
    scores too. A tie counts half in ROC-AUC.
    """

    def __init__(self):
        self.counts = torch.zeros(2, BINS + 1, dtype=torch.int64)  # background, foreground; NaN in the last bin

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count anchors: logits (..., K); labels (...) 0..K-1 foreground, K background, -1 left out."""
        best = logits.amax(dim=-1).float()
        # clamped as floats: an infinite float has no integer
        place = ((best + RANGE) * (BINS / (2 * RANGE))).clamp(0, BINS - 1).nan_to_num(BINS).long()
        num_classes = logits.shape[-1]
        masks = labels == num_classes, is_foreground(labels, num_classes)
        for row, mask in zip(self.counts, masks, strict=True):
            row += torch.bincount(place[mask], minlength=BINS + 1).cpu()

    def compute(self) -> AnchorRanking:
        """Rank foreground against background anchors, over all processes."""
        counts = sum_over_ranks(self.counts)
        background, foreground = counts[:, :BINS].flip(1).numpy()  # from the highest score down
        if counts[:, BINS].any() or not foreground.any() or not background.any():
            return AnchorRanking(roc_auc=math.nan, average_precision=math.nan)
        used = np.flatnonzero(background + foreground)
        curve = Curve(-used, foreground[used].cumsum(), background[used].cumsum())
        return AnchorRanking(roc_auc=curve.roc_auc(), average_precision=curve.average_precision())
