"""Use a trained detector: from Python, on images and videos, and in other programs."""
