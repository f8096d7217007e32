"""Experiments: studies of settings, and reports of runs."""
