"""Names from data with special characters of rich, TeX, HTML, Markdown, CSV or a terminal appear verbatim."""

import csv
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from tools_run import run_tool

from detector.config import make_config
from detector.core.drawing import draw_boxes
from detector.core.errors import UserError
from detector.core.plotting import plain, plotting
from detector.core.structures import Detections
from detector.core.tables import markdown, show
from detector.data.dataset import DetectionDataset, Record
from detector.data.images import read_image, write_image
from detector.deploy.inference.sinks import Table, YoloLabels
from detector.deploy.inference.sources import Picture, Source
from detector.engine.curves import save_curves
from detector.engine.loggers.csv import StepTable
from detector.engine.outcome import save_pictures, summary
from detector.evaluation.metrics import ClassMetrics, Metrics
from detector.lab.study.plan import Study
from detector.lab.study.plots import save_plots
from detector.lab.study.results import make_tables

NAMES = (
    "nut [/m8]",
    "[red]",
    ":smile:",
    "$x$_1^",
    "_hidden",
    "a|b",
    "<script>alert(1)</script>&amp;",
    "**bold** `code` [link](x)",
    'quote "q", comma',
    "back\\slash \\g<0>",
    "图甲",
    "=1+1",
)
BREAKS = ("a\rb", "a\nb", "\x1b[31mred", "tab\there", "a\x00b", "\udce9", "\u202eright")


def test_a_table_on_the_console_has_all_names(capsys: pytest.CaptureFixture):
    show(["class [/x]", "n"], [[name, "[/b]"] for name in (*NAMES, *BREAKS)], "title [/y]")
    out = capsys.readouterr().out
    assert all(name in out for name in (*NAMES, "class [/x]", "[/b]", "title [/y]"))
    assert len(out.splitlines()) == len((*NAMES, *BREAKS)) + 5 and not re.search(r"[\r\x1b\x00\t]", out)


def test_a_table_in_markdown_has_all_names():
    lines = markdown(["class|", "n"], [[name, "1"] for name in (*NAMES, *BREAKS)]).splitlines()
    assert len(lines) == len((*NAMES, *BREAKS)) + 2
    for line, name in zip(lines[2:], NAMES, strict=False):
        cells = re.split(r"(?<!\\)\|", line.replace("\\\\", "\0"))
        assert len(cells) == 4
        assert re.sub(r"\\(.)", r"\1", cells[1]).replace("\0", "\\").strip() == name
    assert "\\<script\\>" in lines[8] and "\\*\\*bold\\*\\*" in lines[9]


@pytest.mark.parametrize("name", [*NAMES, *BREAKS, "x" * 1000, "_" * 5, "$", "$$", r"a\$b$"])
def test_a_plot_has_the_name_as_plain_text(name: str):
    """TeX would fail, and the legend would omit names with a leading underscore."""
    with plotting():
        figure, axes = pyplot.subplots(layout="constrained")
        axes.plot([0, 1], [0, 1], label=plain(name))
        axes.set_xticks([0, 1], [plain(name)] * 2)
        (shown,) = axes.legend().get_texts()
        figure.canvas.draw()
        text = shown._preprocess_math(shown.get_text())
        pyplot.close(figure)
    assert not text[1]  # no TeX
    if name in NAMES:
        assert text[0].strip() == name


@pytest.mark.parametrize("name", [*NAMES, *BREAKS, "", "x" * 5000])
def test_a_box_is_drawn_with_any_name(name: str):
    image = np.full((80, 120, 3), 90, np.uint8)
    drawn = draw_boxes(image, np.array([[10.0, 30, 60, 60]]), [0], [name], [0.5])
    assert drawn.shape == image.shape and (drawn != image).any()


