"""The figures of a report: one module for each kind of source."""

from detector.lab.report.figures.anatomy import draw_anatomy
from detector.lab.report.figures.census import draw_census
from detector.lab.report.figures.classes import draw_classes
from detector.lab.report.figures.comparison import draw_comparison
from detector.lab.report.figures.probe import draw_probe
from detector.lab.report.figures.study import draw_study
from detector.lab.report.figures.training import draw_training

__all__ = [
    "draw_anatomy",
    "draw_census",
    "draw_classes",
    "draw_comparison",
    "draw_probe",
    "draw_study",
    "draw_training",
]
