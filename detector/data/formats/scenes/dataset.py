"""The data set `synthetic`: drawn scenes."""

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
    """Drawn scenes of textured shapes, which are written to a cache folder as JPEG files and COCO annotations.

    Background, objects and distractors have separate random streams, and distractors are behind objects. The objects
    and their positions therefore do not depend on the number of distractors. A shape that does not fit is left out, so
    that images with much more than ten shapes have fewer shapes than configured.

    Args:
        class_names: the class names in label order, as in `CocoDataset`.
        findings: receives the problems of single entries.
        num_images: the number of images.
        image_size: the side of the square images in pixels.
        num_classes: the number of classes, the first of `CLASS_OUTLINES`.
        objects: the mean number of objects per image (Poisson).
        object_size: the range of the longer side of the box of a shape before a part is hidden, in fractions of
            image_size. The distribution is log-uniform.
        rotation: the maximum rotation in both directions in degrees. The distribution is uniform; 180 gives all angles.
        distractors: the mean number of distractors per image (Poisson). A distractor differs from an object only in its
            shape, and has no box.
        zipf: the exponent of the class frequencies. The class of rank r = 1..K has a probability proportional to
            r^-zipf; 0 gives balanced classes.
        noise_missed: the fraction of the boxes whose annotation is left out. The three kinds of noise are independent
            of each other and do not change the images.
        noise_jittered: the fraction of the boxes whose annotation is displaced.
        noise_mislabelled: the fraction of the boxes whose annotation has another class.
        seed: the random seed.
        split: the random stream. The two splits have no scene in common.
        cache: the cache folder. None takes `synthetic` in the cache folder of the user.

    Raises:
        UserError: `object_size` is not a range, or the cache cannot be written.
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
                f"object_size: {list(object_size)} is not a range", "give [smallest, largest], both greater than 0"
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
                f"cache: cannot write the scenes to {cache} ({error.strerror})", "set cache to a writable folder"
            ) from error
        super().__init__(class_names, findings, images=folder / "images", annotations=annotations)
