"""Weights made elsewhere: torchvision's ImageNet backbones, files, and whole torchvision RetinaNets."""

import hashlib
import logging
import pickle
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import get_model_weights
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from detector.errors import UserError
from detector.models.retinanet import RetinaNet

log = logging.getLogger(__name__)
TORCHVISION = "torchvision_retinanet:"
UNREADABLE = (  # what torch.load raises on bytes that are no checkpoint, as a fuzzer found
    *(pickle.UnpicklingError, struct.error, OSError, EOFError, RuntimeError),
    *(LookupError, ValueError, TypeError, AttributeError, AssertionError),
)

_TORCHVISION_NAMES = (
    (r"^backbone\.body\.", "backbone."),
    # releases before 0.14 put convolutions where later ones put (convolution, norm, activation) blocks
    (r"^backbone\.fpn\.inner_blocks\.(\d+)(?:\.0)?\.(weight|bias)$", r"fpn.lateral.\1.\2"),
    (r"^backbone\.fpn\.layer_blocks\.(\d+)(?:\.0)?\.(weight|bias)$", r"fpn.smooth.\1.\2"),
    (r"^backbone\.fpn\.extra_blocks\.p6\.", "fpn.extra.0."),
    (r"^backbone\.fpn\.extra_blocks\.p7\.", "fpn.extra.1."),
    (r"^head\.classification_head\.cls_logits\.", "class_head.output."),
    (r"^head\.regression_head\.bbox_reg\.", "box_head.output."),
    (r"^head\.classification_head\.conv\.", "class_head.tower."),
    (r"^head\.regression_head\.conv\.", "box_head.tower."),
)


def load_tensors(path: Path) -> dict:
    """A file saved by torch.save, tensors and plain containers only. Raises UserError where there is none."""
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; check model.weights or the path given")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(
            f"{path}: not a readable checkpoint: damaged, or not what torch.save writes of tensors alone; give another"
        ) from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds a {type(loaded).__name__}, not a state dict; give a file saved by torch.save")
    return loaded


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def rename_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our parameter names for those of torchvision's `retinanet_resnet50_fpn`, of any release."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in _TORCHVISION_NAMES:
            name, found = re.subn(pattern, replacement, name)
            if found:
                break
        # tower blocks: new `i.0.weight`, old `2i.weight`; ours is a flat sequence of convolution and ReLU
        name = re.sub(r"\.tower\.(\d+)\.0\.", lambda m: f".tower.{2 * int(m[1])}.", name)
        renamed[name] = value
    return renamed


def load_weights(
    model: RetinaNet, backbone: str, weights: str | None, class_names: Sequence[str], category_ids: Sequence[int]
) -> None:
    """Fill `model` from `weights`: null leaves it as it was initialised; `IMAGENET1K_V1` and its like are torchvision's
    names for the backbone; `torchvision_retinanet:FILE` a whole detector; anything else a file with a backbone's state
    dict or one of this project's checkpoints. Raises UserError for a missing, foreign or unfitting file."""
    if weights is None:
        return
    if weights.startswith(TORCHVISION):
        _load_torchvision(model, Path(weights.removeprefix(TORCHVISION)), class_names, category_ids)
        return
    published = get_model_weights(backbone)
    if weights in published.__members__:
        try:
            state = published[weights].get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"model.weights: cannot download {published[weights].url} ({_first_line(error)}); put the file into "
                f"{torch.hub.get_dir()}/checkpoints or give its path"
            ) from error
    elif "/" not in weights and not Path(weights).suffix:
        known = ", ".join(published.__members__)
        raise UserError(f"model.weights: '{weights}' is neither a file nor one of {backbone}'s published {known}")
    else:
        state = load_tensors(Path(weights))
    if "class_names" in state and isinstance(state.get("model"), dict):
        _load_detector(model, state["model"], weights, keep_classes=tuple(state["class_names"]) == tuple(class_names))
        return
    try:
        model.backbone.load(state)
    except RuntimeError as error:
        raise UserError(
            f"model.weights: {weights} does not fit the backbone {backbone}: {_first_line(error)}"
        ) from error
    log.info("backbone weights from %s", weights)


def _load_torchvision(model: RetinaNet, path: Path, class_names: Sequence[str], category_ids: Sequence[int]) -> None:
    tensors = {k: v for k, v in load_tensors(path).items() if isinstance(k, str) and isinstance(v, Tensor)}
    state = rename_torchvision(tensors)
    weight, bias = (state.get(f"class_head.output.{kind}") for kind in ("weight", "bias"))
    if weight is None or bias is None:
        raise UserError(
            f"{path}: not a torchvision RetinaNet; {TORCHVISION}FILE takes retinanet_resnet50_fpn's weights"
        )
    num_anchors = model.class_head.output.out_channels // model.num_classes
    published = RetinaNet_ResNet50_FPN_Weights.COCO_V1
    if hashlib.sha256(path.read_bytes()).hexdigest().startswith(Path(published.url).stem.rpartition("-")[2]):
        state = _absorb_zero_eps(state)
    # the published head has a channel for each COCO category id, unused ids among them
    names = published.meta["categories"]
    if len(bias) != num_anchors * len(names):
        keep = len(bias) == model.class_head.output.out_channels
    elif keep := all(
        0 <= i < len(names) and names[i] == name for i, name in zip(category_ids, class_names, strict=True)
    ):
        rows = torch.tensor(category_ids)
        state["class_head.output.weight"] = weight.unflatten(0, (num_anchors, -1))[:, rows].flatten(0, 1)
        state["class_head.output.bias"] = bias.unflatten(0, (num_anchors, -1))[:, rows].flatten()
    _load_detector(model, state, str(path), keep_classes=keep)


def _absorb_zero_eps(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published weights belong to norms that add nothing to the variance; ours add 1e-5: it is taken off here."""
    return {k: v - 1e-5 if k.endswith("running_var") else v for k, v in state.items()}


def _load_detector(model: RetinaNet, state: dict[str, Tensor], origin: str, keep_classes: bool) -> None:
    own = model.state_dict()
    state = {k: v for k, v in state.items() if k in own or not k.endswith("num_batches_tracked")}
    if not keep_classes:
        state = {k: v for k, v in state.items() if not k.startswith("class_head.output.")}
        log.warning("%s was trained on other classes: the class head's last layer starts afresh", origin)
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    absent = {n for n in own if n not in state} - counters - {n for n in own if n.startswith("class_head.output.")}
    wrong = [n for n in state if n not in own or own[n].shape != state[n].shape]
    if absent or wrong:
        name = sorted(wrong or absent)[0]
        raise UserError(f"{origin} does not fit this model at '{name}'; use the model section it was trained with")
    model.load_state_dict(state, strict=False)
    log.info("detector weights from %s", origin)
