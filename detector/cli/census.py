"""Count the foreground, ignored and background anchors of a data set by level, class, size and image, before training.

Example: detector census --cfg bccd_focal.yaml data.root=DIR
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from detector.core.command import out_folder
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

    config = load_config(args.cfg, args.overrides)

    start_logging()

    folder = out_folder(args.out or f"runs/census/{Path(args.cfg).stem}_{args.split}")
    dataset = build_dataset(config, args.split)
    log.info("counting the anchors of %s", dataset.describe())
    census = replace(build_census(config, dataset), split=args.split)
    write_json(folder / "census.json", census.to_json())

    kinds = ("foreground", "ignored", "background")
    levels = [[row.level, *(f"{getattr(row, kind):,}" for kind in kinds)] for row in census.by_level]
    show(["level", *kinds], [*levels, ["all", *(f"{getattr(census.anchors, kind):,}" for kind in kinds)]], "anchors")
    classes = sorted(census.by_class, key=lambda row: -row.objects)
    rows = [[c.name, f"{c.objects:,}", f"{c.images:,}", f"{c.foreground:,}"] for c in classes]
    show(["class", "objects", "images", "foreground anchors"], rows)
    titles = ["size", "objects", "foreground anchors", "without anchor", "low quality only"]
    rows = [
        [size.name, *(f"{n:,}" for n in (size.objects, size.foreground, size.unmatched, size.low_quality))]
        for size in census.by_size
    ]
    show(titles, rows)
    quantiles = census.by_image.background_per_foreground.quantiles
    log.info("background anchors per foreground anchor: %.0f", census.ratio)
    log.info("quantiles of this ratio over the images: %s", ", ".join(f"{v:.0f} at {q}%" for q, v in quantiles.items()))
    if fit := census.anchor_suggestion:
        recall, sizes = fit.recall, [[round(s) for s in level] for level in fit.sizes]
        log.info(
            "objects with a matching anchor: %.1f%% now, %.1f%% with model.head.sizes=%s and model.head.ratios=%s",
            *(100 * recall.now, 100 * recall.suggested, sizes, fit.ratios),
        )
    log.info("wrote %s/census.json, which detector advise and detector report can read", folder)
