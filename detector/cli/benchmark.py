"""Measure speeds on this machine, and the effect of remedies for imbalance.

Speeds are ratios of medians. The candidates run alternately (A B A B) in one process.

Example: detector benchmark training --out tools/benchmarks/training_cpu.json
"""

import argparse
from typing import Any

from detector.core.command import out_file


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, text in (("training", "a training step"), ("inference", "images to boxes")):
        kind = kinds.add_parser(name, help=f"{text} against torchvision's RetinaNet, R50")
        kind.add_argument("--side", type=int, default=512, help="image side in pixels")
        kind.add_argument("--batch-size", type=int, default=2)
        kind.add_argument("--rounds", type=int, default=7)
        kind.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    compiling = "also measure with torch.compile"
    kinds.choices["training"].add_argument("--compile", dest="with_compile", action="store_true", help=compiling)
    for name, text in (
        ("loader", "the speed of the loader against the training step of a config"),
        ("threads", "loader workers, threads and wait policies; later trainings of the config use the fastest"),
    ):
        kind = kinds.add_parser(name, help=text)
        kind.add_argument("--cfg", required=True, help="a config's name in configs/, or a path")
        kind.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of loader workers")
        kind.add_argument("--steps", type=int, default=20)
        kind.add_argument("--rounds", type=int, default=3)
        kind.add_argument("overrides", nargs="*", metavar="key.path=value")
    kind = kinds.add_parser("steps", help="the training step of each variant of a study, and its assignment")
    kind.add_argument("--cfg", default="assignment.yaml", help="a study's name in configs/studies/, or a path")
    kind.add_argument("--rounds", type=int, default=15)
    kind.add_argument("overrides", nargs="*", metavar="key.path=value")
    kind = kinds.add_parser("evaluation", help="COCO's metrics by hotcoco and by pycocotools")
    kind.add_argument("--images", type=int, default=5000)
    kind.add_argument("--detections", type=int, default=100, help="number of detections of each image")
    kind.add_argument("--rounds", type=int, default=3)
    kind = kinds.add_parser("census", help="a census of as many annotations as COCO has, in seconds")
    kind.add_argument("--images", type=int, default=5000)
    kind.add_argument("--cfg", default="coco_focal_r50_1x.yaml", help="a config's name in configs/, or a path")
    kind = kinds.add_parser(
        "losses", help="forward and backward pass of each loss, with 120,000 anchors x 80 classes in each image"
    )
    kind.add_argument("--batch-sizes", type=int, nargs="+", help="numbers of images; default 1, and also 16 on a GPU")
    kind.add_argument("--precisions", choices=("fp32", "bf16", "fp16"), nargs="+", default=["fp32", "bf16"])
    kind.add_argument("--rounds", type=int, default=7)
    kind.add_argument("--compile", dest="with_compile", action="store_true", help=compiling)
    kind.add_argument("--only", default="", help="only the losses whose name contains this text")
    kind = kinds.add_parser("imbalanced", help="remedies on a binary problem with the imbalance of card fraud, 1 : 578")
    kind.add_argument("--seeds", type=int, default=5)
    for kind in kinds.choices.values():
        kind.add_argument("--out", type=out_file, help="JSON file; the table is written next to it as Markdown")
    args = vars(parser.parse_args())
    # imported here, because --help must not import torch
    from detector.benchmarks import census, evaluation, imbalanced, inference, loader, losses, steps, threads, training
    from detector.benchmarks.timing import machine
    from detector.core.files import write_json, write_text
    from detector.core.tables import markdown, show

    kind, out = args.pop("kind"), args.pop("out")
    kinds = (census, evaluation, imbalanced, inference, loader, losses, steps, threads, training)
    measured: dict[str, Any] = next(module for module in kinds if module.__name__.endswith(kind)).run(**args)
    result: dict[str, Any] = measured | {"machine": machine()}
    title = ", ".join(f"{key} {value}" for key, value in result.items() if key not in ("rows", "machine"))
    columns, rows = cells(result["rows"])
    show(columns, rows, f"{title}\n{result['machine']}")
    if out:
        write_json(out, result)
        write_text(out.with_suffix(".md"), f"{title}\n\n{result['machine']}\n\n{markdown(columns, rows)}")


def cells(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Return the column names and the texts of the cells. A value `x` and its deviation `x_std` share a cell."""
    columns = [name for name in max(rows, key=len) if not name.endswith("_std")]

    def text(row: dict, name: str) -> str:
        values = [row[key] for key in (name, f"{name}_std") if key in row]
        return " ± ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)

    return columns, [[text(row, name) for name in columns] for row in rows]