@pytest.mark.parametrize("name", [*NAMES, *BREAKS[:-2]])
def test_a_csv_table_has_the_name(name: str, tmp_path: Path):
    table = StepTable(tmp_path / "parts.csv", 0)
    for step in range(3):
        table.add([{"step": step, "part": name, "loss": None}])
    StepTable(tmp_path / "parts.csv", 2)  # a resumed run
    with (tmp_path / "parts.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"step": str(i), "part": name, "loss": ""} for i in range(2)]


def test_files_of_detections_have_all_names(tmp_path: Path):
    names = (*NAMES, *BREAKS)
    labels = torch.arange(len(names))
    detections = Detections(torch.tensor([[1.0, 2, 3, 4]]).repeat(len(names), 1), torch.ones(len(names)), labels)
    picture = Picture(Source(Path("图,\udce9.png"), "图"), 1, np.zeros((8, 8, 3), np.uint8))
    for sink in (Table(tmp_path, names, labels.tolist()), YoloLabels(tmp_path, names, labels.tolist())):
        sink.write(picture, detections)
        sink.close()
    with (tmp_path / "detections.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows[: len(NAMES) + 2]] == list(names[: len(NAMES) + 2])
    assert len(rows) == len(names) and rows[0]["file"] == r"图,\udce9.png"
    lines = (tmp_path / "yolo/classes.txt").read_text(encoding="utf-8").split("\n")
    assert lines[: len(NAMES)] == list(NAMES) and len(lines) == len(names) + 1  # the number of a line is a label


def test_the_summary_has_a_line_for_each_name():
    sizes = dict.fromkeys(("AP", "APs", "APm", "APl"), 0.5)
    classes = {name: ClassMetrics(AP=float("nan"), AP50=0.5) for name in (*NAMES, *BREAKS)}
    assert len(summary(Metrics(numbers=sizes, per_class=classes), [{}]).split("\n")) == len((*NAMES, *BREAKS)) + 2


def test_a_study_is_drawn_with_all_names(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    study = Study.model_construct(
        base="b", levels=dict.fromkeys(NAMES[:4]), variants=dict.fromkeys(NAMES[4:]), seeds=[0], against=NAMES[4],
        metric="AP",
    )  # fmt: skip
    rows = [{"level": x, "variant": v, "seed": "0", "AP": "0.5"} for x in study.levels for v in study.variants]
    save_plots(make_tables(study, rows), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"levels.png", "differences.png"} and not caplog.records


@pytest.mark.parametrize("values", [{"root": "r\udce9"}, {"transforms": ["\ud800"]}])
def test_the_error_for_a_text_that_is_not_utf8_names_its_key(values: dict):
    with pytest.raises(UserError) as error:
        make_config({"data": {"train": "synthetic", "val": "synthetic"} | values})
    assert error.value.problem.startswith(f"data.{next(iter(values))}")


# ---- pictures of a run


def dataset_of(folder: Path, *files: tuple[str, int, int]) -> tuple[DetectionDataset, list[dict]]:
    """Return a data set of images (name, height, width) with an object in each, and the detections of the objects."""
    records, detections = [], []
    for i, (name, height, width) in enumerate(files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, np.full((height, width, 3), 90, np.uint8))
        box, label = np.array([[0, 0, width / 2, height]], np.float32), np.zeros(1, np.int64)
        records.append(Record(folder / name, i + 1, width, height, box, label, label > 0, box[:, 2] * box[:, 3]))
        bbox = [width / 4, 0, width / 2, height]
        detections.append({"image_id": i + 1, "category_id": 7, "bbox": bbox, "score": 0.9})
    return DetectionDataset(records, ["nut\r[/m8]"], [7]), detections


def test_pictures_of_any_shape_and_name(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    dataset, detections = dataset_of(
        tmp_path, ("wide.png", 20, 6000), ("high.png", 70_000, 3), ("dot.png", 1, 1), ("a/1.png", 100, 200),
        ("b/1.png", 100, 200), (f"{'x' * 250}.png", 64, 64), ("图.png", 64, 64), ("zero.png", 64, 64),
    )  # fmt: skip
    save_pictures(tmp_path / "run", dataset, detections, count=8, score=0.5)
    assert not caplog.records
    pictures = {path.name: read_image(path) for path in (tmp_path / "run/pictures").iterdir()}
    assert len(pictures) == 8  # two images with the same stem have different pictures
    assert pictures["wide.jpg"].shape == (20, 6000, 3) and pictures["dot.jpg"].shape == (320, 320, 3)
    assert max(pictures["high.jpg"].shape) < 2**16
    lines = np.flatnonzero(pictures["1.jpg"][250].astype(int).max(axis=1) > 150)  # enlarged three times
    assert pictures["1.jpg"].shape == (300, 600, 3) and abs(lines.min() - 150) < 4 and abs(lines.max() - 450) < 4


def test_a_picture_that_cannot_be_drawn_is_a_warning_and_the_others_are_drawn(tmp_path: Path, caplog):
    dataset, detections = dataset_of(tmp_path, ("a.png", 64, 64), ("b.png", 64, 64), ("c.png", 64, 64))
    (tmp_path / "b.png").write_bytes(b"broken")
    (tmp_path / "run/pictures/c.jpg").mkdir(parents=True)
    save_pictures(tmp_path / "run", dataset, detections, count=8, score=0.5)
    assert read_image(tmp_path / "run/pictures/a.jpg").shape == (320, 320, 3)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "b.jpg" in caplog.messages[0] and "c.jpg" in caplog.messages[1]
    (tmp_path / "file").write_bytes(b"")
    save_pictures(tmp_path / "file", dataset, detections, count=1, score=0.5)  # the folder is a file
    save_curves(tmp_path / "run")  # there is no metrics.csv
    assert len(caplog.records) == 4 and "curves.png" in caplog.messages[-1]


# ---- the tools in sequence

CONFIG = """
imports: [small_resnet]
data:
  train: {type: coco, images: images, annotations: a.json}
  val: {type: coco, images: images, annotations: a.json}
  short_side: 64
  num_workers: 0
model: {backbone: {type: small_resnet, norm: group, trainable_stages: 5}, levels: [3, 4], width: 16,
  head: {depth: 1, prior: 0.4, sizes: [[12, 18], [26, 40]]}}
train: {batch_size: 2, device: cpu, precision: fp32, warmup_steps: 0, schedule: constant, epochs: 2, meter_every: 1}
"""


@pytest.mark.slow
def test_all_tools_work_with_all_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i in range(1, 5):
        write_image(tmp_path / f"images/{i}.png", rng.integers(256, size=(64, 64, 3), dtype=np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        annotations += [
            {"id": len(NAMES) * i + k, "image_id": i, "category_id": k, "bbox": [k, 2 * k, 25, 25], "area": 625}
            for k in range(1, len(NAMES) + 1)
        ]
    categories = [{"id": k, "name": name} for k, name in enumerate(NAMES, 1)]
    contents = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(contents), encoding="utf-8")
    (tmp_path / "c.yaml").write_text(CONFIG, encoding="utf-8")
    best = "run/checkpoints/best.pt"
    assert run_tool("census", "--cfg", "./c.yaml", "--out", "census") == 0
    out = capfd.readouterr().out
    assert all(name in out for name in NAMES)
    assert run_tool("train", "--cfg", "./c.yaml", "--out", "run") == 0
    assert run_tool("evaluate", "--checkpoint", best) == 0
    assert run_tool("infer", "--checkpoint", best, "images", "--score", 0.1, "--save", "coco", "csv", "yolo") == 0
    assert run_tool("report", "run", "census", "--out", "report.html") == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert not [record for record in caplog.records if record.name == plotting.__module__], "all figures are drawn"
    text = html.unescape(re.sub(r"<[^>]*>", "\n", page))
    for name in NAMES:
        assert name in text, name
