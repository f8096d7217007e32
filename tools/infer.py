"""Detect objects in images: draws the labelled boxes and writes detections.json (COCO results).

Example: tools/infer.py --checkpoint runs/first/checkpoints/best.pt photos/ 'more/*.jpg' --out found --score 0.4
"""

import argparse
import logging
import time
from pathlib import Path

from detector.command import run
from detector.errors import UserError

log = logging.getLogger("detector")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, folder or glob")
    parser.add_argument("--out", type=Path, default=Path("detections"), help="folder for pictures and detections.json")
    parser.add_argument("--score", type=float, default=0.3, help="lowest score to report")
    args = parser.parse_intermixed_args()
    # only now: --help need not wait for torch
    from detector.data.images import find_images, read_image, write_image
    from detector.drawing import draw_boxes
    from detector.engine.run_folder import write_json
    from detector.evaluation.coco import to_coco_results
    from detector.predict import Detector

    logging.basicConfig(level=logging.INFO, format="%(message)s")

    paths = find_images(args.inputs)
    pictures = unique_names(paths)
    if {p.resolve() for p in paths} & {(args.out / name).resolve() for name in pictures}:
        raise UserError(f"--out {args.out}: the pictures would overwrite the images themselves; choose another folder")
    detector = Detector.load(args.checkpoint)
    results, unreadable, started = [], [], time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    for image_id, (path, name) in enumerate(zip(paths, pictures, strict=True), start=1):
        try:
            image = read_image(path)
        except UserError as error:  # the other images' results are kept
            unreadable.append(str(error))
            continue
        (found,) = detector.predict([image], score_threshold=args.score)
        for result in to_coco_results(image_id, found, detector.category_ids):
            class_name = detector.class_names[detector.category_ids.index(result["category_id"])]
            results.append({**result, "file_name": str(path), "category": class_name})
        picture = draw_boxes(
            image, found.boxes.numpy(), found.labels.numpy(), detector.class_names, found.scores.numpy()
        )
        write_image(args.out / name, picture)
        log.info("%s: %d objects", path, len(found.boxes))
    write_json(args.out / "detections.json", results)
    num_read = len(paths) - len(unreadable)
    rate = num_read / (time.perf_counter() - started)
    log.info("%d images, %.1f images/s; pictures and detections.json in %s", num_read, rate, args.out)
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(paths)} images left out: {'; '.join(unreadable)}")


def unique_names(paths: list[Path]) -> list[str]:
    """Each picture keeps its file name; where two folders hold the same, the later ones get a number."""
    taken: set[str] = set()
    names = []
    for path in paths:
        name, count = path.name, 1
        while name in taken:
            count += 1
            name = f"{path.stem}_{count}{path.suffix}"
        taken.add(name)
        names.append(name)
    return names


if __name__ == "__main__":
    run(main)
