"""A checkpoint of the tiny detector without training, which detects objects everywhere in a picture."""

from pathlib import Path

import torch
from tiny import tiny_config

from detector.build import build_model
from detector.config import to_yaml
from detector.engine.checkpoint import save_checkpoint
from detector.old_versions import CHECKPOINT_VERSION

CLASS_NAMES = ("disc", "square", "triangle", "star", "cross", "ring")
CATEGORY_IDS = (4, 7, 9, 11, 12, 20)


def save_tiny_checkpoint(folder: Path, *overrides: str) -> Path:
    """Save the checkpoint in a folder and return its path."""
    config = tiny_config(folder, "model.head.prior=0.5", *overrides)
    torch.manual_seed(0)
    model = build_model(config, len(CLASS_NAMES))
    for parameter in (model.head.class_branch.output.weight, model.head.box_branch.output.weight):
        torch.nn.init.normal_(parameter, std=0.3)  # so that scores and boxes differ
    path = folder / "tiny.pt"
    names = {"class_names": list(CLASS_NAMES), "category_ids": list(CATEGORY_IDS)}
    save_checkpoint(
        path, {"version": CHECKPOINT_VERSION, "config": to_yaml(config), "model": model.state_dict(), **names}
    )
    return path
