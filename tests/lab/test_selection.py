import csv
import math
from pathlib import Path

import pytest
from tiny import TINY

from detector.build import build_dataset
from detector.config import load_config
from detector.core.errors import UserError
from detector.lab.report import tables as report_tables
from detector.lab.study.plan import Run, load_study, make_runs
from detector.lab.study.results import Row, make_tables, result_row, with_nan
from detector.lab.study.selection import (
    choose,
    make_selection_runs,
    selection_cells,
    selection_rows,
    write_selection,
)

STUDY = """
config: CONFIG
common: {train: {epochs: 3}}
levels:
  few: {data: {train: {objects: 1.0}}}
  many: {data: {train: {objects: 8.0}}}
against: focal
select:
  split: 0.75
  seeds: [7, 8]
  common: {train: {epochs: 1, momentum: 0.5}}
  grid: {train.lr: [0.01, 0.001]}
variants:
  focal: {}
  GHM: {loss: {classification: ghm_c}, grid: {loss.classification.bins: [10, 30]}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY.replace("short_side", f"root: {tmp_path}\n  short_side", 1))
    (tmp_path / "study.yaml").write_text(STUDY.replace("CONFIG", str(tmp_path / "tiny.yaml")))
    return tmp_path / "study.yaml"


def edited(file: Path, old: str, new: str) -> str:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return str(file)


def rows_of(runs: list[Run], scores: dict[tuple[str, str], list[float]]) -> list[Row]:
    """Return results, with the AP of each combination at both seeds by level and by words of the run's variant."""
    rows = []
    for run in runs:
        (values,) = [aps for (level, name), aps in scores.items() if level == run.level and run.variant == name]
        value = values[run.seed - 7]
        rows.append(result_row(run, {"AP": value}, 1.0, "error: the loss is not finite" if math.isnan(value) else ""))
    return rows


FEW = {
    ("few", "focal: train.lr=0.01"): [0.1, 0.4],  # the mean of both is 0.25
    ("few", "focal: train.lr=0.001"): [0.3, 0.2],
    ("few", "GHM: train.lr=0.01, loss.classification.bins=10"): [0.2, 0.3],
    ("few", "GHM: train.lr=0.01, loss.classification.bins=30"): [0.6, 0.1],
    ("few", "GHM: train.lr=0.001, loss.classification.bins=10"): [0.9, math.nan],
    ("few", "GHM: train.lr=0.001, loss.classification.bins=30"): [0.3, 0.3],
}
MANY = {("many", name): [0.5, 0.5 + i / 100] for i, (_, name) in enumerate(FEW)}


def test_a_selection_run_has_the_values_of_its_combination_and_of_the_selection(file):
    runs = make_selection_runs(load_study(str(file)))
    assert [(run.level, run.variant, run.seed) for run in runs] == [
        (level, name, seed) for seed in (7, 8) for level in ("few", "many") for _, name in FEW
    ]
    assert len({run.name for run in runs}) == len({run.fingerprint for run in runs}) == 24
    overrides = ["train.epochs=1", "train.momentum=0.5", "data.train.objects=8.0", "loss.classification=ghm_c"]
    combination = ["train.lr=0.001", "loss.classification.bins=30", "train.seed=8"]
    divided = ["data.val=null", "data.split=0.75"]
    assert runs[-1].config == load_config(str(file.parent / "tiny.yaml"), [*overrides, *combination, *divided])


def test_the_choice_uses_only_training_images_and_the_reported_numbers_use_none_of_the_selection(file):
    study = load_study(str(file))
    selection = make_selection_runs(study)[0].config
    reported = make_runs(study, {("few", "focal"): {"train.lr": 0.01}})[0].config

    def images(config, split: str) -> set[Path]:
        records = build_dataset(config, split).records
        assert len({record.path for record in records}) == len(records)
        return {record.path for record in records}

    trains, chooses = images(selection, "train"), images(selection, "val")
    assert (len(trains), len(chooses)) == (9, 3)
    assert trains | chooses == images(reported, "train") and not trains & chooses
    assert len(images(reported, "val")) == 4 and not images(reported, "val") & (trains | chooses)

    changed = load_study(edited(file, "common: {train: {epochs: 3}}", "common: {data: {val: {objects: 9.0}}}"))
    assert [run.fingerprint for run in make_selection_runs(changed)] == [
        run.fingerprint for run in make_selection_runs(study)
    ], "another validation set does not change the selection runs"


def test_the_best_complete_combination_is_chosen_for_each_level(file):
    study = load_study(str(file))
    rows = rows_of(make_selection_runs(study), FEW | MANY)
    choices = choose(study, rows)
    assert choices == {
        ("few", "focal"): {"train.lr": 0.01},  # equal means: the first
        ("few", "GHM"): {"train.lr": 0.01, "loss.classification.bins": 30},  # 0.9 is the AP of a single seed
        ("many", "focal"): {"train.lr": 0.001},
        ("many", "GHM"): {"train.lr": 0.001, "loss.classification.bins": 30},
    }
    assert choose(study, rows[::-1]) == choices
    assert choose(study, rows[:-1]).keys() == choices.keys() - {("many", "GHM")}, "a run is missing"
    assert choose(study, []) == {}
    failed = rows_of(make_selection_runs(study), FEW | MANY | dict.fromkeys(list(FEW)[:2], [math.nan] * 2))
    assert choose(study, failed).keys() == choices.keys() - {("few", "focal")}


