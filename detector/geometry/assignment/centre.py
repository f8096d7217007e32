"""The assignment rule of FCOS: priors near the center of an object, on the level for the size of the object."""

import math

import torch

from detector.core.structures import GroundTruth, Predictions, Priors, Targets
from detector.core.validation import PositiveFloat
from detector.geometry.assignment.base import (
    ASSIGNERS,
    Assigner,
    BestMatch,
    best_targets,
    is_central,
    is_inside,
    only_background,
    parts_of,
)
from detector.geometry.boxes import box_area


@ASSIGNERS.register("centre")
class CentreAssigner(Assigner):
    """FCOS's rule (Tian et al. 2019, section 3): each prior near the center of an object, on one level.

    Source: "FCOS: Fully Convolutional One-Stage Object Detection", with the center sampling of the authors' code. A
    prior is foreground for an object if these conditions are true. s is the stride of its level in pixels.

    - The center of the prior is inside the object.
    - In x and in y, the center of the prior is less than `radius` * s from the center of the object.
    - The largest distance m from the center of the prior to a side of the object is in the range of the level:
      reach / 2 * s < m < reach * s. The range of the first level starts at 0, and that of the last level has no end.
      Both ends are exclusive, as in torchvision. In the paper they are inclusive.

    A prior that is foreground for several objects takes the object with the smallest area. Of equal areas, the first
    object wins. All other priors are background. They are ignored if more than half of their area is inside an ignore
    region.

    When to use: for a head with points, as in FCOS. The rule needs no predictions, so a census can measure it.

    Args:
        num_classes: K, the label of the background.
        radius: the size of the center region, in strides. null makes all of the object its center region.
        reach: the upper end of the range of a level, in strides. 8 gives FCOS's ranges 64, 128, 256 and 512 for the
            strides 8 to 128.
    """

    is_local = True

    def __init__(self, num_classes: int, *, radius: PositiveFloat | None = 1.5, reach: PositiveFloat = 8.0):
        super().__init__(num_classes)
        self.radius = radius
        self.reach = reach

    @torch.no_grad()
    def __call__(self, priors: Priors, truth: GroundTruth, predictions: Predictions | None = None) -> Targets:
        """Return the targets of a batch. See `Assigner`."""
        if not len(priors) or not truth.labels.numel():
            return only_background(priors, len(truth.boxes), self.num_classes)
        strides = priors.strides()
        first, last = priors.level_sizes[0], priors.level_sizes[-1]
        lower, upper = self.reach / 2 * strides, self.reach * strides
        lower[:first] = 0
        upper[len(upper) - last :] = math.inf
        x, y = priors.centers.T.contiguous()
        best = BestMatch(len(truth.boxes), len(priors), truth.boxes)
        for part in parts_of(truth.boxes, len(priors)):
            boxes = truth.boxes[:, part]
            left, top, right, bottom = boxes[..., None].unbind(dim=2)
            largest = torch.maximum(x - left, right - x).maximum(torch.maximum(y - top, bottom - y))
            is_match = is_inside(priors.centers, boxes) & (largest > lower) & (largest < upper)
            if self.radius is not None:
                is_match &= is_central(priors, boxes, self.radius)
            is_match &= truth.is_object[:, part, None]
            best.update((-box_area(boxes))[..., None].where(is_match, -math.inf), part.start)
        return best_targets(best, priors.boxes, truth, self.num_classes)
