"""Detect objects in images, videos and camera streams, draw their boxes and write detections.json.

Examples: detector infer --checkpoint runs/first/checkpoints/best.pt photos/ 'more/*.jpg' --out found --score 0.4
          detector infer --checkpoint runs/first/checkpoints/best.pt clip.mp4 --classes disc ring --save csv yolo
          detector infer --checkpoint runs/first/checkpoints/best.pt 0 --frames 500
"""

import argparse
import logging
from pathlib import Path

from detector.core.command import out_folder, user_path
from detector.core.console import start_logging
from detector.core.errors import UserError

log = logging.getLogger("detector")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=user_path, required=True)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, video, folder, glob or number of a camera")
    parser.add_argument("--out", type=out_folder, default="detections", help="output folder; default detections")
    parser.add_argument("--score", type=float, default=0.3, help="detections have a score above this; default 0.3")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="classes to report; default all")
    parser.add_argument(
        "--save", nargs="+", choices=("coco", "csv", "yolo"), default=["coco"], help="formats; default coco"
    )
    parser.add_argument("--frames", type=int, help="highest number of frames of each video and camera; default all")
    parser.add_argument("--batch-size", type=int, help="pictures in a batch; default evaluation.batch_size")
    parser.add_argument("--flip", action="store_true", help="also detect in the mirrored picture (twice the time)")
    parser.add_argument(
        "--scales",
        nargs="+",
        type=float,
        metavar="S",
        help="factors of the size, for example 0.8 1.0 1.25; default 1.0",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto: a GPU if any")
    args = parser.parse_intermixed_args()
    # imported here, because --help must not import torch
    from detector.deploy.inference import loop
    from detector.deploy.inference.sinks import FORMATS, Drawings
    from detector.deploy.inference.sources import find_sources
    from detector.deploy.predict import Detector

    start_logging()

    if args.frames is not None and args.frames < 1:
        raise UserError(f"--frames {args.frames} is less than 1", "give --frames 1 or more")
    sources = find_sources(args.inputs)
    inputs = {source.file.resolve() for source in sources if isinstance(source.file, Path)}
    if inputs & {(args.out / source.drawing).resolve() for source in sources}:
        raise UserError(
            f"--out {args.out}: the drawn pictures would overwrite the input images", "choose another folder"
        )
    overrides = [f"evaluation.score_threshold={args.score}"]
    if args.batch_size is not None:
        overrides.append(f"evaluation.batch_size={args.batch_size}")
    if args.flip:
        overrides.append("evaluation.flip=true")
    if args.scales is not None:
        overrides.append(f"evaluation.scales={args.scales}")
    detector = Detector.load(args.checkpoint, overrides=overrides, device=args.device)
    detector.labels_of(args.classes or ())  # raises for an unknown class before any file is written
    args.out.mkdir(parents=True, exist_ok=True)
    names = detector.class_names, detector.category_ids
    sinks = [FORMATS[name](args.out, *names) for name in dict.fromkeys(args.save)]
    log.info("writing pictures and detections (%s) to %s", ", ".join(dict.fromkeys(args.save)), args.out)
    loop.run(
        detector,
        sources,
        [*sinks, Drawings(args.out, detector.class_names)],
        classes=args.classes,
        max_frames=args.frames,
    )
