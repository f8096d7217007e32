"""A tiny detector for fast tests: a small ResNet on drawn scenes of 64 pixels."""

from pathlib import Path

from detector.build import build_dataset, build_trained_model, build_trainer
from detector.config import Config, config_from_text
from detector.core.registry import Registry
from detector.engine.trainer import Trainer

TINY = """
imports: [small_resnet]
data:
  train: {type: synthetic, num_images: 12, image_size: 64, objects: 3, distractors: 1}
  val: {type: synthetic, split: val, num_images: 4, image_size: 64, objects: 3, distractors: 1}
  short_side: 64
  num_workers: 0
model:
  backbone: {type: small_resnet, norm: group, trainable_stages: 5}
  levels: [3, 4]
  width: 16
  head: {type: anchors, depth: 1, sizes: [[12, 18], [26, 40]]}
train: {batch_size: 2, device: cpu, precision: fp32, warmup_steps: 0, schedule: constant}
"""


def tiny_config(folder: Path, *overrides: str) -> Config:
    """Return the config of the tiny detector, with the cache of its drawn scenes in `folder`."""
    caches = [f"data.{split}.cache={folder / 'cache'}" for split in ("train", "val")]
    return config_from_text(TINY, "TINY", [*caches, *overrides])


def tiny_trainer(folder: Path, *overrides: str) -> Trainer:
    """Return a trainer of the tiny detector."""
    config = tiny_config(folder, *overrides)
    train = build_dataset(config, "train")
    val = build_dataset(config, "val", train.class_names)
    return build_trainer(config, build_trained_model(config, train), train, val, folder)


def names_of_the_library(registry: Registry) -> list[str]:
    """Return the names of the parts of `detector`, without the parts of tests."""
    return [name for name in registry.names() if registry.get(name).__module__.startswith("detector.")]
