"""The result of a census: the numbers of anchors and objects of a data set, before any training."""

from dataclasses import dataclass

from detector.core.json_records import JsonRecord, Number
from detector.imbalance.vocabulary import AnchorCounts

CENSUS = "detector census --cfg CONFIG"  # the command that writes a census


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution(JsonRecord):
    """The distribution of the values of a quantity.

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
    foreground_of_image: number of foreground anchors of an image at this level.
    """

    level: str
    foreground: int
    ignored: int
    background: int
    foreground_of_image: Distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCounts(JsonRecord):
    """The objects of a class (without crowds) and their anchors.

    name: the name of the class.
    objects: number of objects.
    images: number of images with an object of the class.
    foreground: number of foreground anchors.
    ignored: number of anchors whose IoU with an object is between the limits of background and foreground.
    foreground_of_object: number of foreground anchors of an object.
    """

    name: str
    objects: int
    images: int
    foreground: int
    ignored: int
    foreground_of_object: Distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeCounts(JsonRecord):
    """The objects of a range of areas (COCO's small, medium and large, in original pixels) and their anchors.

    name, objects, foreground, ignored, foreground_of_object: as for a class.
    unmatched: number of objects without a foreground anchor.
    low_quality: number of objects whose foreground anchors all have an IoU below the assigner's threshold.
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
    """The distribution of anchors and objects over the images.

    background_per_foreground: background anchors per foreground anchor of an image with foreground.
    foreground: number of foreground anchors of an image.
    objects: number of objects of an image.
    images_without_objects, images_without_foreground: numbers of images.
    """

    background_per_foreground: Distribution
    foreground: Distribution
    objects: Distribution
    images_without_objects: int
    images_without_foreground: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchCounts(JsonRecord):
    """The numbers of all objects, and of unmatched and low-quality objects (see `SizeCounts`)."""

    objects: int
    unmatched: int
    low_quality: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowding(JsonRecord):
    """The overlap between the objects of an image.

    Overlapping objects compete for anchors. Non-maximum suppression may remove an object as a duplicate of another.

    mean_max_iou: mean over the objects of the highest IoU with another object, 0..1; NaN without objects.
    objects_overlapping_half: number of objects whose highest IoU is 0.5 or more.
    """

    mean_max_iou: Number
    objects_overlapping_half: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram(JsonRecord):
    """The numbers of values between neighboring edges.

    edges: (N + 1,) in ascending order.
    counts: (N,).
    """

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(JsonRecord):
    """A quantity with the config's anchors (now) and with the suggested anchors."""

    now: float
    suggested: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorSuggestion(JsonRecord):
    """Anchors that fit the objects.

    sizes: the anchor sizes of each level, in pixels of the model's input.
    ratios: height / width.
    recall: the fraction of the objects whose best anchor reaches the assigner's IoU threshold, 0..1.
    mean_max_iou: mean over the objects of the IoU with the best anchor, 0..1.
    """

    sizes: list[list[float]]
    ratios: list[float]
    recall: Comparison
    mean_max_iou: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatFactors(JsonRecord):
    """The factors by which `data.sampler=repeat_factor` repeats images at a threshold.

    classes: the factor of each class, in the order of the class names; NaN where no image has the class.
    largest: the largest factor of an image.
    epoch: the mean factor of the images, which is the factor of the length of an epoch.
    """

    classes: list[Number]
    largest: float
    epoch: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedies(JsonRecord):
    """Settings against the imbalance that follow from the counts alone.

    prior: the initial score, 0..1.
    alpha: the alpha of focal loss that balances the gradients of foreground and background while every score is
        `prior`, by gamma as text.
    class_weights: the weight of each class, in the order of the class names, by rule.
    repeat_factors: the factors, by threshold as text; empty without objects.
    """

    prior: float
    alpha: dict[str, float]
    class_weights: dict[str, list[Number]]
    repeat_factors: dict[str, RepeatFactors]


@dataclass(frozen=True, slots=True, kw_only=True)
class Census(JsonRecord):
    """The numbers of anchors and objects of a data set, as census.json holds them. Crowds are not objects.

    split: `train` or `val`; empty where the images are not a split of a data set.
    num_images, num_objects, num_crowd: numbers of images, objects and crowd regions.
    class_names: the K class names.
    anchors: the anchors of all images.
    ratio: background anchors per foreground anchor; NaN without foreground.
    by_level, by_class, by_size: the counts of each pyramid level, class and range of object areas.
    by_image: the distribution over the images.
    matches: numbers of objects without a foreground anchor, and of objects with low-quality anchors.
    crowding: the overlap between objects; None in files of older versions.
    max_iou: histogram of the objects' IoU with the best anchor; None without objects or anchors.
    anchor_suggestion: anchors that fit the objects; None without objects or anchors.
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

    @property
    def background_elements(self) -> int:
        """The number of background elements. An anchor that is not ignored has an element for each class."""
        num_rows = self.anchors.foreground + self.anchors.background
        return num_rows * len(self.class_names) - self.anchors.foreground
