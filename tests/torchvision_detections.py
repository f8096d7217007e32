"""The detections of torchvision's RetinaNet and FCOS, in a form that can be compared with ours."""

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet

from detector.core.structures import Detections


def by_class(detections: Detections) -> Tensor:
    """Return rows (label, score, box), sorted by class and score."""
    order = (detections.labels * 2 + detections.scores.double()).argsort()
    columns = detections.labels[:, None], detections.scores[:, None], detections.boxes
    return torch.cat([column[order].double() for column in columns], dim=1)


def torchvision_detections(
    model: RetinaNet | FCOS,
    outputs: dict[str, Tensor],
    anchors: list[Tensor],
    level_sizes: tuple[int, ...],
    image_sizes: list[tuple[int, int]],
    max_detections: int,
) -> list[Detections]:
    """Return torchvision's detections of each image without the boxes that have no area.

    torchvision also returns boxes without area inside their image. Our post-processing removes them.

    Args:
        model: the detector. Its `detections_per_img` is above its number of boxes.
        outputs: the outputs of its head.
        anchors: the anchors of each image.
        level_sizes: the number of anchors of each level.
        image_sizes: the height and width of each image inside the padding.
        max_detections: the number of detections of an image.
    """
    levels = {key: list(value.split(level_sizes, dim=1)) for key, value in outputs.items()}
    per_level = [list(of_image.split(level_sizes)) for of_image in anchors]
    detections, num_empty = [], 0
    for image in model.postprocess_detections(levels, per_level, image_sizes):
        has_area = (image["boxes"][:, 2:] > image["boxes"][:, :2]).all(dim=1)
        num_empty += int((~has_area).sum())
        detections.append(Detections(*(image[key][has_area][:max_detections] for key in ("boxes", "scores", "labels"))))
    assert num_empty > 0  # the rule has an effect
    return detections
