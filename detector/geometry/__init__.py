"""Pure tensor functions on boxes and anchors, and the rules that match anchors to ground truths."""

from detector.core.registry import ASSIGNERS
from detector.geometry import assignment as _assignment  # noqa: F401  (registers the assigners)

__all__ = ["ASSIGNERS"]
