"""The import of detectron2's RetinaNet (modeling/meta_arch/retinanet.py, configs/Base-RetinaNet.yaml)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.core.errors import UserError
from detector.models.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from detector.models.weights.files import load_contents
from detector.models.weights.imported import (
    COCO_CLASSES,
    Imported,
    Renaming,
    count_from,
    rename,
    tensors_of,
    visible_structure,
)

_BLOCK = r"^backbone\.bottom_up\.res(\d)\.(\d+)\."
_NAMES: Renaming = (
    (r"^backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.bn1."),
    (r"^backbone\.bottom_up\.stem\.conv1\.", "backbone.conv1."),
    (_BLOCK + r"conv(\d)\.norm\.", lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.bn{m[3]}."),
    (_BLOCK + r"shortcut\.norm\.", lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.downsample.1."),
    (_BLOCK + r"shortcut\.", lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.downsample.0."),
    (_BLOCK, lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}."),
    (r"^backbone\.fpn_lateral(\d)\.", count_from("neck.lateral", 3)),
    (r"^backbone\.fpn_output(\d)\.", count_from("neck.smooth", 3)),
    (r"^backbone\.top_block\.p(\d)\.", count_from("neck.extra", 6)),
    (r"^head\.cls_subnet\.", "head.class_branch.tower."),
    (r"^head\.bbox_subnet\.", "head.box_branch.tower."),
    (r"^head\.cls_score\.", "head.class_branch.output."),
    (r"^head\.bbox_pred\.", "head.box_branch.output."),
)


def import_detectron2(path: Path) -> Imported:
    """Read a checkpoint of configs/COCO-Detection/retinanet_R_*.

    detectron2's images are BGR minus the mean, not divided by the standard deviation. The weights of the first
    convolution are changed accordingly.

    Args:
        path: the model zoo's pickle of arrays (.pkl), or a file of torch (.pth).

    Raises:
        UserError: the file cannot be read, is of another detector, or has another pixel mean.
    """
    tensors = tensors_of(path, load_contents(path), "detectron2_retinanet")
    arrays = {k: torch.from_numpy(v.astype(np.float32)) for k, v in tensors.items() if _is_of_floats(v)}
    state = rename(tensors | arrays, _NAMES)
    state = {k: v for k, v in state.items() if not k.startswith("anchor_generator.")}
    our_mean, our_std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    mean = state.pop("pixel_mean", our_mean.flip(0)).flatten().float()
    std = state.pop("pixel_std", torch.ones(3)).flatten().float()
    if not (mean.shape == std.shape == our_mean.shape and torch.allclose(mean.flip(0), our_mean, atol=0.01)):
        raise UserError(
            f"{path}: pixel_mean is {mean.tolist()}, not detectron2's BGR mean",
            "give weights of configs/COCO-Detection/retinanet_R_*",
        )
    first = state.get("backbone.conv1.weight")
    if first is not None and first.shape[1:2] == (3,):
        state["backbone.conv1.weight"] = first.flip(1) * (our_std / std.flip(0)).view(3, 1, 1)
    structure = {"backbone.stride_in_1x1": True, **visible_structure(state), "pyramid_relu": True, "head.exact": True}
    return Imported(state, COCO_CLASSES, structure, size_major=True)


def _is_of_floats(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"
