"""The data set `synthetic`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from detector.core.errors import UserError
from detector.core.machine import cache_folder
from detector.core.validation import NonNegativeFloat, NonNegativeInt, PositiveInt, UnitFloat
from detector.data.checks.findings import Findings
from detector.data.dataset import DATASETS
from detector.data.formats.coco import CocoDataset
from detector.data.formats.scenes.cache import cached_annotations, cached_scenes
from detector.data.formats.scenes.settings import SceneSettings


@DATASETS.register("synthetic")
class SyntheticDataset(CocoDataset):
    """Drawn scenes of textured shapes, written once to a cache folder as JPEG files and COCO annotations.

    class_names: class names in label order, as for `CocoDataset`.
    num_images: how many. image_size: the square image's side in pixels. num_classes: the first of `CLASS_OUTLINES`.
    objects, distractors: mean number an image (Poisson); distractors differ from objects in shape alone, without a box.
    object_size: range of a shape's longer box side, before any is hidden, in fractions of image_size; log-uniform.
    rotation: greatest turn either way in degrees, uniform; 180 is any.
    zipf: the class of rank r = 1..K has probability ~ r^-zipf; 0 is balanced.
    noise_missed, noise_jittered, noise_mislabelled: fractions of the boxes whose annotation is dropped, displaced, or
    given another class, independently of each other. They leave the pictures as they are.
    seed, split: the random stream; the two splits share no scene. cache: default `synthetic` in the user's own.

    Background, objects and distractors have streams of their own, and distractors lie behind objects: the same objects
    stand at the same places however many distractors there are. A shape that finds no room is left out, so well over
    ten shapes an image fall short of their mean.

    Raises UserError when `object_size` is not a range or the cache cannot be written.
    """

    def __init__(
        self,
        class_names: Sequence[str] | None = None,
        findings: Findings | None = None,
        *,
        num_images: PositiveInt = 1000,
        image_size: PositiveInt = 128,
        num_classes: Annotated[int, Field(ge=6, le=8)] = 6,
        objects: NonNegativeFloat = 4.0,
        object_size: tuple[UnitFloat, UnitFloat] = (0.12, 0.4),
        rotation: Annotated[float, Field(strict=True, ge=0, le=180)] = 180.0,
        distractors: NonNegativeFloat = 4.0,
        zipf: NonNegativeFloat = 0.0,
        noise_missed: UnitFloat = 0.0,
        noise_jittered: UnitFloat = 0.0,
        noise_mislabelled: UnitFloat = 0.0,
        seed: NonNegativeInt = 0,
        split: Literal["train", "val"] = "train",
        cache: Path | None = None,
    ):
        if not 0 < object_size[0] <= object_size[1]:
            raise UserError(
                f"object_size: {list(object_size)} is no range of sizes", "give [smallest, largest], both above 0"
            )
        settings = SceneSettings(
            image_size, num_classes, objects, tuple(object_size), rotation, distractors, zipf, seed, split
        )
        cache = cache_folder() / "synthetic" if cache is None else cache
        try:
            folder = cached_scenes(settings, num_images, cache)
            annotations = cached_annotations(folder, settings, (noise_missed, noise_jittered, noise_mislabelled))
        except OSError as error:
            raise UserError(
                f"cache: synthetic scenes cannot be written to {cache} ({error.strerror})", "name a writable folder"
            ) from error
        super().__init__(class_names, findings, images=folder / "images", annotations=annotations)
