"""The recognition of the detector in a file of weights, by the names of its tensors."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detector.core.errors import UserError

# By the importer's prefix of `model.weights`. "" is for checkpoints of this project and for backbones.
LOADABLE = {
    "torchvision_retinanet": ("torchvision's RetinaNet", r"head\.classification_head\.cls_logits\."),
    "detectron2_retinanet": ("detectron2's RetinaNet", r"head\.cls_score\."),
    "mmdet_retinanet": ("mmdetection's RetinaNet", r"bbox_head\.retina_cls\."),
    "": (
        "a checkpoint of this project or a ResNet, not a RetinaNet of this kind",
        r"(head\.)?class_(head|branch)\.output\.|fc\.weight$",
    ),
}
FOREIGN = (
    (r"head\.regression_head\.bbox_ctrness\.", "torchvision's FCOS"),
    (r"head\.classification_head\.module_list\.", "torchvision's SSD"),
    (r"roi_heads\.mask_predictor\.", "torchvision's Mask R-CNN"),
    (r"roi_heads\.keypoint_predictor\.", "torchvision's Keypoint R-CNN"),
    (r"rpn\.head\.", "torchvision's Faster R-CNN"),
    (r"proposal_generator\.", "detectron2's Faster R-CNN or another two-stage detector"),
    (r"head\.ctrness\.", "detectron2's FCOS"),
    (r"rpn_head\.|roi_head\.", "a two-stage detector of mmdetection"),
    (r"bbox_head\.\w*convs\.\d+\.(gn|bn)\.", "a detector of mmdetection whose heads have norms"),
    (r"bbox_head\.(?!retina_|cls_convs\.|reg_convs\.)|bbox_head\.\w+_convs\.0\.0\.", "another detector of mmdetection"),
    (r"transformer\.|class_embed\.|(model\.)?decoder\.layers\.", "a DETR"),
    (r"train_args$|model\.\d+\.(conv|cv\d+)\.", "an Ultralytics YOLO"),
)


def refuse_another_detector(path: Path, names: Iterable[Any], kind: str) -> None:
    """Check that a file of weights does not hold another known detector.

    Args:
        path: the file.
        names: the names of its tensors. Other values are ignored.
        kind: the expected detector, a key of LOADABLE.

    Raises:
        UserError: the names are those of another known detector.
    """
    names = [name for name in names if isinstance(name, str)]

    def has(pattern: str) -> bool:
        return any(map(re.compile(pattern).match, names))

    for pattern, detector in FOREIGN:
        if has(pattern):
            raise UserError(
                f"{path}: the file holds {detector}, which this release cannot load",
                "give RetinaNet weights of torchvision, detectron2 or mmdetection, or weights of a backbone",
            )
    if has(LOADABLE[kind][1]):
        return
    for other, (detector, pattern) in LOADABLE.items():
        if has(pattern):
            weights = f"{other}:{path}" if other else path
            raise UserError(f"{path}: the file holds {detector}", f"set model.weights={weights}")
