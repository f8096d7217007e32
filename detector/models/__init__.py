"""The detector network: backbone, feature pyramid, head, pretrained weights, and postprocessing."""
