"""The command `detector`: one module for each subcommand. Nothing heavy is imported before a subcommand runs."""

import argparse
import importlib
import os
import sys
from importlib.metadata import version
from typing import NoReturn

from detector.core import command

DISTRIBUTION = "imbalance-detector"
COMMANDS = {
    "train": "train a detector, evaluate it and leave a run folder",
    "evaluate": "COCO's numbers of a trained detector, and where they are lost",
    "infer": "detect objects in images, videos and what a camera sees",
    "export": "write a checkpoint as ONNX or torch.export",
    "check": "list what is wrong or odd with a data set",
    "convert": "write a data set as COCO, Pascal VOC or YOLO",
    "census": "count foreground and background anchors before training",
    "probe": "show what each loss makes of a trained model",
    "advise": "suggest settings against the imbalance",
    "study": "train a grid of settings, levels and seeds",
    "keys": "show the keys of the config, their values and defaults",
    "report": "make one HTML page of runs, probes, censuses and studies",
    "benchmark": "measure speeds on this machine",
}


def main() -> NoReturn:
    """Run the subcommand that the command line names."""
    listed = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="detector",
        description="Train one-stage object detectors; see, measure and repair foreground/background imbalance.",
        epilog=f"commands:\n{listed}\n\n`detector COMMAND --help` says more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"detector {version(DISTRIBUTION)}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    name = parser.parse_args(sys.argv[1:2]).command
    sys.argv = [f"detector {name}", *sys.argv[2:]]
    run(name)


def run(name: str) -> NoReturn:
    """Run a subcommand with the arguments in `sys.argv`, and exit."""
    sys.path.append(os.getcwd())  # a config may import a part from a file there, as with `python -m detector`
    command.run(importlib.import_module(f"detector.cli.{name}").main)
