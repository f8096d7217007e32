"""Functions that upgrade configs and checkpoints of version 0.1 to the current version."""

from typing import Any

import yaml

from detector.core.strict_yaml import Dumper, read_yaml

CHECKPOINT_VERSION = 3  # checkpoints of version 0.1 have 2
CHECKPOINT_KEYS = {"version", "config", "class_names", "category_ids", "model"}

# old and new keys of the model section
MODEL_KEYS = {
    "norm": "backbone.norm",
    "trainable_stages": "backbone.trainable_stages",
    "stride_in_1x1": "backbone.stride_in_1x1",
    "head_depth": "head.depth",
    "head_norm": "head.norm",
    "prior": "head.prior",
    "anchor_sizes": "head.sizes",
    "anchor_ratios": "head.ratios",
    "exact_anchors": "head.exact",
}
# the values of new keys of the section train that have the effect of version 0.1
NEW_SETTINGS = {"backbone_lr_scale": 1.0, "decay_norms_and_biases": False}
# the same for new parameters of losses, by type
NEW_PARAMETERS = {"ghm_c": {"power": 1.0}, "ghm_r": {"power": 1.0}}
# old and new keys of data.augment, for each transform
AUGMENT_KEYS = {
    "flip": {"horizontal_flip": "horizontal", "vertical_flip": "vertical"},
    "affine": {key: key for key in ("scale", "translate", "min_visibility")},
    "color": {key: key for key in ("brightness", "contrast", "saturation", "hue")},
}
AUGMENT_DEFAULTS = {"horizontal_flip": 0.5, "vertical_flip": 0.0}
# old and new prefixes of the names of the model's tensors
PREFIXES = {"fpn.": "neck.", "class_head.": "head.class_branch.", "box_head.": "head.box_branch."}


def upgrade_checkpoint(contents: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of a checkpoint of version 0.1 in the current format, and any other contents unchanged."""
    if contents.get("version") != 2:
        return contents
    config = upgrade_config(read_yaml(contents["config"], "the config of a checkpoint"))[0]
    config["train"] = NEW_SETTINGS | config["train"]
    for key in ("classification", "box"):
        part = config["loss"][key]
        config["loss"][key] = NEW_PARAMETERS.get(part["type"], {}) | part
    upgraded = contents | {
        "version": CHECKPOINT_VERSION,
        "config": yaml.dump(config, Dumper=Dumper, sort_keys=False, allow_unicode=True),
        "model": _renamed(contents["model"], PREFIXES),
    }
    if "training" in contents:
        training = contents["training"]
        upgraded["training"] = training | {
            "model": _renamed(training["model"], PREFIXES),
            "criterion": _with_steps_of_bins(_renamed(training["criterion"], {"box.": "boxes.0."})),
            "optimizer": _with_rate_scale(training["optimizer"]),
        }
    return upgraded


def upgrade_config(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of a config with the new keys, and the replacement of each old key.

    The replacement of `model.norm` is `model.backbone.norm`, and that of `data.augment` is `data.transforms: [...]`.
    """
    replacements: dict[str, str] = {}
    upgraded = dict(values)
    if isinstance(data := values.get("data"), dict):
        upgraded["data"] = _upgrade_data(data, replacements)
    if isinstance(model := values.get("model"), dict):
        upgraded["model"] = _upgrade_model(model, replacements)
    return upgraded, replacements


def _upgrade_data(section: dict[str, Any], replacements: dict[str, str]) -> dict[str, Any]:
    if "augment" not in section:
        return section
    augment = section["augment"]
    transforms = _transforms(augment if isinstance(augment, dict) else {})
    text = yaml.dump(transforms, Dumper=Dumper, sort_keys=False, default_flow_style=True, width=float("inf"))
    replacements["data.augment"] = f"data.transforms: {text.strip()}"
    return {key: value for key, value in section.items() if key != "augment"} | {"transforms": transforms}


def _transforms(augment: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the transforms that have the effect of the values of `data.augment`."""
    augment = AUGMENT_DEFAULTS | augment
    transforms = []
    for name, keys in AUGMENT_KEYS.items():
        given = {old: augment[old] for old in keys if old in augment}
        if any(value not in (0, [1, 1]) for old, value in given.items() if old != "min_visibility"):  # has an effect
            transforms.append({"type": name} | {keys[old]: value for old, value in given.items()})
    return transforms


def _upgrade_model(section: dict[str, Any], replacements: dict[str, str]) -> dict[str, Any]:
    upgraded = {key: value for key, value in section.items() if key not in MODEL_KEYS}
    for old, new in MODEL_KEYS.items():
        if old in section:
            part, key = new.split(".")
            spec = upgraded.get(part, {"type": "anchors"} if part == "head" else {})
            upgraded[part] = ({"type": spec} if isinstance(spec, str) else dict(spec)) | {key: section[old]}
            replacements[f"model.{old}"] = f"model.{new}"
    return upgraded


def _with_rate_scale(optimizer: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an optimizer with a factor of the learning rate in each parameter group."""
    return optimizer | {"param_groups": [{"lr_scale": 1.0} | group for group in optimizer["param_groups"]]}


def _with_steps_of_bins(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a criterion with a number of steps for each bin of GHM, instead of a number for all bins."""
    counts = {name.replace("running_counts", "steps"): x for name, x in state.items() if "running_counts" in name}
    return {name: x * (counts[name] > 0) if name in counts else x for name, x in state.items()}


def _renamed(state: dict[str, Any], prefixes: dict[str, str]) -> dict[str, Any]:
    """Return the tensors with the new prefix in each name that has an old prefix."""
    renamed = {}
    for name, value in state.items():
        old = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        renamed[prefixes.get(old, "") + name.removeprefix(old)] = value
    return renamed
