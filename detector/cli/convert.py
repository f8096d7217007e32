"""Write a data set, with its images, in another format: COCO, Pascal VOC or YOLO.

Example: detector convert --cfg bccd_focal.yaml data.root=DIR --to yolo --out cells
"""

import argparse
import logging
import shlex

from detector.core.command import out_folder
from detector.core.console import start_logging

log = logging.getLogger("detector")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", default="own_images.yaml", help="config with the data sets to convert")
    parser.add_argument("--to", choices=("coco", "voc", "yolo"), required=True)
    parser.add_argument("--out", type=out_folder, required=True, help="new folder")
    parser.add_argument("--link", action="store_true", help="create hard links to the images in place of copies")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_intermixed_args()
    # imported here, because --help must not import torch
    from detector.build import build_dataset, with_decisions
    from detector.config import load_config
    from detector.data.formats.conversion import plan_conversion

    config = load_config(args.cfg, args.overrides)

    start_logging()
    train = build_dataset(config, "train")
    splits = {"train": train, "val": build_dataset(with_decisions(config, train), "val", train.class_names)}
    plan = plan_conversion(splits, args.to)
    specs = plan.write(args.out, link=args.link)
    for split, dataset in splits.items():
        log.info("%s: %s", split, dataset.describe())
    for lost in plan.lost:
        log.warning("the format %s cannot store %s", args.to, lost)
    for changed in plan.changed:
        log.warning("%s", changed)
    sections = [
        f"data.{split}={{{', '.join(f'{key}: {value}' for key, value in spec.items())}}}"
        for split, spec in specs.items()
    ]
    log.info(
        "overrides to train on %s: %s", args.to, shlex.join([f"data.root={args.out}", "data.split=null", *sections])
    )
