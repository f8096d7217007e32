"""The function that loads weights of any source into a model."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector.core.errors import UserError
from detector.core.strict_yaml import read_yaml
from detector.models.detector import DetectionModel
from detector.models.heads.anchors import AnchorHead
from detector.models.heads.points import PointHead
from detector.models.weights.detectron2 import import_detectron2
from detector.models.weights.files import first_line, load_contents, state_of
from detector.models.weights.imported import Imported
from detector.models.weights.mmdet import import_mmdet
from detector.models.weights.recognition import refuse_another_detector
from detector.models.weights.torchvision import import_torchvision, import_torchvision_fcos
from detector.old_versions import upgrade_checkpoint

log = logging.getLogger(__name__)
IMPORTERS: dict[str, Callable[[Path], Imported]] = {
    "torchvision_retinanet": import_torchvision,
    "torchvision_fcos": import_torchvision_fcos,
    "detectron2_retinanet": import_detectron2,
    "mmdet_retinanet": import_mmdet,
}
CLASS_OUTPUT = "head.class_branch.output"
OUTPUTS = [f"{output}.{name}" for output in (CLASS_OUTPUT, "head.box_branch.output") for name in ("weight", "bias")]
ONE_TO_ONE = "head.one_to_one."  # the prefix of the tensors of a one-to-one head
CLASS_OUTPUTS = (f"{CLASS_OUTPUT}.", f"{ONE_TO_ONE}class_branch.output.")
# the keys of the model section that a checkpoint and the model must have in common
STRUCTURE = (
    *("backbone.type", "backbone.name", "backbone.stride_in_1x1", "width", "pyramid_top", "pyramid_relu"),
    *("head.type", "head.depth", "head.norm", "head.exact", "head.activation", "head.at_corners"),
)


def load_weights(model: DetectionModel, weights: str | None, class_names: Sequence[str]) -> None:
    """Load `model.weights` of a config into a model.

    Args:
        model: the model, on the CPU.
        weights: the value in the config. None changes nothing. `torchvision_retinanet:FILE`, `torchvision_fcos:FILE`,
            `detectron2_retinanet:FILE` and `mmdet_retinanet:FILE` are complete detectors. A file is a checkpoint of
            this project, or has the tensors of a backbone. Any other text is the name of published weights of the
            backbone.
        class_names: the classes of the model, in label order.

    Raises:
        UserError: the weights do not exist, are of another detector, or do not fit the model.
    """
    if weights is None:
        return
    kind, colon, file = weights.partition(":")
    if colon and kind in IMPORTERS:
        _load_imported(model, IMPORTERS[kind](Path(os.path.expanduser(file))), file, class_names)
    elif "/" not in weights and not Path(weights).suffix:
        model.backbone.load(weights)
        log.info("backbone weights: %s", weights)
    else:
        _load_file(model, Path(weights).expanduser(), class_names)


def _load_file(model: DetectionModel, file: Path, class_names: Sequence[str]) -> None:
    contents = {} if file.suffix == ".safetensors" else load_contents(file)
    is_checkpoint = {"class_names", "config"} <= contents.keys() and isinstance(contents.get("model"), dict)
    if not is_checkpoint:
        refuse_another_detector(file, state_of(contents), "")
        model.backbone.load(file)
        log.info("backbone weights from %s", file)
        return
    contents = upgrade_checkpoint(contents)
    section = _flat(read_yaml(contents["config"], f"config of {file}")["model"])
    structure = {key: section[key] for key in STRUCTURE if key in section}
    imported = Imported(contents["model"], tuple(contents["class_names"]), structure, size_major=False)
    _load_imported(model, imported, str(file), class_names)


def _load_imported(model: DetectionModel, imported: Imported, origin: str, class_names: Sequence[str]) -> None:
    if isinstance(model.head, AnchorHead | PointHead):
        missing = [name for name in OUTPUTS if name not in imported.state]
        if missing:
            raise UserError(
                f"{origin}: the file is not a detector of this kind: it has no values for {missing[0]}",
                "give another file",
            )
    section = _flat(model.settings.model_dump(mode="json"))
    wrong = {key: value for key, value in imported.structure.items() if section.get(key) != value}
    if wrong:
        texts = {key: "null" if value is None else str(value).lower() for key, value in wrong.items()}
        keys = " ".join(f"model.{key}={text}" for key, text in texts.items())
        raise UserError(f"{origin}: the model in the file has another structure than the config", f"set {keys}")
    state = dict(imported.state)
    if isinstance(model.head, AnchorHead | PointHead):
        state, has_classes = _fit_outputs(model, model.head, imported, origin, class_names)
    else:
        has_classes = tuple(class_names) == imported.class_names
    _load_detector(model, state, origin, has_classes)


def _fit_outputs(
    model: DetectionModel,
    head: AnchorHead | PointHead,
    imported: Imported,
    origin: str,
    class_names: Sequence[str],
) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors with anchors and classes in the order of the model, and whether they have all its classes.

    A one-to-one head that is not in the file gets the tensors of the one-to-many head.
    """
    state, names = dict(imported.state), imported.class_names
    if head.one_to_one is not None:
        copied = {name: x for name, x in state.items() if name.startswith("head.") and not name.startswith(ONE_TO_ONE)}
        state = {ONE_TO_ONE + name.removeprefix("head."): x for name, x in copied.items()} | state
    num_anchors = head.grid.anchors_per_cell if isinstance(head, AnchorHead) else 1
    num_channels = state[f"{CLASS_OUTPUT}.bias"].numel()
    try:
        if imported.size_major and isinstance(head, AnchorHead):
            by_size = (-1, len(head.grid.ratios))
            for name in OUTPUTS:
                per_anchor = state[name].unflatten(0, (num_anchors, -1)).unflatten(0, by_size)
                state[name] = per_anchor.transpose(0, 1).flatten(0, 2)
        has_classes = num_channels == num_anchors * model.num_classes
        if num_channels == num_anchors * len(names):
            has_classes = set(class_names) <= set(names)
            if has_classes and tuple(class_names) != names:
                rows = torch.tensor([names.index(name) for name in class_names])
                for name in [name for name in state if name.startswith(CLASS_OUTPUTS)]:
                    state[name] = state[name].unflatten(0, (num_anchors, -1))[:, rows].flatten(0, 1)
    except RuntimeError as error:
        raise UserError(
            f"{origin}: the file does not fit the anchors of this model ({first_line(error)})",
            "set model.head.sizes and model.head.ratios as for the file, or give other weights",
        ) from error
    return state, has_classes


