"""RetinaNets of other projects, as published: their files' names, orders and conventions put into ours.

torchvision (models/detection/retinanet.py), detectron2 (modeling/meta_arch/retinanet.py, configs/Base-RetinaNet.yaml)
and mmdetection (configs/_base_/models/retinanet_r50_fpn.py). All decode boxes as we do; mmdetection also keeps a side
above a 62nd of its anchor's.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from detector.core.errors import UserError
from detector.models.detector import IMAGENET_MEAN, IMAGENET_STD
from detector.models.weights.files import load_contents, state_of
from detector.models.weights.recognition import refuse_another_detector

_TORCHVISION = RetinaNet_ResNet50_FPN_Weights.COCO_V1
CATEGORIES = tuple(_TORCHVISION.meta["categories"])  # 91: a channel for each COCO id, unused ids among them
CLASSES = tuple(name for name in CATEGORIES if name not in ("__background__", "N/A"))  # 80

# blocks of each stage, and whether they are bottlenecks
BACKBONES = {
    (2, 2, 2, 2, False): "resnet18",
    (3, 4, 6, 3, False): "resnet34",
    (3, 4, 6, 3, True): "resnet50",
    (3, 4, 23, 3, True): "resnet101",
}

Renaming = tuple[tuple[str, str | Callable[[re.Match], str]], ...]


@dataclass(frozen=True, slots=True)
class Imported:
    """A detector under our names.

    state: its tensors; class_names: of the class head's channels, if it has as many; structure: the keys of the model
    section that it presupposes; size_major: a cell's anchors go through the ratios of one size after another's.
    """

    state: dict[str, Tensor]
    class_names: tuple[str, ...]
    structure: dict[str, Any]
    size_major: bool


def rename(state: dict[str, Any], renaming: Renaming) -> dict[str, Tensor]:
    """The tensors of `state`, each under the name that the first fitting pattern makes of its own."""
    renamed = {}
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            for pattern, replacement in renaming:
                name, found = re.subn(pattern, replacement, name)
                if found:
                    break
            renamed[name] = value
    return renamed


def _tower(head: str) -> Callable[[re.Match], str]:
    """Our towers number convolutions and ReLUs alike; blocks of both are numbered there."""
    return lambda match: f"{head}.tower.{2 * int(match[1])}."


def _count_from(name: str, first: int) -> Callable[[re.Match], str]:
    return lambda match: f"{name}.{int(match[1]) - first}."


TORCHVISION: Renaming = (
    (r"^backbone\.body\.", "backbone."),
    # releases before 0.14 put convolutions where later ones put (convolution, norm, activation) blocks
    (r"^backbone\.fpn\.inner_blocks\.(\d+)\.(?:0\.)?(weight|bias)$", r"fpn.lateral.\1.\2"),
    (r"^backbone\.fpn\.layer_blocks\.(\d+)\.(?:0\.)?(weight|bias)$", r"fpn.smooth.\1.\2"),
    (r"^backbone\.fpn\.extra_blocks\.p6\.", "fpn.extra.0."),
    (r"^backbone\.fpn\.extra_blocks\.p7\.", "fpn.extra.1."),
    (r"^head\.classification_head\.cls_logits\.", "class_head.output."),
    (r"^head\.regression_head\.bbox_reg\.", "box_head.output."),
    (r"^head\.classification_head\.conv\.(\d+)\.0\.", _tower("class_head")),
    (r"^head\.regression_head\.conv\.(\d+)\.0\.", _tower("box_head")),
    (r"^head\.classification_head\.conv\.", "class_head.tower."),
    (r"^head\.regression_head\.conv\.", "box_head.tower."),
)

_BLOCK = r"^backbone\.bottom_up\.res(\d)\.(\d+)\."
DETECTRON2: Renaming = (
    (r"^backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.bn1."),
    (r"^backbone\.bottom_up\.stem\.conv1\.", "backbone.conv1."),
    (_BLOCK + r"conv(\d)\.norm\.", lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.bn{m[3]}."),
    (_BLOCK + r"shortcut\.norm\.", lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.downsample.1."),
    (_BLOCK + r"shortcut\.", lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}.downsample.0."),
    (_BLOCK, lambda m: f"backbone.layer{int(m[1]) - 1}.{m[2]}."),
    (r"^backbone\.fpn_lateral(\d)\.", _count_from("fpn.lateral", 3)),
    (r"^backbone\.fpn_output(\d)\.", _count_from("fpn.smooth", 3)),
    (r"^backbone\.top_block\.p(\d)\.", _count_from("fpn.extra", 6)),
    (r"^head\.cls_subnet\.", "class_head.tower."),
    (r"^head\.bbox_subnet\.", "box_head.tower."),
    (r"^head\.cls_score\.", "class_head.output."),
    (r"^head\.bbox_pred\.", "box_head.output."),
)

MMDET: Renaming = (
    (r"^neck\.lateral_convs\.(\d)\.conv\.", _count_from("fpn.lateral", 0)),
    (r"^neck\.fpn_convs\.([012])\.conv\.", _count_from("fpn.smooth", 0)),
    (r"^neck\.fpn_convs\.(\d)\.conv\.", _count_from("fpn.extra", 3)),
    (r"^bbox_head\.cls_convs\.(\d+)\.conv\.", _tower("class_head")),
    (r"^bbox_head\.reg_convs\.(\d+)\.conv\.", _tower("box_head")),
    (r"^bbox_head\.retina_cls\.", "class_head.output."),
    (r"^bbox_head\.retina_reg\.", "box_head.output."),
)


def import_torchvision(path: Path) -> Imported:
    """The state dict of `retinanet_resnet50_fpn`, of any release."""
    state = rename(_tensors(path, load_contents(path), "torchvision_retinanet"), TORCHVISION)
    if hashlib.sha256(path.read_bytes()).hexdigest().startswith(Path(_TORCHVISION.url).stem.rpartition("-")[2]):
        # the published weights belong to norms that add nothing to the variance; ours add 1e-5: it is taken off here
        state = {k: v - 1e-5 if k.endswith("running_var") else v for k, v in state.items()}
    structure = {"stride_in_1x1": False, **_visible_structure(state), "pyramid_relu": True, "exact_anchors": False}
    return Imported(state, CATEGORIES, structure, size_major=False)


def import_detectron2(path: Path) -> Imported:
    """A checkpoint of configs/COCO-Detection/retinanet_R_*: the model zoo's pickle of arrays (.pkl), or torch's (.pth).

    Its images are BGR minus the mean, not divided by the deviation; the first convolution makes up for both here.
    Raises UserError where the file says that its images were others.
    """
    tensors = _tensors(path, load_contents(path), "detectron2_retinanet")
    arrays = {k: torch.from_numpy(v.astype(np.float32)) for k, v in tensors.items() if _is_of_floats(v)}
    state = rename(tensors | arrays, DETECTRON2)
    state = {k: v for k, v in state.items() if not k.startswith("anchor_generator.")}
    own_mean, own_std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    mean = state.pop("pixel_mean", own_mean.flip(0)).flatten().float()
    std = state.pop("pixel_std", torch.ones(3)).flatten().float()
    if not (mean.shape == std.shape == own_mean.shape and torch.allclose(mean.flip(0), own_mean, atol=0.01)):
        raise UserError(f"{path}: its pixel_mean {mean.tolist()} is not detectron2's BGR one", "it cannot be imported")
    first = state.get("backbone.conv1.weight")
    if first is not None and first.shape[1:2] == (3,):
        state["backbone.conv1.weight"] = first.flip(1) * (own_std / std.flip(0)).view(3, 1, 1)
    structure = {"stride_in_1x1": True, **_visible_structure(state), "pyramid_relu": True, "exact_anchors": True}
    return Imported(state, CLASSES, structure, size_major=True)


def import_mmdet(path: Path) -> Imported:
    """A checkpoint of configs/retinanet/retinanet_r*_fpn_*: `state_dict` and `meta`, of which its classes and config.

    Raises UserError for caffe style, whose images and strides are others."""
    contents = load_contents(path)
    tensors = _tensors(path, contents, "mmdet_retinanet")
    meta = contents["meta"] if isinstance(contents.get("meta"), dict) else {}
    config = str(meta.get("config", meta.get("cfg")))  # the text of a Python file, in releases 2 and 3
    if re.search(r"""style\s*=\s*['"]caffe""", config):
        raise UserError(
            f"{path}: a model of caffe style", "of mmdetection's RetinaNets only those of pytorch style fit"
        )
    state = rename(tensors, MMDET)
    relu = re.search(r"relu_before_extra_convs\s*=\s*True", config) is not None
    structure = {"stride_in_1x1": False, **_visible_structure(state), "pyramid_relu": relu, "exact_anchors": True}
    described = meta.get("dataset_meta")  # since release 3
    names = next(
        (d[k] for d in (meta, described) for k in ("CLASSES", "classes") if isinstance(d, dict) and k in d), None
    )
    named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return Imported(state, tuple(names) if named else CLASSES, structure, size_major=False)


def _tensors(path: Path, contents: dict, kind: str) -> dict[str, Any]:
    state = state_of(contents)
    refuse_another_detector(path, state, kind)
    return state


def _is_of_floats(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _visible_structure(state: dict[str, Tensor]) -> dict[str, Any]:
    """The keys of the model section that the tensors show."""
    structure: dict[str, Any] = {}
    blocks = [len({n.split(".")[2] for n in state if n.startswith(f"backbone.layer{i}.")}) for i in (1, 2, 3, 4)]
    backbone = BACKBONES.get((*blocks, "backbone.layer1.0.conv3.weight" in state))
    if backbone is not None:
        structure["backbone"] = backbone
    weights = {name: value for name, value in state.items() if name.endswith(".weight") and value.dim() == 4}
    if "fpn.lateral.0.weight" in weights:
        structure["width"] = len(weights["fpn.lateral.0.weight"])
        structure["head_depth"] = sum(name.startswith("class_head.tower.") for name in weights)
    if "fpn.extra.0.weight" in weights:  # P6 is made of P5 or of C5, which has other channels
        outputs, inputs = weights["fpn.extra.0.weight"].shape[:2]
        structure["pyramid_top"] = "p5" if outputs == inputs else "c5"
    return structure


IMPORTERS: dict[str, Callable[[Path], Imported]] = {
    "torchvision_retinanet": import_torchvision,
    "detectron2_retinanet": import_detectron2,
    "mmdet_retinanet": import_mmdet,
}
