"""Drawn scenes with adjustable imbalance: the number of objects, the class frequencies and the hard negatives."""

from detector.data.formats.scenes.dataset import SyntheticDataset
from detector.data.formats.scenes.drawing import draw_scene
from detector.data.formats.scenes.outlines import CLASS_OUTLINES
from detector.data.formats.scenes.settings import SceneSettings

__all__ = ["CLASS_OUTLINES", "SceneSettings", "SyntheticDataset", "draw_scene"]
