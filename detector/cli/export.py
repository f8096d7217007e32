"""Export a checkpoint to a file for other programs: ONNX, torch.export, or the format of an imported module.

The suffix of --out chooses the format. The exported model accepts batches of any number of images, all padded to the
same size. detector/deploy/export/graphs.py documents its inputs and outputs.

Examples: detector export --checkpoint runs/first/checkpoints/best.pt --nms --size 512 672
          detector export --checkpoint runs/first/checkpoints/best.pt --out model.tflite imports=[my_exporter]
"""

import argparse
import logging

from detector.core.command import out_file, user_path
from detector.core.console import start_logging

log = logging.getLogger("detector")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=user_path, required=True)
    parser.add_argument(
        "--out", type=out_file, help="X.onnx, or X.pt2 for torch.export; default next to the checkpoint"
    )
    parser.add_argument("--nms", action="store_true", help="add post-processing, with outputs boxes, scores and labels")
    size = "size of the images in pixels; default a square with the side of an evaluation"
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help=size)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_intermixed_args()
    # imported here, because --help must not import torch
    from detector.deploy.export import export
    from detector.deploy.predict import Detector

    start_logging()

    path = args.out or out_file(args.checkpoint.with_suffix(".onnx"))
    detector = Detector.load(args.checkpoint, overrides=args.overrides, device="cpu")
    height, width = export(detector, path, size=args.size and tuple(args.size), nms=args.nms)
    log.info("wrote %s: %d classes, images of %d x %d pixels (height x width)",
             path, len(detector.class_names), height, width)  # fmt: skip
