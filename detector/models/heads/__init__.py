"""The heads, one file for each kind. Importing this package registers them."""

from detector.models.heads import anchors, points  # noqa: F401
from detector.models.heads.base import HEADS, Head

__all__ = ["HEADS", "Head"]
