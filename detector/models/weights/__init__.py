"""Pretrained weights, one file for each source."""
