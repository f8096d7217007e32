"""Use a trained detector: on images and videos, from Python, and in other programs."""
