"""Speeds, as ratios measured side by side in one process (A B A B, medians).

Example: tools/benchmark.py training --out tools/benchmarks/training_cpu.json
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from detector.benchmarks import training
from detector.benchmarks.timing import machine
from detector.command import run
from detector.engine.run_folder import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kind = kinds.add_parser("training", help="a training step against torchvision's RetinaNet, R50")
    kind.add_argument("--side", type=int, default=512, help="image side in pixels")
    kind.add_argument("--batch-size", type=int, default=2)
    kind.add_argument("--rounds", type=int, default=7)
    kind.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    kind.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()

    result = training.run(side=args.side, batch_size=args.batch_size, rounds=args.rounds, precision=args.precision) | {
        "machine": machine()
    }
    show(result)
    if args.out:
        write_json(args.out, result)


def show(result: dict) -> None:
    title = ", ".join(f"{key} {value}" for key, value in result.items() if key not in ("rows", "machine"))
    table = Table(title=f"{title}\n{result['machine']}")
    for column in result["rows"][0]:
        table.add_column(column, justify="left" if column == "name" else "right")
    for row in result["rows"]:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


if __name__ == "__main__":
    run(main)
