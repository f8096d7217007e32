"""Detect objects in image files, videos and cameras, and write detections and annotated pictures."""
