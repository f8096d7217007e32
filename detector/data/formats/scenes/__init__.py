"""Drawn scenes whose imbalance is set by knobs: how many objects, how rare each class, how many hard negatives."""

from detector.data.formats.scenes.dataset import SyntheticDataset
from detector.data.formats.scenes.drawing import draw_scene
from detector.data.formats.scenes.outlines import CLASS_OUTLINES
from detector.data.formats.scenes.settings import SceneSettings

__all__ = ["CLASS_OUTLINES", "SceneSettings", "SyntheticDataset", "draw_scene"]
