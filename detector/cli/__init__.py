"""The command `detector`, with a module for each subcommand.

Large packages such as torch are imported only when a subcommand runs.
"""

import argparse
import importlib
import os
import sys
from importlib.metadata import version
from typing import NoReturn

from detector.core import command

DISTRIBUTION = "imbalance-detector"
COMMANDS = {
    "train": "train a detector, evaluate it and write a run folder",
    "evaluate": "compute COCO's metrics of a trained detector and analyze its errors",
    "infer": "detect objects in images, videos and camera streams",
    "export": "write a checkpoint as ONNX or torch.export",
    "check": "list the errors and oddities of a data set",
    "convert": "write a data set as COCO, Pascal VOC or YOLO",
    "census": "count foreground and background anchors before training",
    "probe": "measure the gradient of each loss on a trained model",
    "advise": "suggest settings against the imbalance",
    "study": "train a grid of variants, levels and seeds",
    "keys": "show the keys of the config, with values and defaults",
    "report": "write an HTML page of runs, probes, censuses and studies",
    "benchmark": "measure speeds on this machine",
}


def main() -> NoReturn:
    """Run the subcommand that the command line names."""
    commands = "\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="detector",
        description=(
            "Train one-stage object detectors, and measure and repair the imbalance of foreground and background."
        ),
        epilog=f"commands:\n{commands}\n\n`detector COMMAND --help` describes the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"detector {version(DISTRIBUTION)}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    name = parser.parse_args(sys.argv[1:2]).command
    sys.argv = [f"detector {name}", *sys.argv[2:]]
    run(name)


def run(name: str) -> NoReturn:
    """Run a subcommand with the arguments in `sys.argv`, and exit."""
    sys.path.append(os.getcwd())  # a config may import modules from there, as with `python -m detector`
    command.run(importlib.import_module(f"detector.cli.{name}").main)
