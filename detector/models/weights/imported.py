"""Functions that the importers of other projects' RetinaNets share.

torchvision, detectron2 and mmdetection decode boxes as this project does. mmdetection also keeps each side above 1/62
of the side of its anchor.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from detector.models.weights.files import state_of
from detector.models.weights.recognition import refuse_another_detector

# torchvision's 91 categories: a channel for each COCO id, also for the unused ids
CATEGORIES = tuple(RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
COCO_CLASSES = tuple(name for name in CATEGORIES if name not in ("__background__", "N/A"))  # 80

# by the number of blocks of each stage, and whether the blocks are bottlenecks
RESNETS = {
    (2, 2, 2, 2, False): "resnet18",
    (3, 4, 6, 3, False): "resnet34",
    (3, 4, 6, 3, True): "resnet50",
    (3, 4, 23, 3, True): "resnet101",
}

Renaming = tuple[tuple[str, str | Callable[[re.Match], str]], ...]


@dataclass(frozen=True, slots=True)
class Imported:
    """A detector of another project, with the tensor names of this project.

    Attributes:
        state: the tensors by name.
        class_names: the classes of the channels of the class branch, if their number is the same.
        structure: the required values of the model section, by key (`head.depth`).
        size_major: the order of the anchors of a cell is all ratios of a size, then the next size.
    """

    state: dict[str, Tensor]
    class_names: tuple[str, ...]
    structure: dict[str, Any]
    size_major: bool


def rename(state: dict[str, Any], renaming: Renaming) -> dict[str, Tensor]:
    """Return the tensors of `state` with new names. The first pattern that fits a name gives its new name.

    Args:
        state: the contents of a state dict. Values that are not tensors are dropped.
        renaming: patterns and replacements, as in `re.sub`.
    """
    renamed = {}
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            for pattern, replacement in renaming:
                name, num_replaced = re.subn(pattern, replacement, name)
                if num_replaced:
                    break
            renamed[name] = value
    return renamed


def branch_names(branch: str, block: int = 2, module: int = 0) -> Callable[[re.Match], str]:
    """Return the replacement for the names of a branch's convolutions, or of its norms.

    Our towers count convolutions, norms and ReLUs separately. The other projects count blocks of them.

    Args:
        branch: the new name of the branch.
        block: the number of modules of a block: a convolution and a ReLU, or a convolution, a norm and a ReLU.
        module: the number of the module in its block.
    """
    return lambda match: f"{branch}.tower.{block * int(match[1]) + module}."


def count_from(name: str, first: int) -> Callable[[re.Match], str]:
    """Return the replacement for the names of a list's items.

    Args:
        name: the new name of the list.
        first: the number of the first item in the other project.
    """
    return lambda match: f"{name}.{int(match[1]) - first}."


def tensors_of(path: Path, contents: dict, kind: str) -> dict[str, Any]:
    """Return the tensors of a file by name.

    Args:
        path: the file, for messages.
        contents: the contents of the file.
        kind: the importer, a key of `LOADABLE`.

    Raises:
        UserError: the tensors are of another known detector.
    """
    state = state_of(contents)
    refuse_another_detector(path, state, kind)
    return state


def visible_structure(state: dict[str, Tensor]) -> dict[str, Any]:
    """Return the values of the model section that follow from the tensors, by key."""
    structure: dict[str, Any] = {}
    blocks = [len({n.split(".")[2] for n in state if n.startswith(f"backbone.layer{i}.")}) for i in (1, 2, 3, 4)]
    backbone = RESNETS.get((*blocks, "backbone.layer1.0.conv3.weight" in state))
    if backbone is not None:
        structure["backbone.type"] = backbone
    weights = {name: value for name, value in state.items() if name.endswith(".weight") and value.dim() == 4}
    if "neck.lateral.0.weight" in weights:
        structure["width"] = len(weights["neck.lateral.0.weight"])
        tower = [name for name in state if name.startswith("head.class_branch.tower.") and name.endswith(".weight")]
        structure["head.depth"] = sum(name in weights for name in tower)
        structure["head.norm"] = "none" if all(name in weights for name in tower) else "group"
    if "neck.extra.0.weight" in weights:  # the input of P6 is P5, or C5 with another number of channels
        outputs, inputs = weights["neck.extra.0.weight"].shape[:2]
        structure["pyramid_top"] = "p5" if outputs == inputs else "c5"
    return structure
