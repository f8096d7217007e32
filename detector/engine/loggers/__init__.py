"""Loggers: one module for each record of a run. The import of this package registers the shipped loggers."""

from detector.engine.loggers.base import LOGGERS, Logger
from detector.engine.loggers.csv import CsvLogger
from detector.engine.loggers.tensorboard import TensorBoardLogger

__all__ = ["LOGGERS", "CsvLogger", "Logger", "TensorBoardLogger"]
