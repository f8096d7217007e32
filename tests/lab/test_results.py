import math

import pytest

import detector.build  # noqa: F401  (registers the parts that a config names)
from detector.core.errors import UserError
from detector.lab.study.plan import Study, make_runs
from detector.lab.study.plots import save_plots
from detector.lab.study.results import (
    difference_cells,
    make_tables,
    mean_cells,
    pending,
    read_results,
    result_row,
    with_other_config,
    write_results,
)

STUDY = Study(
    config="retina_focal.yaml",
    levels={"mild": {}, "severe": {"data": {"train": {"objects": 1.0}, "val": {"objects": 1.0}}}},
    variants={"a": {}, "b": {"loss": {"classification": "ghm_c"}}},
    seeds=[0, 1, 2],
    against="a",
)
AP = {
    ("mild", "a"): [0.50, 0.52, 0.54],
    ("mild", "b"): [0.51, 0.54, 0.57],
    ("severe", "a"): [0.20, 0.22, 0.21],
    ("severe", "b"): [0.30, 0.33, math.nan],
}


def rows():
    return [
        result_row(run, {"AP": AP[run.level, run.variant][run.seed]}, 1.0)
        if not math.isnan(AP[run.level, run.variant][run.seed])
        else result_row(run, {}, 1.0, "error: the loss is not finite")
        for run in make_runs(STUDY)
    ]


def test_means_and_paired_differences_by_hand():
    tables = make_tables(STUDY, rows())
    (cell,) = [r for r in tables["rows"] if (r["level"], r["variant"]) == ("mild", "b")]
    assert cell["mean"] == pytest.approx(0.54) and cell["n"] == 3
    mild, severe, everywhere = tables["tests"]
    assert (mild["level"], severe["level"], everywhere["level"]) == ("mild", "severe", "all levels")
    assert mild["difference"] == pytest.approx((0.01 + 0.02 + 0.03) / 3)
    assert mild["p"] == pytest.approx(0.0741799, rel=1e-4)  # differences 1 : 2 : 3
    assert severe["pairs"] == 2, "a failed run has no pair"
    assert severe["difference"] == pytest.approx((0.10 + 0.11) / 2)
    assert everywhere["pairs"] == 2, "a pair is the mean over the levels of a seed that has all levels"
    assert everywhere["difference"] == pytest.approx((0.055 + 0.065) / 2)
    assert everywhere["high"] - everywhere["difference"] == pytest.approx(12.7062 * 0.005, rel=1e-4)  # t of 1 degree


def test_a_single_level_has_a_single_test():
    one_level = STUDY.model_copy(update={"levels": {"mild": {}}})
    assert make_tables(one_level, rows())["tests"] == make_tables(STUDY, rows())["tests"][:1]


def test_runs_whose_row_has_another_config_are_found():
    done, runs = rows(), make_runs(STUDY)
    assert with_other_config(runs, done) == []
    done[3]["fingerprint"] = "0" * 12
    assert with_other_config(runs, done) == [runs[3]]
    assert with_other_config(runs[:3], done) == []


def test_only_the_seeds_of_the_study_count():
    two_seeds = STUDY.model_copy(update={"seeds": [0, 1]})
    assert make_tables(two_seeds, rows()) == make_tables(two_seeds, [row for row in rows() if row["seed"] != "2"])


def test_rows_and_tables_are_equal_after_writing_and_reading(tmp_path):
    write_results(tmp_path / "results.csv", rows())
    assert read_results(tmp_path / "results.csv") == rows()
    assert make_tables(STUDY, read_results(tmp_path / "results.csv")) == make_tables(STUDY, rows())


def test_runs_without_a_result_and_failed_runs_are_pending(tmp_path):
    runs, done, file = make_runs(STUDY), rows(), tmp_path / "results.csv"
    write_results(file, done)
    assert [(r.level, r.variant, r.seed) for r in pending(runs, file)] == [("severe", "b", 2)]
    write_results(file, done[:5])
    assert pending(runs, file) == runs[5:]


def test_a_result_of_another_config_is_refused(tmp_path):
    done, file = rows(), tmp_path / "results.csv"
    done[0]["fingerprint"] = "0" * 12
    write_results(file, done)
    with pytest.raises(UserError) as error:
        pending(make_runs(STUDY), file)
    assert all(fact in error.value.problem for fact in ("results.csv", "'mild'", "'a'", "seed 0"))
    assert "--out" in error.value.remedy


def test_cells_have_the_numbers_of_runs_where_runs_are_missing():
    columns, lines = mean_cells(make_tables(STUDY, rows()))
    assert columns == ["AP", "mild", "severe"]
    assert lines[1][1] == "0.540 ± 0.075"  # 4.3027 * 0.03 / sqrt(3)
    assert lines[1][2].endswith("(2 of 3 runs)")
    columns, lines = difference_cells(make_tables(STUDY, rows()))
    assert lines[0][:3] == ["mild", "b", "+0.020"] and len(lines[0]) == len(columns)
    columns, lines = mean_cells(make_tables(STUDY, []))
    assert lines == [["a", "none", "none"], ["b", "none", "none"]]


@pytest.mark.parametrize("done", [rows(), rows()[:5], []], ids=["all", "some", "none"])
def test_plots_are_drawn_from_any_number_of_results(tmp_path, done):
    save_plots(make_tables(STUDY, done), tmp_path)
    for name in ("levels.png", "differences.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
