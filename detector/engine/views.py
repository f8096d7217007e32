"""Test-time augmentation: mirrored and resized views of images, and the mapping of boxes back to the images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.core.structures import PADDING_COLOR
from detector.data.pipeline.buckets import round_up
from detector.models.postprocess import Candidates


@dataclass(frozen=True, slots=True)
class View:
    """A transform of a padded batch and of the boxes in it.

    Attributes:
        flip: whether each image is mirrored horizontally. The padding stays at the right and the bottom.
        scale: the factor by which the padded batch is resized.
    """

    flip: bool = False
    scale: float = 1.0

    def apply(self, images: Tensor, sizes: Tensor, size_divisor: int) -> Tensor:
        """Return the view of a batch. The plain view returns the same tensor.

        Resizing is bilinear, with antialiasing if the scale is below 1.

        Args:
            images: (B, 3, H, W) uint8.
            sizes: (B, 2), the height and width of each image without its padding.
            size_divisor: the height and width of a resized batch are padded to multiples of this number.

        Returns:
            The images (B, 3, H', W') uint8, on the same device.
        """
        if self.flip:
            column, width = torch.arange(images.shape[3], device=images.device), sizes[:, 1:]
            source = torch.where(column < width, width - 1 - column, column)
            images = images.gather(3, source[:, None, None, :].expand(images.shape))
        if self.scale != 1:
            height, width = self._size(images.shape[2:])
            resized = F.interpolate(images.float(), size=(height, width), mode="bilinear", antialias=True)
            padded = round_up((height, width), size_divisor).tolist()
            images = images.new_tensor(PADDING_COLOR).view(1, 3, 1, 1).repeat(len(images), 1, *padded)
            images[:, :, :height, :width] = resized.round_().clamp_(0, 255)
        return images

    def map_back(self, candidates: Candidates, image_size: Sequence[int], sizes: Tensor) -> Candidates:
        """Map boxes from the pixels of this view to the pixels of the plain view.

        Args:
            candidates: the boxes in this view.
            image_size: (H, W) of the plain view, including the padding.
            sizes: (B, 2), the height and width of each image without its padding.
        """
        boxes = candidates.boxes
        if self.scale != 1:
            height, width = self._size(image_size)
            factors = (image_size[1] / width, image_size[0] / height) * 2
            boxes = boxes * boxes.new_tensor(factors)
        if self.flip:
            x1, y1, x2, y2 = boxes.unbind(1)
            width = sizes[candidates.image, 1]
            boxes = torch.stack((width - x2, y1, width - x1, y2), dim=1)
        return replace(candidates, boxes=boxes)

    def _size(self, image_size: Sequence[int]) -> tuple[int, int]:
        height, width = (max(1, round(self.scale * side)) for side in image_size)
        return height, width


PLAIN = View()


def make_views(flip: bool, scales: Sequence[float]) -> list[View]:
    """Return the views of each image, the plain view first.

    Args:
        flip: whether each scale also has a mirrored view.
        scales: the scales. They contain 1.
    """
    scales = sorted(set(scales), key=lambda scale: abs(scale - 1))
    return [View(mirrored, scale) for mirrored in ((False, True) if flip else (False,)) for scale in scales]


def join(views: Sequence[Candidates]) -> Candidates:
    """Join the candidates of several views with their scores unchanged.

    Non-maximum suppression then selects the box of the view with the highest score, and no boxes are averaged. This is
    the rule UNION of Detectron (Girshick et al. 2018). The result is never `nms_free`, because each view has a box of
    the same object.
    """
    if len(views) == 1:
        return views[0]
    fields = ("boxes", "scores", "labels", "image")
    joined = {name: torch.cat([getattr(view, name) for view in views]) for name in fields}
    return replace(views[0], nms_free=False, **joined)
