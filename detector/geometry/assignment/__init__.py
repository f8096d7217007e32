"""The assignment rules, one file for each rule. Importing this package registers the rules."""

from detector.geometry.assignment.atss import ATSSAssigner
from detector.geometry.assignment.base import ASSIGNERS, Assigner
from detector.geometry.assignment.max_iou import MaxIoUAssigner

__all__ = ["ASSIGNERS", "ATSSAssigner", "Assigner", "MaxIoUAssigner"]
