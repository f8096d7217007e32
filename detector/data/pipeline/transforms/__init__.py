"""The transforms, a file for each transform. Importing this package registers the transforms."""

from detector.data.pipeline.transforms.affine import Affine
from detector.data.pipeline.transforms.base import TRANSFORMS, OccasionalTransform, Transform, TransformContext
from detector.data.pipeline.transforms.color import Color
from detector.data.pipeline.transforms.copy_paste import CopyPaste
from detector.data.pipeline.transforms.flip import Flip
from detector.data.pipeline.transforms.mixup import Mixup
from detector.data.pipeline.transforms.mosaic import Mosaic
from detector.data.pipeline.transforms.resize import Resize, resize, resize_boxes, target_size

__all__ = [
    "TRANSFORMS",
    "Affine",
    "Color",
    "CopyPaste",
    "Flip",
    "Mixup",
    "Mosaic",
    "OccasionalTransform",
    "Resize",
    "Transform",
    "TransformContext",
    "resize",
    "resize_boxes",
    "target_size",
]
