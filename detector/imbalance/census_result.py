"""The result of a census: how a data set and the anchors meet, before any training."""

from dataclasses import dataclass

from detector.core.json_records import JsonRecord, Number
from detector.imbalance.vocabulary import AnchorCounts

CENSUS = "detector census --cfg CONFIG"  # the command that writes a census


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution(JsonRecord):
    """How the values of a quantity are distributed.

    quantiles: the 0, 5, 25, 50, 75, 95 and 100% quantiles, by the percentage as text; NaN without values.
    """

    quantiles: dict[str, Number]

    @property
    def median(self) -> float:
        """The 50% quantile."""
        return self.quantiles["50"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelCounts(JsonRecord):
    """The anchors of a pyramid level, over all images.

    level: `P3` for the level of stride 8.
    foreground, ignored, background: numbers of anchors.
    foreground_of_image: foreground anchors of an image at this level.
    """

    level: str
    foreground: int
    ignored: int
    background: int
    foreground_of_image: Distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCounts(JsonRecord):
    """The objects of a class (crowds left out) and their anchors.

    name: the class's name.
    objects: number of objects.
    images: number of images with such an object.
    foreground: number of foreground anchors.
    ignored: number of anchors that overlap an object too much for background and too little for foreground.
    foreground_of_object: foreground anchors of an object.
    """

    name: str
    objects: int
    images: int
    foreground: int
    ignored: int
    foreground_of_object: Distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeCounts(JsonRecord):
    """The objects of a range of areas (COCO's small, medium, large; original pixels) and their anchors.

    name, objects, foreground, ignored, foreground_of_object: as for a class.
    unmatched: number of objects without a foreground anchor.
    low_quality: number of objects whose foreground anchors all overlap them less than the assigner's threshold.
    """

    name: str
    objects: int
    foreground: int
    ignored: int
    foreground_of_object: Distribution
    unmatched: int
    low_quality: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCounts(JsonRecord):
    """How the images differ.

    background_per_foreground: background anchors per foreground anchor, of the images that have foreground.
    foreground: foreground anchors of an image.
    objects: objects of an image.
    images_without_objects, images_without_foreground: numbers of images.
    """

    background_per_foreground: Distribution
    foreground: Distribution
    objects: Distribution
    images_without_objects: int
    images_without_foreground: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchCounts(JsonRecord):
    """objects: number of objects; unmatched, low_quality: how many of them (see `SizeCounts`)."""

    objects: int
    unmatched: int
    low_quality: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowding(JsonRecord):
    """How much the objects of an image overlap each other.

    Objects that overlap compete for anchors, and non-maximum suppression may remove one as a duplicate of the other.

    mean_max_iou: mean over the objects of the highest IoU with another object, 0..1; NaN without objects.
    objects_overlapping_half: number of objects whose highest IoU is 0.5 or more.
    """

    mean_max_iou: Number
    objects_overlapping_half: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram(JsonRecord):
    """counts: (N,) numbers of values between neighboring edges; edges: (N + 1,)."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(JsonRecord):
    """A quantity with the config's anchors (now), and with the suggested anchors."""

    now: float
    suggested: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorSuggestion(JsonRecord):
    """Anchors that fit the objects.

    sizes: the anchor sizes of each level, in pixels at the size the model sees.
    ratios: heights per width.
    recall: the part of the objects whose best anchor reaches the assigner's threshold of IoU, 0..1.
    mean_max_iou: mean over the objects of the IoU with the best anchor, 0..1.
    """

    sizes: list[list[float]]
    ratios: list[float]
    recall: Comparison
    mean_max_iou: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatFactors(JsonRecord):
    """How often `data.sampler=repeat_factor` repeats images at a threshold.

    classes: the factor of each class, in the order of the class names; NaN where no image has the class.
    largest: the largest factor of an image.
    epoch: the mean factor of the images: how many times longer an epoch becomes.
    """

    classes: list[Number]
    largest: float
    epoch: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedies(JsonRecord):
    """Settings against the imbalance that follow from the counts alone.

    prior: the score with which training starts, 0..1.
    alpha: focal loss's alpha at which the gradients of foreground and background are equal in size while every score is
        still `prior`, by gamma as text.
    class_weights: the weight of each class, in the order of the class names, by rule.
    repeat_factors: by threshold as text; empty without objects.
    """

    prior: float
    alpha: dict[str, float]
    class_weights: dict[str, list[Number]]
    repeat_factors: dict[str, RepeatFactors]


@dataclass(frozen=True, slots=True, kw_only=True)
class Census(JsonRecord):
    """How a data set and the anchors meet, as census.json holds it. Crowds are no objects.

    split: `train` or `val`; empty where the images are no split of a data set.
    num_images, num_objects, num_crowd: numbers of images, objects and crowd regions.
    class_names: the K class names.
    anchors: the anchors of all images.
    ratio: background anchors per foreground anchor; NaN without foreground.
    by_level, by_class, by_size: the counts of each pyramid level, class and range of object areas.
    by_image: how the images differ.
    matches: objects without anchors or with poor anchors.
    crowding: how much objects overlap; None in files of older versions.
    max_iou: the objects by their IoU with the best anchor; None without objects.
    anchor_suggestion: anchors that fit the objects; None without objects.
    remedies: settings that follow from the counts.
    """

    split: str = ""
    num_images: int
    num_objects: int
    num_crowd: int
    class_names: list[str]
    anchors: AnchorCounts
    ratio: Number
    by_level: list[LevelCounts]
    by_class: list[ClassCounts]
    by_size: list[SizeCounts]
    by_image: ImageCounts
    matches: MatchCounts
    crowding: Crowding | None = None
    max_iou: Histogram | None = None
    anchor_suggestion: AnchorSuggestion | None = None
    remedies: Remedies
