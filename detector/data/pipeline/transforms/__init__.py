"""The transforms, a file for each transform. Importing this package registers the transforms."""

from detector.data.pipeline.transforms.affine import Affine
from detector.data.pipeline.transforms.base import TRANSFORMS, Transform, TransformContext
from detector.data.pipeline.transforms.color import Color
from detector.data.pipeline.transforms.flip import Flip
from detector.data.pipeline.transforms.resize import Resize, resize, resize_boxes, target_size

__all__ = [
    "TRANSFORMS",
    "Affine",
    "Color",
    "Flip",
    "Resize",
    "Transform",
    "TransformContext",
    "resize",
    "resize_boxes",
    "target_size",
]
