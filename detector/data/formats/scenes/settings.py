"""The settings of scenes, and their random streams."""

from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "val")
SCENE_STREAM, NOISE_STREAM = 0, 1


@dataclass(frozen=True, slots=True)
class SceneSettings:
    """The settings that determine, with the index, the pixels and boxes of a scene (see `SyntheticDataset`)."""

    image_size: int
    num_classes: int
    objects: float
    object_size: tuple[float, float]
    rotation: float
    distractors: float
    zipf: float
    seed: int
    split: str


def generator(settings: SceneSettings, *stream: int) -> np.random.Generator:
    """Return the generator of a random stream.

    Args:
        settings: the settings of the scenes.
        stream: the numbers of the stream, for example `SCENE_STREAM` and the index of a scene.
    """
    entropy = [settings.seed, SPLITS.index(settings.split)]
    return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=stream))
