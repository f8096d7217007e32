"""Checks of a data set, and the findings that they report."""
