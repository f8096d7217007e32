"""Train a grid of variants, levels and seeds, and compare the variants by 95% intervals and paired tests.

The command can be interrupted at any time. The same command then continues the study.

Example: detector study --cfg losses.yaml --out runs/studies/losses
"""

import argparse
import logging
import sys
from pathlib import Path

import yaml

from detector.core.command import out_folder
from detector.core.console import start_logging

log = logging.getLogger("detector")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="a study's name in configs/studies/, or a path")
    parser.add_argument("--out", type=out_folder, help="folder of the study; default runs/studies/<name>")
    jobs = "number of simultaneous runs; default a run for each core, on a GPU as many as its free memory allows"
    parser.add_argument("--jobs", type=int, help=jobs)
    parser.add_argument(
        "--tables", action="store_true", help="train nothing, and write the tables of the finished runs"
    )
    parser.add_argument("--keep-checkpoints", action="store_true", help="do not remove the checkpoints of the runs")
    args = parser.parse_args()
    # imported here, because --help must not import torch
    import detector.build  # noqa: F401  (registers the parts that a config names)
    from detector.core.files import write_json, write_text
    from detector.core.tables import markdown, show
    from detector.engine.claim import claim
    from detector.lab.study.plan import Run, load_study, make_runs
    from detector.lab.study.plots import save_plots
    from detector.lab.study.results import (
        difference_cells,
        make_tables,
        mean_cells,
        pending,
        read_results,
        with_other_config,
    )
    from detector.lab.study.runner import choose_jobs, run_all
    from detector.lab.study.selection import (
        choose,
        log_choices,
        make_selection_runs,
        selection_cells,
        selection_rows,
        write_selection,
    )

    start_logging()

    study = load_study(args.cfg)
    num_runs = len(study.levels) * len(study.variants) * len(study.seeds)
    selection_runs = make_selection_runs(study)
    make_runs(study)  # raises for a wrong config, before the selection runs start
    folder = out_folder(args.out or f"runs/studies/{Path(args.cfg).stem}")
    results, scores = folder / "results.csv", folder / "selection/results.csv"

    def chosen_runs() -> list[Run]:
        return make_runs(study, choose(study, read_results(scores)))

    if args.tables:
        # without --tables, `pending` refuses these rows
        if changed := with_other_config(chosen_runs(), read_results(results)):
            log.warning("%s: %d rows come from another config or another version of detector", results, len(changed))
    else:
        train = [sys.executable, "-m", "detector", "train"]
        options = {
            "jobs": args.jobs or choose_jobs(),
            "command": lambda config, out: [*train, "--cfg", str(config), "--out", str(out), "--resume", "auto"],
            "keep_checkpoints": args.keep_checkpoints,
        }
        with claim(folder):
            # raises for a changed study, before its file changes
            pending(selection_runs, scores)
            pending(chosen_runs(), results)
            values = study.model_dump(mode="json", exclude=None if study.select else {"select"})
            write_text(folder / "study.yaml", yaml.safe_dump(values, sort_keys=False))
            if study.select:
                log.info("plan: %d selection runs, then %d runs of the study", len(selection_runs), num_runs)
                run_all(selection_runs, scores.parent, **options)
                log_choices(study, choose(study, read_results(scores)))
            run_all(chosen_runs(), folder, **options)
    tables = make_tables(study, read_results(results))
    if study.select:
        tables["selection"] = selection_rows(study, read_results(scores))
        write_selection(folder / "selection.csv", tables["selection"])
    write_json(folder / "tables.json", tables)
    save_plots(tables, folder)
    shown = {
        f"{tables['metric']}: mean ± half of the 95% interval": mean_cells(tables),
        "differences, paired by seed": difference_cells(tables),
    }
    if study.select:
        shown["selection of the settings"] = selection_cells(tables)
    write_text(folder / "tables.md", "\n".join(markdown(*table) for table in shown.values()))
    for title, table in shown.items():
        show(*table, title=title)
