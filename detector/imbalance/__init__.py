"""Instruments that measure the foreground/background imbalance."""
