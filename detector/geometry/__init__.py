"""Pure tensor functions on boxes and anchors, and the rules that match anchors to ground truths."""

from detector.geometry import assignment as _assignment  # noqa: F401  (registers the assigners)
from detector.registry import ASSIGNERS

__all__ = ["ASSIGNERS"]
