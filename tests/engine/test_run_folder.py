import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from detector.core.errors import UserError
from detector.core.files import write_json
from detector.engine.loggers import LOGGERS
from detector.engine.outcome import load_evaluation, save_evaluation, summary
from detector.engine.run_folder import RunFolder, commit
from detector.evaluation.metrics import ClassMetrics, Metrics

SHIPPED = [LOGGERS.resolve(name) for name in ("csv", "tensorboard")]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_json_is_strict_and_nan_becomes_null(here: Path):
    write_json(
        here / "deep/x.json", {"AP": math.nan, "list": [1.5, {"inf": math.inf}], "n": 3, "text": "NaN", "no": None}
    )

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    loaded = json.loads((here / "deep/x.json").read_text(), parse_constant=refuse)
    assert loaded == {"AP": None, "list": [1.5, {"inf": None}], "n": 3, "text": "NaN", "no": None}
    assert list((here / "deep").iterdir()) == [here / "deep/x.json"]


def test_an_evaluation_is_loaded_as_it_was_saved(here: Path):
    classes = {"cat": ClassMetrics(AP=0.25, AP50=0.5), "dog": ClassMetrics(AP=math.nan, AP50=0.0)}
    metrics = Metrics(numbers={"AP": 0.25, "APs": math.nan}, per_class=classes, settings={"score_threshold": 0.05})
    detections = [{"image_id": 3, "category_id": 9, "bbox": [1 / 3, 0.1, 1e-9 / 7, 640.0], "score": 2 / 3}]
    save_evaluation(here, metrics, detections)
    loaded, loaded_detections = load_evaluation(here)
    assert repr(loaded) == repr(metrics) and loaded_detections == detections  # repr, because NaN != NaN
    assert json.loads((here / "metrics.json").read_text()) == {
        **{"AP": 0.25, "APs": None, "settings": {"score_threshold": 0.05}},
        "per_class": {"cat": {"AP": 0.25, "AP50": 0.5}, "dog": {"AP": None, "AP50": 0.0}},
    }
    (here / "metrics.json").write_text('{"AP": 0.25}')  # from a version without classes and settings
    assert load_evaluation(here)[0] == Metrics(numbers={"AP": 0.25})
    (here / "metrics.json").write_text('{"AP": 0.25, "per_class": {"cat": {"AP": 0.5}}}')
    with pytest.raises(UserError, match="detector evaluate --checkpoint"):
        load_evaluation(here)


NUMBERS = {"AP": 0.12345, "APs": 0.1, "APm": 0.2, "APl": 0.3}
CLASSES = {"cat": ClassMetrics(AP=0.5, AP50=0.75), "horse": ClassMetrics(AP=0.0, AP50=0.0)}
FOUND = [{"image_id": 3, "category_id": 9, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}]


def test_summary_shows_every_number_and_class():
    lines = summary(Metrics(numbers=NUMBERS, per_class=CLASSES, settings={"nms_iou": 0.5}), FOUND).splitlines()
    assert lines == [
        "AP 0.123  APs 0.100  APm 0.200  APl 0.300",
        "  cat    AP 0.500  AP50 0.750",
        "  horse  AP 0.000  AP50 0.000",
    ]


@pytest.mark.parametrize(
    ("numbers", "classes", "detections", "facts"),
    [
        ({"APl": math.nan}, [], FOUND, ["nan", "APl", "ARl"]),
        ({"APs": math.nan, "APl": math.nan}, ["dog", "cow"], FOUND, ["APs", "ARs", "APl", "ARl", "dog, cow"]),
        ({}, "abcdef", FOUND, ["nan", "6 of the classes"]),
        (dict.fromkeys(NUMBERS, math.nan), ["dog"], FOUND, ["nan", "objects"]),
        (dict.fromkeys(NUMBERS, 0.0), [], [], ["evaluation.score_threshold"]),
    ],
)
def test_the_last_line_of_the_summary_names_the_cause_of_a_nan_or_a_zero(
    numbers: dict[str, float], classes: Sequence[str], detections: list[dict], facts: list[str]
):
    nothing = {name: ClassMetrics(AP=math.nan, AP50=math.nan) for name in classes}
    text = summary(Metrics(numbers=NUMBERS | numbers, per_class=CLASSES | nothing), detections)
    assert all(fact in text.splitlines()[-1] for fact in facts) and text.count("\n") == 3 + len(classes)


def test_summary_lists_the_lowest_of_many_classes():
    classes = {f"c{i:02d}": ClassMetrics(AP=1 - i / 100, AP50=1.0) for i in range(30)}
    classes["absent"] = ClassMetrics(AP=math.nan, AP50=math.nan)
    lines = summary(Metrics(numbers=NUMBERS, per_class=classes), FOUND).splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [f"c{i}" for i in range(29, 19, -1)]


def record(folder: Path, first: int, last: int, loss: float) -> None:
    with RunFolder(folder, num_steps=10, first_step=first, loggers=SHIPPED) as run:
        run.record([{"step": step, "loss": loss} for step in range(first, last)])


def test_a_resumed_run_drops_the_rows_of_repeated_steps(here: Path):
    record(here, 0, 5, 1.0)
    record(here, 3, 6, 2.0)
    text = (here / "metrics.csv").read_text()
    assert text == "step,loss\n0,1.0\n1,1.0\n2,1.0\n3,2.0\n4,2.0\n5,2.0\n"
    record(here, 6, 6 + 1, 1 / 3)
    assert (here / "metrics.csv").read_text() == text + f"6,{1 / 3!r}\n"


def test_levels_and_classes_have_a_separate_table(here: Path):
    measured = {"P3/num_fg": 16777216.0, "P3/loss_share_fg": 1 / 3, "class a, b/c/num_fg": 2.0}
    measured["class a, b/c/loss_share_fg"] = 0.0
    for first in (0, 1):  # the second run resumes and repeats step 1
        with RunFolder(here, num_steps=3, first_step=first, loggers=SHIPPED) as run:
            for step in range(first, 3):
                run.record([{"step": step, "loss": 1.0, **(measured if step != 1 else dict.fromkeys(measured))}])
    assert (here / "metrics.csv").read_text() == "step,loss\n0,1.0\n1,1.0\n2,1.0\n"
    reading = 'STEP,P3,1.677722e+07,0.3333333\nSTEP,"class a, b/c",2,0\n'
    expected = "".join(reading.replace("STEP", str(step)) for step in (0, 2))
    assert (here / "parts.csv").read_text() == "step,part,num_fg,loss_share_fg\n" + expected


def test_a_run_resumed_before_its_first_row_starts_a_new_file(here: Path):
    record(here, 0, 2, 1.0)
    record(here, 0, 1, 2.0)
    assert (here / "metrics.csv").read_text() == "step,loss\n0,2.0\n"
    (here / "metrics.csv").write_text("")  # the run ended before the header
    record(here, 0, 1, 3.0)
    assert (here / "metrics.csv").read_text() == "step,loss\n0,3.0\n"


def test_the_commit_is_a_word_or_empty():
    assert " " not in commit() and "\n" not in commit()


def test_without_git_the_commit_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == ""
