"""Test-time augmentation: images seen mirrored and at other sizes, and the boxes found there brought back."""

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
    """A way to see a batch: each image mirrored inside its padding, which stays at the right and the bottom; the padded
    batch resized by `scale`."""

    flip: bool = False
    scale: float = 1.0

    def see(self, images: Tensor, sizes: Tensor, size_divisor: int) -> Tensor:
        """images (B, 3, H, W) uint8, sizes (B, 2) inside their padding -> uint8, on the same device; the plain view's
        are the same tensor. Resizing is bilinear, antialiased where it shrinks; sides are padded to `size_divisor`."""
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

    def bring_back(self, found: Candidates, image_size: Sequence[int], sizes: Tensor) -> Candidates:
        """Boxes found in this view of images of `image_size` (H, W), padding included, in the plain view's pixels."""
        boxes = found.boxes
        if self.scale != 1:
            height, width = self._size(image_size)
            factors = (image_size[1] / width, image_size[0] / height) * 2
            boxes = boxes * boxes.new_tensor(factors)
        if self.flip:
            x1, y1, x2, y2 = boxes.unbind(1)
            width = sizes[found.image, 1]
            boxes = torch.stack((width - x2, y1, width - x1, y2), dim=1)
        return replace(found, boxes=boxes)

    def _size(self, image_size: Sequence[int]) -> tuple[int, int]:
        height, width = (max(1, round(self.scale * side)) for side in image_size)
        return height, width


PLAIN = View()


def make_views(flip: bool, scales: Sequence[float]) -> list[View]:
    """Every scale as it is and, where `flip`, mirrored too; the plain view first (1 is among the scales)."""
    scales = sorted(set(scales), key=lambda scale: abs(scale - 1))
    return [View(mirrored, scale) for mirrored in ((False, True) if flip else (False,)) for scale in scales]


def join(found: Sequence[Candidates]) -> Candidates:
    """The candidates of several views, to compete with the score that the model gave each (Detectron's UNION, Girshick
    et al. 2018): suppression keeps the best view's box, and nothing is averaged."""
    if len(found) == 1:
        return found[0]
    fields = ("boxes", "scores", "labels", "image")
    return replace(found[0], **{name: torch.cat([getattr(one, name) for one in found]) for name in fields})
