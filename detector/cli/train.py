"""Train a detector, evaluate it and write a run folder.

Example: detector train --cfg retina_focal.yaml --out runs/first train.epochs=2 loss.classification.gamma=1.0
"""

import argparse
import logging
from pathlib import Path

from detector.core.command import out_folder
from detector.core.console import start_logging

log = logging.getLogger("detector")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="a config's name in configs/, or a path")
    parser.add_argument("--out", type=out_folder, help="run folder; default runs/<config>/<time>")
    parser.add_argument(
        "--resume", help="auto: the last checkpoint of --out, else of the newest run of --cfg; or a file"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_intermixed_args()
    # imported here, because --help must not import torch
    from detector.config import load_config
    from detector.core.machine import take_fastest
    from detector.training import train_config

    config = load_config(args.cfg, args.overrides)
    if (fastest := take_fastest(args.cfg)) and config.data.num_workers == "auto":
        data = config.data.model_copy(update={"num_workers": fastest["workers"]})
        config = config.model_copy(update={"data": data})

    start_logging()
    if fastest:
        log.info("as measured here on %(measured)s: %(workers)s loader workers, %(openmp)s", fastest)
    train_config(config, Path(args.cfg).stem, args.out, args.resume)
