"""The detector network: backbone, feature pyramid, heads, and what reads its output."""
