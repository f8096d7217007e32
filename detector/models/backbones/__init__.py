"""The backbones, one file for each family. Importing this package registers them."""

from detector.models.backbones import resnet, timm  # noqa: F401
from detector.models.backbones.base import BACKBONES, Backbone

__all__ = ["BACKBONES", "Backbone"]
