"""The result of a probe: what each loss makes of a trained model's scores."""

from dataclasses import dataclass, field
from typing import Any

from detector.core.json_records import JsonRecord, Number
from detector.evaluation.anchor_scores import AnchorRanking
from detector.imbalance.vocabulary import AnchorCounts

PROBE = "detector probe --checkpoint CHECKPOINT"  # the command that writes a probe


@dataclass(frozen=True, slots=True, kw_only=True)
class NormHistogram(JsonRecord):
    """Elements by their gradient norm |p - target|.

    edges: (N + 1,) equal bins from 0 to 1.
    foreground, background: (N,) numbers of elements in each bin.
    """

    edges: list[float]
    foreground: list[int]
    background: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CumulativeLoss(JsonRecord):
    """The part of the loss against the part of the elements, those of low loss first (Lin et al. 2017, figure 4).

    elements, loss: (M,) each from 0 to 1; empty without elements and without loss.
    """

    elements: list[Number]
    loss: list[Number]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossByScore(JsonRecord):
    """The mean loss of the elements of each score.

    p: (M,) centers of equal bins of the score.
    background, foreground: (M,) mean loss of an element; NaN where a bin has none.
    """

    p: list[float]
    background: list[Number]
    foreground: list[Number]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossProbe(JsonRecord):
    """What a loss makes of the scores. Shares are in 0..1; a share of nothing is 0. A NaN score makes them NaN.

    loss, gradient: the share of the loss, and of the absolute gradient, on each of GROUPS, by the group's name.
    loss_foreground, gradient_foreground: the same shares on all foreground elements.
    cumulative: the concentration of the loss on few elements, of `background` and of `foreground`.
    reweighted: (N,) the share of the absolute gradient on each bin of the gradient norm.
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
    """What losses make of a trained model's scores, as probe.json holds it.

    split: `train` or `val`; empty where the images are no split of a data set.
    class_names: the K class names.
    trained_with: the loss that trained the model, as the config has it.
    num_images: number of images.
    rows: numbers of anchors.
    elements: numbers of elements of each of GROUPS, by the group's name.
    gradient_norm: the elements by their gradient norm.
    anchor_level: how well anchors' scores separate foreground from background; None in files of older versions.
    losses: each loss by its name.
    """

    split: str = ""
    class_names: list[str] = field(default_factory=list)
    trained_with: dict[str, Any] = field(default_factory=dict)
    num_images: int
    rows: AnchorCounts
    elements: dict[str, int]
    gradient_norm: NormHistogram
    anchor_level: AnchorRanking | None = None
    losses: dict[str, LossProbe]
