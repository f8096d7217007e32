"""The `data` section of a config: the images, their size, and their random changes in training."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from detector.core.registry import ChosenFrom, Part
from detector.core.validation import (
    InvalidValues,
    NonNegativeInt,
    PositiveInt,
    Settings,
    Switch,
    UnitFloat,
    in_order,
)
from detector.data.dataset import DATASETS, DetectionDataset
from detector.data.pipeline.samplers import IMAGE_SAMPLERS, ImageSampler
from detector.data.pipeline.transforms import TRANSFORMS, Transform


class DataSettings(Settings):
    """The `data` section of a config.

    Attributes:
        root: the folder that the paths of `train` and `val` are relative to.
        train: the training set.
        val: the validation set. null takes the images of `train` that `split` does not give to training.
        split: the fraction of the images of `train` that training uses, where `val` is null.
        split_seed: the random seed of the split.
        invalid: error stops the run at an invalid entry (a box without area, a missing image). skip leaves the entry
            out and counts it.
        keep_empty: whether training uses images without objects as background. An evaluation always uses them.
        sampler: chooses the images of an epoch.
        short_side: the shorter side of the resized images in pixels, or the range that training draws it from.
        long_side: the maximum of the longer side in pixels.
        bits: the number of bits that the values of 16-bit images use: 12 for values up to 4095. auto measures it on
            the training set.
        aspect_buckets: the number of ranges of the aspect ratio. The images of a batch are in the same range where
            possible, and the images of a range are padded to the same size.
        num_workers: the number of loader processes. auto derives it from the number of cores.
        cache: a folder for decoded and resized images, 3 bytes per pixel.
        transforms: the changes of the resized training images, in their order.
    """

    root: Path = Path(".")
    train: Annotated[Part[DetectionDataset], ChosenFrom(DATASETS)]
    val: Annotated[Part[DetectionDataset] | None, ChosenFrom(DATASETS, is_optional=True)] = None
    split: Annotated[UnitFloat, Field(gt=0, lt=1)] | None = None
    split_seed: NonNegativeInt = 0
    invalid: Literal["error", "skip"] = "error"
    keep_empty: Switch = True
    sampler: Annotated[Part[ImageSampler], ChosenFrom(IMAGE_SAMPLERS, "uniform")] = Field(
        "uniform", validate_default=True
    )
    short_side: PositiveInt | Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(in_order)] = 800
    long_side: PositiveInt = 1333
    bits: Annotated[PositiveInt, Field(ge=8, le=16)] | Literal["auto"] = "auto"
    aspect_buckets: PositiveInt = 4
    num_workers: NonNegativeInt | Literal["auto"] = "auto"
    cache: Path | None = None
    transforms: list[Annotated[Part[Transform], ChosenFrom(TRANSFORMS)]] = Field(
        [{"type": "flip", "horizontal": 0.5, "vertical": 0.0}], validate_default=True
    )

    @model_validator(mode="after")
    def _one_size_to_keep(self) -> Self:
        if self.cache is not None and not isinstance(self.short_side, int):
            problem = "the cache stores images at one size; set data.short_side to one number"
            raise InvalidValues({("cache",): problem})
        return self

    @model_validator(mode="after")
    def _one_way_to_validate(self) -> Self:
        if (self.val is None) == (self.split is None):
            problem = "missing" if self.val is None else "cannot be combined with data.split"
            raise InvalidValues(
                {("val",): f"{problem}; set data.val, or data.val=null and data.split=0.8 to divide data.train"}
            )
        return self
