"""The `data` section of a config: which images, at which size, and how training varies them."""

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
    """val: null takes what `split`, the fraction of data.train's images that training keeps, leaves over; split_seed
    draws them. invalid: what an entry does that cannot be meant (a box without area, a missing image): it stops the
    run, or is left out and counted. keep_empty: whether images without objects train as background (an evaluation has
    them in any case). sampler: which images come up in an epoch. short_side and long_side in pixels; a short_side of
    two is the range that training draws from. bits: how many bits the values of 16-bit images use, 12 for values up to
    4095; auto looks at the training set. aspect_buckets: a batch is of one of so many ranges of the aspect ratio,
    each padded to one size. cache: a folder for decoded, resized images, 3 bytes a pixel. transforms: what changes the
    resized training images, in this order."""

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
            raise InvalidValues({("cache",): "images are kept at one size; set data.short_side to one number"})
        return self

    @model_validator(mode="after")
    def _one_way_to_validate(self) -> Self:
        if (self.val is None) == (self.split is None):
            what = "required, and missing" if self.val is None else "one too many beside data.split"
            raise InvalidValues({("val",): f"{what}; give data.val, or val: null and split: 0.8 to divide data.train"})
        return self
