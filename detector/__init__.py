"""Train one-stage object detectors; see, measure and repair foreground/background imbalance."""
