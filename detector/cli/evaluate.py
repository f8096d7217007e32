"""Evaluate a trained detector on a data set: COCO's metrics, TIDE's errors, class confusion and calibration.

Examples: detector evaluate --checkpoint runs/first/checkpoints/best.pt
          detector evaluate --cfg coco_focal_r50_1x.yaml model.weights=torchvision_retinanet:FILE
"""

import argparse
import logging
import shlex
from collections import ChainMap
from pathlib import Path

from detector.core.command import next_steps, out_folder, user_path
from detector.core.console import start_logging
from detector.core.errors import UserError

log = logging.getLogger("detector")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=user_path, help="checkpoint; without a checkpoint, the model that --cfg initializes"
    )
    parser.add_argument("--cfg", help="a config's name in configs/, or a path; default the config of the checkpoint")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument(
        "--out",
        type=out_folder,
        help="folder for metrics.json and detections.json; default evaluation_<split> in the run's folder",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if any")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_intermixed_args()
    # imported here, because --help must not import torch
    from detector.build import build_dataset, build_evaluation, build_trained_model, with_targets
    from detector.config import data_part, load_config, with_parts
    from detector.core.distributed import gather, process_group, rank
    from detector.core.files import write_json
    from detector.core.structures import Batch, Predictions, Targets
    from detector.deploy.predict import Detector
    from detector.engine.outcome import save_evaluation, summary
    from detector.evaluation.anatomy import background_per_foreground, make_anatomy
    from detector.evaluation.anatomy_text import describe
    from detector.evaluation.anchor_scores import AnchorScores

    start_logging()

    if args.checkpoint is None and args.cfg is None:
        raise UserError("there is no model to evaluate", "give --checkpoint PATH, or --cfg with model.weights")
    if args.checkpoint is None:
        config = load_config(args.cfg, args.overrides)
        dataset = build_dataset(config, args.split)
        model = build_trained_model(config, dataset)
        detector = Detector(model, config, dataset.class_names, dataset.category_ids, args.device)
    else:
        detector = Detector.load(args.checkpoint, cfg=args.cfg, overrides=args.overrides, device=args.device)
        config = with_parts(detector.config, data_part(detector.config, args.split), detector.config.assigner)
        dataset = build_dataset(config, args.split, detector.class_names)
    num_classes = len(dataset.class_names)
    run_folder = args.checkpoint.parent.parent if args.checkpoint else Path()
    folder = out_folder(args.out or run_folder / f"evaluation_{args.split}")
    log.info("evaluating on %s", dataset.describe())
    scores, ratios = AnchorScores(), {}

    def add_batch(batch: Batch, predictions: Predictions, targets: Targets) -> None:
        scores.update(predictions.logits, targets.labels)
        ratios.update(zip(batch.image_ids, background_per_foreground(targets.labels, num_classes), strict=True))

    with process_group(detector.device):
        evaluate = build_evaluation(
            config, dataset, detector.device, detector.dtype, with_targets(config, dataset, add_batch)
        )
        metrics, detections = evaluate(detector.model)
        anchor_level, ratios = scores.compute(), dict(ChainMap(*gather(ratios)))
        if rank() > 0:
            return
    settings = {"backend": config.evaluation.backend, "max_detections": config.evaluation.max_detections}
    anatomy = make_anatomy(dataset.ground_truth(), detections, metrics, ratios, anchor_level, **settings)
    save_evaluation(folder, metrics, detections)
    write_json(folder / "anatomy.json", anatomy.to_json())
    log.info("%s\n%s", summary(metrics, detections), describe(anatomy))
    log.info("wrote metrics.json, anatomy.json and detections.json to %s", folder)
    commands = {f"detector report {shlex.quote(str(folder))} --out evaluation.html": "the figures of this evaluation"}
    best = anatomy.curves.best_f1
    if args.checkpoint is not None and best.f1:
        score = f"--score {best.score:.2f}"
        infer = f"detector infer --checkpoint {shlex.quote(str(args.checkpoint))} IMAGES {score}"
        commands[infer] = "boxes on new images, at the score with the best F1"
    log.info("%s", next_steps(commands))
