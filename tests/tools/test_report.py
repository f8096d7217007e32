"""The report: where the page goes, what it says of a run's numbers, which images it shows, and what it suggests."""

import base64
import dataclasses
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny import TINY
from tools_run import run_tool

from detector.config import config_from_text, load_config, to_yaml
from detector.core.files import write_json
from detector.data.dataset import DetectionDataset, Record
from detector.data.images import write_image
from detector.engine.loggers.csv import StepTable
from detector.evaluation.anatomy import make_anatomy
from detector.evaluation.anchor_scores import AnchorRanking
from detector.evaluation.coco import coco_metrics
from detector.evaluation.metrics import ClassMetrics, Metrics
from detector.lab.report import comparison, summary
from detector.lab.report.errors import error_shares
from detector.lab.report.examples import choose_examples
from detector.lab.report.pictures import make_pictures
from detector.lab.report.sections import make_section
from detector.lab.report.settings import settings_rows
from detector.lab.report.sources import join, read_source
from detector.lab.report.suggestions import suggest

STEP = {"step": 0, "loss": 1.0, "cls_fg": 0.5, "cls_bg": 0.3, "box": 0.2, "fg_gradient_share": 0.5, "images_per_s": 10}


def test_out_that_is_a_folder_is_one_line_and_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "run").mkdir()
    StepTable(tmp_path / "run/metrics.csv", 0).add([STEP])
    (tmp_path / "page").mkdir()
    assert run_tool("report", tmp_path / "run", "--out", tmp_path / "page") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and str(tmp_path / "page") in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page", "run"]
    assert not list((tmp_path / "page").iterdir())
    assert run_tool("report", tmp_path / "run", "--out", tmp_path / "page/report.html") == 0


def metrics(**classes: float) -> Metrics:
    values = list(classes.values())
    per_class = {name: ClassMetrics(AP=ap, AP50=ap) for name, ap in classes.items()}
    return Metrics(numbers={"AP": sum(values) / len(values), "AP50": 0.9}, per_class=per_class)


def scenes(folder: Path, num_images: int = 8) -> tuple[DetectionDataset, list[dict]]:
    """Images with two objects each. Image i has i detections on background. The last two lack a detection."""
    records, detections = [], []
    boxes = np.array([[0, 0, 40, 40], [60, 0, 100, 40]], np.float32)
    for i in range(num_images):
        write_image(folder / f"{i}.jpg", np.full((100, 100, 3), 90, np.uint8))
        crowd, labels = np.zeros(2, bool), np.array([0, 1])
        records.append(Record(folder / f"{i}.jpg", i + 1, 100, 100, boxes, labels, crowd, np.full(2, 1600.0)))
        boxes_of_image = [(1, [0, 0, 40, 40], 0.9)] + [(2, [60, 0, 40, 40], 0.8)] * (i < 6)
        boxes_of_image += [(1, [0, 60 + 4 * k, 8, 3], 0.95) for k in range(i)]
        boxes_of_image += [(2, [60, 60, 40, 40], 0.01)]  # below every threshold that matters
        detections += [{"image_id": i + 1, "category_id": c, "bbox": b, "score": s} for c, b, s in boxes_of_image]
    return DetectionDataset(records, ["cat", "dog"], [1, 2]), detections


def save_run(folder: Path, dataset: DetectionDataset, detections: list[dict], *, config: str = TINY) -> None:
    truth = dataset.ground_truth()
    values = coco_metrics(truth, detections)
    ranking = AnchorRanking(roc_auc=0.9, average_precision=0.5)
    ratios = {record.image_id: 10.0 for record in dataset.records}
    anatomy = make_anatomy(truth, detections, values, ratios, ranking, backend="hotcoco", max_detections=100)
    folder.mkdir()
    write_json(folder / "metrics.json", values.to_json())
    write_json(folder / "anatomy.json", anatomy.to_json())
    write_json(folder / "detections.json", detections)
    (folder / "config.yaml").write_text(f"# detector at commit abc123\n{to_yaml(config_from_text(config, 'config'))}")
    StepTable(folder / "metrics.csv", 0).add([STEP | {"step": i, "fg_gradient_share": 0.2} for i in range(50)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_run(tmp_path / "run", *scenes(tmp_path))
    return tmp_path / "run"


def test_the_summary_has_the_numbers(run: Path):
    source = read_source(run)
    text = summary.accuracy(metrics(red=0.75, white=0.8, platelets=0.43), 72)
    assert all(part in text for part in ("0.66", "72", "platelets", "0.43"))
    assert source.anatomy is not None
    shares = error_shares(source.anatomy)
    assert next(iter(shares)) == "Bkg" and sum(shares.values()) == pytest.approx(1)
    assert f"{shares['Bkg']:.0%}" in summary.errors(source.anatomy)
    assert f"{source.anatomy.curves.best_f1.score:.2f}" in summary.threshold(source.anatomy)
    measured = [{"step": 0, "num_fg": 2.0, "num_bg": 298.0, "fg_gradient_share": 0.52}]
    assert all(part in summary.foreground(None, measured) for part in ("1 of 150", "52%"))
    assert len(summary.summarize(source, 8)) == 4, "neither a census nor a probe"
    assert summary.summarize(dataclasses.replace(source, metrics=None, anatomy=None, steps=[]), None) == []


def test_the_best_of_several_runs_and_its_lead(run: Path):
    source = read_source(run)
    runs = [dataclasses.replace(source, name=name, metrics=metrics(a=ap)) for name, ap in (("x", 0.5), ("y", 0.625))]
    sentence = comparison.best_run(runs)
    assert sentence.startswith("y ") and "0.625" in sentence and "0.125" in sentence
    assert comparison.best_run(runs[:1]) == ""
    first, second = comparison.metric_rows(runs)
    assert first[:3] == [("x", False), ("0.500", False), ("0.900", True)] and second[1] == ("0.625", True)


def test_the_images_of_the_highest_and_the_lowest_f1_are_shown(tmp_path: Path):
    dataset, detections = scenes(tmp_path)
    examples = choose_examples(dataset, detections)
    assert [example.index for example in examples.best] == [0, 1, 2]
    assert [example.index for example in examples.worst] == [7, 6, 5]
    worst = examples.worst[0]
    assert 0.01 < examples.threshold <= 0.8
    assert (worst.count("right"), worst.count("wrong"), worst.count("missed")) == (1, 7, 1)
    assert worst.f1 == pytest.approx(2 * 1 / (2 * 1 + 7 + 1))
    (missed,) = [box for box in worst.boxes if box.kind == "missed"]
    assert (missed.x, missed.y, missed.width, missed.height, missed.text) == (60, 0, 40, 40, "dog")


def test_pictures_are_jpegs_of_a_limited_size_with_the_boxes_in_their_pixels(tmp_path: Path):
    dataset, detections = scenes(tmp_path)
    noise = np.random.default_rng(0).integers(256, size=(100, 100, 3), dtype=np.uint8)
    write_image(tmp_path / "0.jpg", cv2.resize(noise, (1600, 1600)))
    large = dataclasses.replace(dataset.records[0], width=1600, height=1600)
    dataset = DetectionDataset([large, *dataset.records[1:]], dataset.class_names, dataset.category_ids)
    examples = choose_examples(dataset, detections)
    (picture,) = make_pictures(dataset, [e for e in examples.best + examples.worst if e.index == 0], 100_000)
    image = cv2.imdecode(np.frombuffer(base64.b64decode(picture.data), np.uint8), cv2.IMREAD_COLOR)
    assert len(picture.data) <= 100_000 and image.shape == (picture.height, picture.width, 3)
    assert picture.width < 1600
    (box,) = [box for box in picture.example.boxes if box.text.startswith("cat")][:1]
    assert box.width / picture.width == pytest.approx(40 / 1600)


def test_a_page_without_the_images_says_so(run: Path, tmp_path: Path):
    """The config names drawn scenes, whose image ids are not those of the detections."""
    section = make_section(read_source(run), "s1", 1)
    assert section.pictures is not None and section.pictures.problem and not section.pictures.best
    assert run_tool("report", run, "--out", tmp_path / "r.html") == 0
    page = (tmp_path / "r.html").read_text()
    assert "data:image/jpeg" not in page and "left out" in page


def test_the_suggestions_follow_from_the_numbers_and_their_commands_are_for_this_run(run: Path):
    steps = suggest(read_source(run), None)
    assert 2 <= len(steps) <= 5
    commands = [command for step in steps for command in step.commands]
    assert all(shlex.split(command)[0] == "detector" and str(run) in command for command in commands)
    assert {"infer", "probe", "census", "train"} == {shlex.split(command)[1] for command in commands}
    assert "background" in steps[0].title + steps[0].reason, "the largest error comes first"
    for command in commands:
        _, name, _, config, *overrides = shlex.split(command)
        if name == "train":
            load_config(config, overrides)  # which refuses unknown keys and values
    without = suggest(dataclasses.replace(read_source(run), anatomy=None), None)
    assert any(shlex.split(command)[1] == "evaluate" for step in without for command in step.commands)


@pytest.mark.parametrize("shared", [True, False])
def test_a_weak_class_gets_a_sampler_only_if_few_images_have_the_class(run: Path, tmp_path: Path, shared: bool):
    dataset, _ = scenes(tmp_path)
    if not shared:  # the class dog is in 2 of 8 images
        records = [dataclasses.replace(r, labels=np.array([0, int(i < 2)])) for i, r in enumerate(dataset.records)]
        dataset = DetectionDataset(records, dataset.class_names, dataset.category_ids)
    source = dataclasses.replace(read_source(run), metrics=metrics(cat=0.8, dog=0.3))
    (weak,) = [step for step in suggest(source, dataset) if "dog" in step.title]
    assert f"{8 if shared else 2} objects" in weak.reason, "the AP of few objects is uncertain"
    assert ("data.short_side" in weak.commands[0], "class_balanced" in weak.commands[0]) == (shared, not shared)


def test_a_weak_class_that_is_frequent_in_few_images_gets_a_larger_input(run: Path, tmp_path: Path):
    dataset, _ = scenes(tmp_path)
    records = [dataclasses.replace(r, labels=np.full(2, int(i < 3))) for i, r in enumerate(dataset.records)]
    dataset = DetectionDataset(records, dataset.class_names, dataset.category_ids)  # 6 dogs in 3 of 8 images, 10 cats
    source = dataclasses.replace(read_source(run), metrics=metrics(cat=0.8, dog=0.3))
    (weak,) = [step for step in suggest(source, dataset) if "dog" in step.title]
    assert "data.short_side" in weak.commands[0]


def test_the_settings_are_those_of_the_config(run: Path):
    rows = dict(settings_rows(read_source(run)))
    assert rows["Version"].endswith("abc123") and rows["Seed"] == "0"
    assert "focal" in rows["Classification loss"] and "64" in rows["Input size"]
    assert rows["Time"].startswith("10 seconds")  # 50 steps of 2 images, 10 images/s


def test_a_single_run_takes_the_parts_of_the_other_folders(run: Path, tmp_path: Path):
    (tmp_path / "c.yaml").write_text(TINY)
    assert run_tool("census", "--cfg", tmp_path / "c.yaml", "--out", tmp_path / "census") == 0
    sources = [read_source(tmp_path / "census"), read_source(run)]
    (joined,) = join(sources)
    assert joined.name == "run" and joined.census == sources[0].census
    assert "census.json" in " ".join(command for step in suggest(joined, None) for command in step.commands)
    assert len(join([*sources, sources[1]])) == 3, "of two runs, none takes it"
    assert len(join([*sources, sources[0]])) == 2, "a second census stays a source"
