"""Benchmarks of speed, and of remedies for imbalance."""
