"""List the errors and oddities of a data set, in its annotations and in each image file.

The command changes no file. Its exit code is 1 if a training would stop.

Example: detector check --cfg bccd_focal.yaml data.root=DIR
         detector check 'data.train={type: voc, images: photos, annotations: labels}'
"""

import argparse
import json
import logging
import shlex
import sys
from typing import Any

from detector.core.command import next_steps
from detector.core.console import start_logging
from detector.core.wording import counted

log = logging.getLogger("detector")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", default="own_images.yaml", help="a config's name in configs/, or a path")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--fast", action="store_true", help="do not open the images")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_intermixed_args()
    # imported here, because --help must not import torch
    from rich.console import Console
    from rich.progress import Progress

    from detector.build import divide, read_dataset, with_decisions
    from detector.config import load_config
    from detector.core.errors import UserError
    from detector.core.machine import cache_folder
    from detector.core.tables import show
    from detector.data.checks.findings import KINDS, Findings
    from detector.data.checks.inspection import look_at_all, report_files, report_leaks, report_overlaps

    config = load_config(args.cfg, args.overrides)

    start_logging()
    splits = ["train"] if config.data.val is None else ["train", "val"]
    findings, datasets = {split: Findings("skip") for split in splits}, {}
    for split in splits:
        try:
            classes = datasets["train"].class_names if "train" in datasets else None
            datasets[split] = read_dataset(config, split, findings[split], classes)
            config = with_decisions(config, datasets["train"]) if split == "train" else config
        except UserError as error:
            findings[split].add("data_set", [0], lambda _, error=error: str(error))
    for split, dataset in datasets.items():
        report_overlaps(dataset.records, dataset.class_names, findings[split])
    if not args.fast:
        paths = list(dict.fromkeys(record.path for dataset in datasets.values() for record in dataset.records))
        cache = cache_folder() / "images.json"
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("images", total=len(paths))
            verdicts = look_at_all(paths, cache, lambda: progress.advance(task))
        for split, dataset in datasets.items():
            report_files(dataset.records, verdicts, findings[split])
        parts = divide(config, datasets["train"]) if config.data.split and datasets else datasets
        if len(parts) == 2 and all(map(len, parts.values())):
            report_leaks(parts["train"].records, parts["val"].records, verdicts, findings[splits[-1]])

    stopping = {"fatal"} if config.data.invalid == "skip" else {"fatal", "invalid"}
    rows: list[dict[str, Any]] = [
        {"split": split, "kind": kind, "stops": KINDS[kind].level in stopping, "count": finding.count,
         "what": KINDS[kind].what, "becomes": KINDS[kind].becomes, "remedy": KINDS[kind].remedy,
         "examples": finding.examples}
        for split in splits for kind, finding in findings[split].by_kind.items()
    ]  # fmt: skip
    rows.sort(key=lambda row: (splits.index(row["split"]), not row["stops"]))
    if args.json:
        print(json.dumps({"images": {s: len(d) for s, d in datasets.items()}, "findings": rows}, indent=1))
    else:
        for split, dataset in datasets.items():
            log.info("data.%s: %s", split, dataset.describe())
        text = []
        for row in rows:
            level, effect = ("error", "stops the training") if row["stops"] else ("note", row["becomes"])
            text.append([level, row["split"], f"{row['count']:,}", row["what"], effect])
        show(["level", "split", "count", "finding", "effect in a training"], text, "findings")
        for (level, split, _, what, _), row in zip(text, rows, strict=True):
            log.info("%s, %s, %s: %s", level, split, what, row["remedy"])
            log.info("%s", "\n".join(f"    {example}" for example in row["examples"]))
    num_errors = sum(row["stops"] for row in rows)
    counts = f"{counted(num_errors, 'error')}, {counted(len(rows) - num_errors, 'note')}"
    if num_errors:
        log.info("%s: a training stops; correct the data, or set data.invalid=skip or faults.max_unreadable", counts)
        sys.exit(1)
    log.info("%s: you can train", counts)
    census = shlex.join(["detector", "census", "--cfg", args.cfg, *args.overrides])
    log.info("%s", next_steps({census: "measure the imbalance"}))