def _load_detector(model: DetectionModel, state: dict[str, Tensor], origin: str, has_classes: bool) -> None:
    model_state = model.state_dict()
    state = {k: v for k, v in state.items() if k in model_state or not k.endswith("num_batches_tracked")}
    if not has_classes:
        state = {k: v for k, v in state.items() if not k.startswith(CLASS_OUTPUTS)}
        log.warning("%s was trained on other classes: the last layer of the class branch is not loaded", origin)
    counters = {name for name in model_state if name.endswith("num_batches_tracked")}
    class_output = {n for n in model_state if n.startswith(CLASS_OUTPUTS)}
    missing = model_state.keys() - state.keys() - counters - class_output
    wrong = [n for n in state if n not in model_state or model_state[n].shape != state[n].shape]
    if missing or wrong:
        name = sorted(wrong or missing)[0]
        shapes = [f"{tuple(s[name].shape)}" if name in s else "nothing" for s in (state, model_state)]
        raise UserError(
            f"{origin}: the file does not fit this model at '{name}': it has {shapes[0]}, the model has {shapes[1]}",
            "set the levels, anchors, norms and one_to_one of the model section as for the file, or give other weights",
        )
    model.load_state_dict(state, strict=False)
    log.info("detector weights from %s", origin)


def _flat(section: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a section by key. The values of a part have the key `part.key`."""
    flat = {}
    for key, value in section.items():
        flat |= {f"{key}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat
