"""Measure for each loss, on the same scores of a trained model, which elements cause the loss and get the gradient.

Example: detector probe --checkpoint runs/first/checkpoints/best.pt
"""

import argparse
import logging
import shlex
from dataclasses import replace

from detector.core.command import next_steps, out_folder, user_path
from detector.core.console import start_logging
from detector.core.errors import UserError

log = logging.getLogger("detector")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=user_path, required=True)
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument("--images", type=int, help="number of images, evenly spread over the split; default all")
    parser.add_argument("--out", type=out_folder, help="folder for probe.json; default probe_<split> in the run folder")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if any")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_intermixed_args()
    # imported here, because --help must not import torch
    from detector.build import build_dataset, build_probe
    from detector.config import data_part, with_parts
    from detector.core.files import write_json
    from detector.core.tables import show
    from detector.deploy.predict import Detector
    from detector.imbalance import probe_readings as readings
    from detector.imbalance.vocabulary import GROUPS

    start_logging()

    detector = Detector.load(args.checkpoint, overrides=args.overrides, device=args.device)
    config = detector.config
    config = with_parts(config, data_part(config, args.split), config.assigner, config.loss.classification)
    dataset = build_dataset(config, args.split, detector.class_names)
    if args.images is not None:
        if args.images < 1:
            raise UserError(f"--images {args.images} is less than 1", "give --images 1 or more")
        dataset = dataset.evenly(args.images)
    folder = out_folder(args.out or args.checkpoint.parent.parent / f"probe_{args.split}")
    log.info("probing on %s", dataset.describe())
    probe = build_probe(config, dataset, detector.device, detector.dtype)(detector.model)
    result = replace(
        probe.compute(),
        split=args.split,
        class_names=list(dataset.class_names),
        trained_with=config.loss.classification.to_dict(),
    )

    write_json(folder / "probe.json", result.to_json())
    rows = [["number of elements", *(f"{result.elements[group]:,}" for group in GROUPS), ""]]
    trained = readings.chosen(result)[0]
    for name in sorted(result.losses, key=lambda name: (name != trained, -result.losses[name].gradient_foreground)):
        loss = result.losses[name]
        rows.append([name, *(f"{loss.gradient[group]:.1%}" for group in GROUPS), f"{loss.loss_foreground:.1%}"])
    columns = ["loss", *(readings.COLUMNS[group] for group in GROUPS), "fg share of the loss"]
    title = "share of the gradient of foreground (fg) and background (bg); the loss of the training is first"
    show(columns, rows, title, readings.TERMS)
    log.info("%s", readings.describe(result))
    scores = result.anchor_level
    assert scores is not None
    log.info(
        "scores of the anchors: ROC-AUC %.4f, average precision %.4f (of single anchors, so not the AP of detections)",
        scores.roc_auc,
        scores.average_precision,
    )
    log.info("wrote %s/probe.json", folder)
    path = shlex.quote(str(folder))
    cfg = shlex.quote(str(args.checkpoint.parent.parent / "config.yaml"))
    commands = {
        f"detector report {path} --out probe.html": "the figures of this probe",
        f"detector advise --census CENSUS --probe {path} --cfg {cfg}": "settings that fit the data and this model",
    }
    log.info("%s", next_steps(commands))
