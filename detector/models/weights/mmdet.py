"""The import of mmdetection's RetinaNet (configs/_base_/models/retinanet_r50_fpn.py)."""

import re
from pathlib import Path

from detector.core.errors import UserError
from detector.models.weights.files import load_contents
from detector.models.weights.imported import (
    COCO_CLASSES,
    Imported,
    Renaming,
    branch_names,
    count_from,
    rename,
    tensors_of,
    visible_structure,
)

_NAMES: Renaming = (
    (r"^neck\.lateral_convs\.(\d)\.conv\.", count_from("neck.lateral", 0)),
    (r"^neck\.fpn_convs\.([012])\.conv\.", count_from("neck.smooth", 0)),
    (r"^neck\.fpn_convs\.(\d)\.conv\.", count_from("neck.extra", 3)),
    (r"^bbox_head\.cls_convs\.(\d+)\.conv\.", branch_names("head.class_branch")),
    (r"^bbox_head\.reg_convs\.(\d+)\.conv\.", branch_names("head.box_branch")),
    (r"^bbox_head\.retina_cls\.", "head.class_branch.output."),
    (r"^bbox_head\.retina_reg\.", "head.box_branch.output."),
)


def import_mmdet(path: Path) -> Imported:
    """Read a checkpoint of configs/retinanet/retinanet_r*_fpn_*.

    The tensors are in `state_dict`. The classes and the config are in `meta`.

    Args:
        path: the file.

    Raises:
        UserError: the file cannot be read, is of another detector, or has caffe style (other images and strides).
    """
    contents = load_contents(path)
    tensors = tensors_of(path, contents, "mmdet_retinanet")
    meta = contents["meta"] if isinstance(contents.get("meta"), dict) else {}
    config = str(meta.get("config", meta.get("cfg")))  # the text of a Python file, in releases 2 and 3
    if re.search(r"""style\s*=\s*['"]caffe""", config):
        raise UserError(
            f"{path}: the model has caffe style, which cannot be imported", "give a RetinaNet of pytorch style"
        )
    state = rename(tensors, _NAMES)
    relu = re.search(r"relu_before_extra_convs\s*=\s*True", config) is not None
    structure = {"backbone.stride_in_1x1": False, **visible_structure(state), "pyramid_relu": relu, "head.exact": True}
    described = meta.get("dataset_meta")  # since release 3
    names = next(
        (d[k] for d in (meta, described) for k in ("CLASSES", "classes") if isinstance(d, dict) and k in d), None
    )
    is_named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return Imported(state, tuple(names) if is_named else COCO_CLASSES, structure, size_major=False)
