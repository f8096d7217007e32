"""The import of torchvision's RetinaNet (models/detection/retinanet.py)."""

import hashlib
from pathlib import Path

from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from detector.models.weights.files import load_contents
from detector.models.weights.imported import (
    CATEGORIES,
    Imported,
    Renaming,
    branch_names,
    rename,
    tensors_of,
    visible_structure,
)

_WEIGHTS = RetinaNet_ResNet50_FPN_Weights.COCO_V1

_SHARED: Renaming = (
    (r"^backbone\.body\.", "backbone."),
    # releases before 0.14 have convolutions instead of blocks (convolution, norm, activation)
    (r"^backbone\.fpn\.inner_blocks\.(\d+)\.(?:0\.)?(weight|bias)$", r"neck.lateral.\1.\2"),
    (r"^backbone\.fpn\.layer_blocks\.(\d+)\.(?:0\.)?(weight|bias)$", r"neck.smooth.\1.\2"),
    (r"^backbone\.fpn\.extra_blocks\.p6\.", "neck.extra.0."),
    (r"^backbone\.fpn\.extra_blocks\.p7\.", "neck.extra.1."),
    (r"^head\.classification_head\.cls_logits\.", "head.class_branch.output."),
    (r"^head\.regression_head\.bbox_reg\.", "head.box_branch.output."),
)
# v1: blocks of a convolution and a ReLU, and numbered convolutions in releases before 0.14
NAMES: Renaming = (
    *_SHARED,
    (r"^head\.classification_head\.conv\.(\d+)\.0\.", branch_names("head.class_branch")),
    (r"^head\.regression_head\.conv\.(\d+)\.0\.", branch_names("head.box_branch")),
    (r"^head\.classification_head\.conv\.", "head.class_branch.tower."),
    (r"^head\.regression_head\.conv\.", "head.box_branch.tower."),
)
# v2: blocks of a convolution, a group norm and a ReLU
NAMES_V2: Renaming = (
    *_SHARED,
    (r"^head\.classification_head\.conv\.(\d+)\.0\.", branch_names("head.class_branch", 3)),
    (r"^head\.classification_head\.conv\.(\d+)\.1\.", branch_names("head.class_branch", 3, 1)),
    (r"^head\.regression_head\.conv\.(\d+)\.0\.", branch_names("head.box_branch", 3)),
    (r"^head\.regression_head\.conv\.(\d+)\.1\.", branch_names("head.box_branch", 3, 1)),
)


def import_torchvision(path: Path) -> Imported:
    """Read the state dict of `retinanet_resnet50_fpn` of any release, or of `retinanet_resnet50_fpn_v2`.

    Args:
        path: the file.

    Raises:
        UserError: the file cannot be read, or is of another detector.
    """
    tensors = tensors_of(path, load_contents(path), "torchvision_retinanet")
    state = rename(tensors, NAMES_V2 if "head.classification_head.conv.0.1.weight" in tensors else NAMES)
    if hashlib.sha256(path.read_bytes()).hexdigest().startswith(Path(_WEIGHTS.url).stem.rpartition("-")[2]):
        # the norms of the published weights add nothing to the variance, but ours add 1e-5
        state = {k: v - 1e-5 if k.endswith("running_var") else v for k, v in state.items()}
    structure = {"backbone.stride_in_1x1": False, **visible_structure(state), "pyramid_relu": True, "head.exact": False}
    return Imported(state, CATEGORIES, structure, size_major=False)
