"""Transforms that a user could write."""

from dataclasses import replace

import numpy as np

from detector.core.structures import Sample
from detector.core.validation import UnitFloat
from detector.data import TRANSFORMS
from detector.data.pipeline.transforms import TransformContext


@TRANSFORMS.register("test_beside")
class Beside:
    """Append a drawn sample of the same height on the right of the sample."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, sample: Sample, context: TransformContext) -> Sample:
        other = context.draw()
        assert other.labels.max(initial=0) < self.num_classes
        return replace(
            sample,
            image=np.concatenate([sample.image, other.image], axis=1),
            boxes=np.concatenate([sample.boxes, other.boxes + np.float32([sample.image.shape[1], 0] * 2)]),
            labels=np.concatenate([sample.labels, other.labels]),
            ignore=np.concatenate([sample.ignore, other.ignore]),
        )


@TRANSFORMS.register("test_early")
class Early:
    """Invert the image in the first part of the run."""

    def __init__(self, *, until: UnitFloat = 0.5):
        self.until = until

    def __call__(self, sample: Sample, context: TransformContext) -> Sample:
        return replace(sample, image=255 - sample.image) if context.progress < self.until else sample
