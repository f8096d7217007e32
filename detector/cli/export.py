"""Export a checkpoint as a file for other programs: ONNX, a program of torch.export, or a format of an imported module.

The suffix of --out chooses the format. The file takes batches of any number of images, which are padded to one size.
detector/deploy/export/graphs.py documents its inputs and outputs.

Examples: detector export --checkpoint runs/first/checkpoints/best.pt --nms --size 512 672
          detector export --checkpoint runs/first/checkpoints/best.pt --out model.tflite imports=[my_exporter]
"""

import argparse
import logging

from detector.core.command import out_file, user_path
from detector.core.console import start_logging

log = logging.getLogger("detector")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=user_path, required=True)
    parser.add_argument("--out", type=out_file, help="X.onnx, or X.pt2 for torch.export; default beside the checkpoint")
    parser.add_argument("--nms", action="store_true", help="with post-processing: boxes, scores and labels come out")
    size = "of the images in pixels; default a square of evaluation's side"
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help=size)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_intermixed_args()
    # imported here, so that --help does not wait for torch
    from detector.deploy.export import export
    from detector.deploy.predict import Detector

    start_logging()

    path = args.out or out_file(args.checkpoint.with_suffix(".onnx"))
    detector = Detector.load(args.checkpoint, overrides=args.overrides, device="cpu")
    height, width = export(detector, path, size=args.size and tuple(args.size), nms=args.nms)
    log.info("%s: %d classes, images %d high and %d wide", path, len(detector.class_names), height, width)
