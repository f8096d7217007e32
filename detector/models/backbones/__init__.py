"""Backbones: an image becomes feature maps."""
