"""Count the foreground, ignored and background anchors of a data set by level, class, size and image, before training.

Example: detector census --cfg bccd_focal.yaml data.root=DIR
"""

import argparse
import logging
import shlex
from dataclasses import replace
from pathlib import Path

from detector.core.command import next_steps, out_folder
from detector.core.console import start_logging

log = logging.getLogger("detector")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="a config's name in configs/, or a path")
    parser.add_argument("--split", choices=("train", "val"), default="train")
    parser.add_argument("--out", type=out_folder, help="folder for census.json; default runs/census/<config>_<split>")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_intermixed_args()
    # imported here, because --help must not import torch
    from detector.build import build_census, build_dataset
    from detector.config import load_config
    from detector.core.files import write_json
    from detector.core.tables import show
    from detector.imbalance import census_readings as readings
    from detector.imbalance.advisor import gains_recall

    config = load_config(args.cfg, args.overrides)

    start_logging()

    folder = out_folder(args.out or f"runs/census/{Path(args.cfg).stem}_{args.split}")
    dataset = build_dataset(config, args.split)
    part = " (data.split divides the images of data.train into train and val)" if config.data.split else ""
    log.info("counting the anchors of the %s split%s: %s", args.split, part, dataset.describe())
    census = replace(build_census(config, dataset), split=args.split)
    write_json(folder / "census.json", census.to_json())

    kinds = ("foreground", "ignored", "background")
    levels = [[row.level, *(f"{getattr(row, kind):,}" for kind in kinds)] for row in census.by_level]
    total = ["all", *(f"{getattr(census.anchors, kind):,}" for kind in kinds)]
    show(["level", *kinds], [*levels, total], "anchors", readings.ANCHOR_TERMS)
    classes = sorted(census.by_class, key=lambda row: -row.objects)
    rows = [[c.name, f"{c.objects:,}", f"{c.images:,}", f"{c.foreground:,}"] for c in classes]
    show(["class", "objects", "images", "foreground anchors"], rows, "classes")
    titles = ["size", "objects", "foreground anchors", "without anchor", "low quality only"]
    rows = [
        [size.name, *(f"{n:,}" for n in (size.objects, size.foreground, size.unmatched, size.low_quality))]
        for size in census.by_size
    ]
    show(titles, rows, "objects", readings.OBJECT_TERMS)
    log.info("%s", readings.describe(census))
    if (fit := census.anchor_suggestion) and gains_recall(fit):
        sizes = [[round(s) for s in level] for level in fit.sizes]
        overrides = shlex.join([f"model.head.sizes={sizes}", f"model.head.ratios={fit.ratios}"])
        log.info("the suggested anchors: %s", overrides)
    log.info("wrote %s/census.json", folder)
    commands = {
        shlex.join(
            ["detector", "advise", "--census", str(folder), "--cfg", args.cfg, *args.overrides]
        ): "settings that fit the data",
        shlex.join(["detector", "train", "--cfg", args.cfg, *args.overrides]): "train and evaluate",
    }
    log.info("%s", next_steps(commands))
