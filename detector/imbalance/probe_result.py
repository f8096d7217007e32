"""The result of a probe: the value and gradient of each loss on a trained model's scores."""

from dataclasses import dataclass, field
from typing import Any

from detector.core.json_records import JsonRecord, Number
from detector.evaluation.anchor_scores import AnchorRanking
from detector.imbalance.vocabulary import AnchorCounts

PROBE = "detector probe --checkpoint CHECKPOINT"  # the command that writes a probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram(JsonRecord):
    """The numbers of elements in equal bins.

    edges: (N + 1,) the edges of the bins. Elements outside the edges are in the first or the last bin.
    foreground, background: (N,) numbers of elements in each bin.
    """

    edges: list[float]
    foreground: list[int]
    background: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CumulativeLoss(JsonRecord):
    """The fraction of the loss against the fraction of the elements (Lin et al. 2017, figure 4).

    The elements are in ascending order of their loss.

    elements, loss: (M,) each from 0 to 1; empty where there are no elements or the loss is 0.
    """

    elements: list[Number]
    loss: list[Number]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossByScore(JsonRecord):
    """The mean loss of the elements against the score.

    p: (M,) centers of equal bins of the score.
    background, foreground: (M,) mean loss of an element; NaN where a bin has no element.
    """

    p: list[float]
    background: list[Number]
    foreground: list[Number]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossProbe(JsonRecord):
    """The value and gradient of a loss on the scores.

    A share is in 0..1. It is 0 where the total is 0, and NaN where a score is NaN.

    loss, gradient: the share of each of GROUPS in the loss and in the absolute gradient, by the group's name.
    loss_foreground, gradient_foreground: the shares of all foreground elements.
    cumulative: the concentration of the loss on few elements, for `background` and for `foreground`.
    reweighted: (N,) the share of each bin of the gradient norm in the absolute gradient.
    loss_by_p: the mean loss against the score.
    """

    loss: dict[str, Number]
    gradient: dict[str, Number]
    loss_foreground: Number
    gradient_foreground: Number
    cumulative: dict[str, CumulativeLoss]
    reweighted: list[Number]
    loss_by_p: LossByScore


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult(JsonRecord):
    """The value and gradient of several losses on a trained model's scores, as probe.json holds them.

    split: `train` or `val`; empty where the images are not a split of a data set.
    class_names: the K class names.
    trained_with: the loss that trained the model, as the config has it.
    num_images: number of images.
    rows: numbers of anchors.
    elements: number of elements of each of GROUPS, by the group's name.
    gradient_norm: the numbers of elements by gradient norm |p - target|.
    logits: the numbers of elements by logit.
    anchor_level: the separation of foreground and background by the anchors' scores; None in files of older versions.
    losses: the result of each loss, by the loss's name.
    """

    split: str = ""
    class_names: list[str] = field(default_factory=list)
    trained_with: dict[str, Any] = field(default_factory=dict)
    num_images: int
    rows: AnchorCounts
    elements: dict[str, int]
    gradient_norm: Histogram
    logits: Histogram
    anchor_level: AnchorRanking | None = None
    losses: dict[str, LossProbe]
