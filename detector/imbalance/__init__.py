"""Instruments that show the foreground/background imbalance."""
