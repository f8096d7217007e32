"""Heads: feature maps become class scores and boxes."""
