"""Measurements behind every claimed speed."""
