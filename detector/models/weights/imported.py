"""What the importers of other projects' RetinaNets share.

torchvision, detectron2 and mmdetection decode boxes as this project does; mmdetection also keeps a side above a 62nd of
its anchor's.
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

# torchvision's 91 categories: a channel for each COCO id, unused ids among them
CATEGORIES = tuple(RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
COCO_CLASSES = tuple(name for name in CATEGORIES if name not in ("__background__", "N/A"))  # 80

# blocks of each stage, and whether they are bottlenecks
RESNETS = {
    (2, 2, 2, 2, False): "resnet18",
    (3, 4, 6, 3, False): "resnet34",
    (3, 4, 6, 3, True): "resnet50",
    (3, 4, 23, 3, True): "resnet101",
}

Renaming = tuple[tuple[str, str | Callable[[re.Match], str]], ...]


@dataclass(frozen=True, slots=True)
class Imported:
    """A detector under our names.

    state: its tensors; class_names: of the class branch's channels, if it has as many; structure: what the model
    section must say, by key (`head.depth`); size_major: a cell's anchors go through the ratios of one size after
    another's.
    """

    state: dict[str, Tensor]
    class_names: tuple[str, ...]
    structure: dict[str, Any]
    size_major: bool


def rename(state: dict[str, Any], renaming: Renaming) -> dict[str, Tensor]:
    """Return the tensors of `state`, each under the name that the first fitting pattern makes of its own."""
    renamed = {}
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            for pattern, replacement in renaming:
                name, found = re.subn(pattern, replacement, name)
                if found:
                    break
            renamed[name] = value
    return renamed


def branch_names(branch: str) -> Callable[[re.Match], str]:
    """Return the names of a branch's convolutions. Our towers count convolutions and ReLUs; the others count blocks of
    both."""
    return lambda match: f"{branch}.tower.{2 * int(match[1])}."


def count_from(name: str, first: int) -> Callable[[re.Match], str]:
    """Return the names of a list's items, which the other project counts from `first`."""
    return lambda match: f"{name}.{int(match[1]) - first}."


def tensors_of(path: Path, contents: dict, kind: str) -> dict[str, Any]:
    """Return the tensors of a file. Raises UserError where they are not those of the importer `kind`."""
    state = state_of(contents)
    refuse_another_detector(path, state, kind)
    return state


def visible_structure(state: dict[str, Tensor]) -> dict[str, Any]:
    """Return what the tensors tell about the model section, by key."""
    structure: dict[str, Any] = {}
    blocks = [len({n.split(".")[2] for n in state if n.startswith(f"backbone.layer{i}.")}) for i in (1, 2, 3, 4)]
    backbone = RESNETS.get((*blocks, "backbone.layer1.0.conv3.weight" in state))
    if backbone is not None:
        structure["backbone.type"] = backbone
    weights = {name: value for name, value in state.items() if name.endswith(".weight") and value.dim() == 4}
    if "neck.lateral.0.weight" in weights:
        structure["width"] = len(weights["neck.lateral.0.weight"])
        structure["head.depth"] = sum(name.startswith("head.class_branch.tower.") for name in weights)
    if "neck.extra.0.weight" in weights:  # P6 is made of P5 or of C5, which has other channels
        outputs, inputs = weights["neck.extra.0.weight"].shape[:2]
        structure["pyramid_top"] = "p5" if outputs == inputs else "c5"
    return structure
