"""Weights made elsewhere: torchvision's ImageNet backbones, files, and whole RetinaNets of other projects."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from detector.core.errors import UserError
from detector.core.strict_yaml import read_yaml
from detector.models.detector import RetinaNet
from detector.models.weights.files import first_line, load_contents, state_of
from detector.models.weights.importers import IMPORTERS, Imported
from detector.models.weights.recognition import refuse_another_detector

log = logging.getLogger(__name__)


def load_weights(model: RetinaNet, backbone: str, weights: str | None, class_names: Sequence[str]) -> None:
    """Fill `model` from `weights`: null leaves it as it was initialised; `IMAGENET1K_V1` and its like are torchvision's
    names for the backbone; `torchvision_retinanet:FILE`, `detectron2_retinanet:FILE` and `mmdet_retinanet:FILE` are
    whole detectors; anything else a file with a backbone's state dict or one of this project's checkpoints.

    Raises UserError for a missing, foreign or unfitting file."""
    if weights is None:
        return
    kind, colon, file = weights.partition(":")
    if colon and kind in IMPORTERS:
        _load_imported(model, IMPORTERS[kind](Path(os.path.expanduser(file))), file, class_names)
        return
    published = get_model_weights(backbone)
    if weights in published.__members__:
        try:
            state = published[weights].get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"model.weights: cannot download {published[weights].url} ({first_line(error)})",
                f"put the file into {torch.hub.get_dir()}/checkpoints or give its path",
            ) from error
    elif "/" not in weights and not Path(weights).suffix:
        known = ", ".join(published.__members__)
        raise UserError(f"model.weights: '{weights}' is neither a file nor one of {backbone}'s published {known}")
    else:
        file = Path(weights).expanduser()
        state = load_contents(file)
        refuse_another_detector(file, state_of(state), "")
    if {"class_names", "config"} <= state.keys() and isinstance(state.get("model"), dict):
        section = read_yaml(state["config"], f"config of {weights}")["model"]
        structure = {key: section[key] for key in model.structure if key in section}
        own = Imported(state["model"], tuple(state["class_names"]), structure, size_major=False)
        _load_imported(model, own, weights, class_names)
        return
    try:
        model.backbone.load(state_of(state))
    except RuntimeError as error:
        raise UserError(
            f"model.weights: {weights} does not fit the backbone {backbone} ({first_line(error)})",
            "give weights of that backbone, or set model.backbone to theirs",
        ) from error
    log.info("backbone weights from %s", weights)


def _load_imported(model: RetinaNet, imported: Imported, origin: str, class_names: Sequence[str]) -> None:
    state, names = dict(imported.state), imported.class_names
    outputs = [f"{head}.output.{name}" for head in ("class_head", "box_head") for name in ("weight", "bias")]
    missing = [name for name in outputs if name not in state]
    if missing:
        raise UserError(
            f"{origin}: not a RetinaNet of this kind: it has no values for {missing[0]}", "give another file"
        )
    wrong = {key: value for key, value in imported.structure.items() if model.structure[key] != value}
    if wrong:
        keys = " ".join(f"model.{key}={str(value).lower()}" for key, value in wrong.items())
        raise UserError(f"{origin}: its model is of another structure than this one", f"set {keys}")
    num_anchors = model.class_head.output.out_channels // model.num_classes
    num_channels = state["class_head.output.bias"].numel()
    try:
        if imported.size_major:
            by_size = (-1, len(model.grid.ratios))
            for name in outputs:
                per_anchor = state[name].unflatten(0, (num_anchors, -1)).unflatten(0, by_size)
                state[name] = per_anchor.transpose(0, 1).flatten(0, 2)
        keep = num_channels == num_anchors * model.num_classes
        if num_channels == num_anchors * len(names):
            keep = set(class_names) <= set(names)
            if keep and tuple(class_names) != names:
                rows = torch.tensor([names.index(name) for name in class_names])
                for name in outputs[:2]:
                    state[name] = state[name].unflatten(0, (num_anchors, -1))[:, rows].flatten(0, 1)
    except RuntimeError as error:
        raise UserError(f"{origin} does not fit this model's anchors ({first_line(error)})") from error
    _load_detector(model, state, origin, keep_classes=keep)


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
        theirs, ours = (f"{tuple(s[name].shape)}" if name in s else "nothing" for s in (state, own))
        raise UserError(
            f"{origin} does not fit this model at '{name}': the file has {theirs}, the model {ours}",
            "give the model section the levels, anchors and norms that the file was trained with, or other weights",
        )
    model.load_state_dict(state, strict=False)
    log.info("detector weights from %s", origin)
