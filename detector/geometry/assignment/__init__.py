"""The assignment rules, one file for each rule. Importing this package registers the rules."""

from detector.geometry.assignment.atss import ATSSAssigner
from detector.geometry.assignment.base import ASSIGNERS, Assigner
from detector.geometry.assignment.centre import CentreAssigner
from detector.geometry.assignment.max_iou import MaxIoUAssigner
from detector.geometry.assignment.sim_ota import SimOTAAssigner
from detector.geometry.assignment.soft_label import SoftLabelAssigner
from detector.geometry.assignment.task_aligned import TaskAlignedAssigner

__all__ = [
    "ASSIGNERS",
    "ATSSAssigner",
    "Assigner",
    "CentreAssigner",
    "MaxIoUAssigner",
    "SimOTAAssigner",
    "SoftLabelAssigner",
    "TaskAlignedAssigner",
]
