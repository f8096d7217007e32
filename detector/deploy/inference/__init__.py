"""From image files, videos and cameras to files of detections and annotated pictures."""