def test_the_runs_of_the_study_have_the_chosen_values_and_complete_training_sets(file):
    study = load_study(str(file))
    combination = {"train.lr": 0.001, "loss.classification.bins": 30}
    runs = make_runs(study, {("many", "GHM"): combination})
    assert [(run.level, run.variant, run.seed, run.name) for run in runs] == [
        ("many", "GHM", seed, f"many-ghm-{seed}") for seed in (0, 1, 2)
    ]
    overrides = ["train.epochs=3", "data.train.objects=8.0", "loss.classification=ghm_c"]
    combination = ["train.lr=0.001", "loss.classification.bins=30", "train.seed=0"]
    assert runs[0].config == load_config(str(file.parent / "tiny.yaml"), [*overrides, *combination])
    assert len(make_runs(load_study(edited(file, "  grid: {train.lr: [0.01, 0.001]}\n", "")))) == 6, "without a grid"


def test_the_tables_have_the_scores_of_all_combinations(file, tmp_path):
    study = load_study(str(file))
    rows = rows_of(make_selection_runs(study), FEW | MANY)
    table = selection_rows(study, rows)
    assert len(table) == 12 and sum(row["chosen"] for row in table) == 4
    write_selection(tmp_path / "selection.csv", table)
    with (tmp_path / "selection.csv").open(newline="") as lines:
        written = list(csv.DictReader(lines))
    assert [float(row["mean"]) for row in written] == [row["mean"] for row in table]
    assert [(row["variant"], row["level"]) for row in written if row["chosen"] == "True"] == [
        (variant, level) for level in ("few", "many") for variant in ("focal", "GHM")
    ]

    tables = make_tables(study, []) | {"selection": table}
    columns, lines = selection_cells(tables)
    assert columns[2:] == ["few", "many"] and len(lines) == 6
    assert lines[2][:2] == ["GHM", "train.lr=0.01, loss.classification.bins=10"]
    assert [line[2].startswith("0.250") for line in lines] == [True, True, True, False, False, False]
    assert lines[4][2] == "0.900 (1 of 2 runs)"
    assert [(line[1], i) for line in lines for i in (2, 3) if "chosen" in line[i]] == [
        ("train.lr=0.01", 2),
        ("train.lr=0.001", 3),
        ("train.lr=0.01, loss.classification.bins=30", 2),
        ("train.lr=0.001, loss.classification.bins=30", 3),
    ]
    assert report_tables.study(tables)[-1].rows == lines
    assert selection_cells(make_tables(study, []) | {"selection": selection_rows(study, [])})[1][0][2] == "none"
    of_json = [row | {"low": None} for row in table]
    assert all(math.isnan(row["low"]) for row in with_nan(tables | {"selection": of_json})["selection"])


@pytest.mark.parametrize(
    ("old", "new", "facts"),
    [
        ("select:\n  split: 0.75\n", "selects:\n  split: 0.75\n", ["study.yaml: selects: ", "'select'"]),
        ("split: 0.75", "split: 1.0", ["study.yaml: select.split: ", "1.0"]),
        ("seeds: [7, 8]", "seeds: [7, 7]", ["study.yaml: select.seeds: ", "[7, 7]"]),
        ("bins: [10, 30]", "bins: []", ["study.yaml: variants.GHM.grid.loss.classification.bins: ", "[]"]),
        ("bins: [10, 30]", "bins: 10", ["study.yaml: variants.GHM.grid.loss.classification.bins: ", "10"]),
        ("bins: [10, 30]", "bin: [10, 30]", ["level 'few', variant 'GHM': loss.classification.bin: "]),
        ("[0.01, 0.001]}", "[0.01, -1]}", ["level 'few', variant 'focal': train.lr: ", "-1"]),
        ("[0.01, 0.001]}", "[0.01, 0.01]}", ["'few'", "'focal'", "train.lr=0.01 "]),
        ("[0.01, 0.001]}", "[1, 1.0]}", ["'few'", "'focal'", "train.lr=1 ", "train.lr=1.0 "]),
        ("epochs: 1, momentum: 0.5}", "epochs: 1}, data: {val: null}", ["study.yaml: select.common.data.val: "]),
        (
            "bins: [10, 30]",
            "bins: [10], data.train.objects: [3.0]",
            ["study.yaml: variants.GHM.grid.data.train.objects: "],
        ),
        ("[0.01, 0.001]}", "[0.01], data.split: [0.5, 0.8]}", ["study.yaml: select.grid.data.split: "]),
        ("epochs: 3}", "epochs: 3}, data: {val: null, split: 0.8}", ["'few'", "'focal'", "data.split"]),
        ("split: 0.75\n", "split: 0.75\n  metric: AP\n", ["study.yaml: select.metric: ", "split, "]),
        ("against: focal", "against: focal\nmetric: mAP", ["study.yaml: metric: ", "'mAP'"]),
    ],
)
def test_wrong_selections_are_refused_with_the_key_and_the_value(file, old, new, facts):
    with pytest.raises(UserError) as error:
        make_selection_runs(load_study(edited(file, old, new)))
    assert all(fact in str(error.value) for fact in facts), error.value
    assert "\n" not in str(error.value)


def test_a_grid_and_the_key_select_need_each_other(file):
    text = file.read_text()
    without = text[: text.index("select:")] + text[text.index("variants:") :]
    file.write_text(without)
    with pytest.raises(UserError, match="variants.GHM.grid"):
        load_study(str(file))
    file.write_text(without.replace(", grid: {loss.classification.bins: [10, 30]}", "") + "select: {}\n")
    with pytest.raises(UserError, match="select"):
        load_study(str(file))
