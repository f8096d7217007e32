import csv
import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_command, start_command
from tools_run import run_tool

import detector.build  # noqa: F401  (registers the parts that a config names)
from detector.config import load_config
from detector.data.images import read_image, write_image
from detector.engine.checkpoint import load_checkpoint

REPO = Path(__file__).parents[2]
METRICS = {
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "AR1",
    "AR10",
    "AR100",
    "ARs",
    "ARm",
    "ARl",
    "per_class",
    "settings",
}
TINY = """
imports: [small_resnet]
data:
  train: {type: synthetic, num_images: 16, image_size: 64, objects: 3, distractors: 1}
  val: {type: synthetic, split: val, num_images: 4, image_size: 64, objects: 3, distractors: 1}
  short_side: 64
  num_workers: 0
model:
  backbone: {type: small_resnet, norm: batch, trainable_stages: 5}
  levels: [3, 4]
  width: 16
  head: {depth: 1, prior: 0.1, sizes: [[12, 18], [26, 40]]}
loss: {classification: {type: focal}}
train: {epochs: 2, batch_size: 2, device: cpu, precision: fp32, lr: 0.01, ema_decay: 0.9, log_every: 1}
"""
STEPS = 16


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "images_per_s"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with tiny.yaml, to which the cache of synthetic scenes is bound."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what a tool writes to its default folders ends there


@pytest.fixture(scope="module")
def run(work: Path) -> Path:
    """A finished run."""
    ended = run_command(work, "train", "--cfg", work / "tiny.yaml", "--out", work / "run")
    assert ended.code == 0, ended.errors
    assert "AP50" in ended.errors and "Traceback" not in ended.errors
    return work / "run"


@pytest.mark.slow
def test_the_run_folder(run: Path, work: Path):
    names = {path.name for path in run.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert names - events == {
        *("config.yaml", "metrics.csv", "parts.csv", "evaluations.csv", "metrics.json", "detections.json"),
        *("checkpoints", "pictures", "curves.png", "batch_0.jpg", "labels.png"),
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.pt", "last.1.pt", "best.pt"}
    pictures = [read_image(path) for path in (run / "pictures").iterdir()]
    assert len(pictures) == 4 and all(picture.shape == (320, 320, 3) for picture in pictures)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics.keys() == METRICS
    assert all(v is None or 0 <= v <= 1 for k, v in metrics.items() if k not in ("per_class", "settings"))
    for detection in json.loads((run / "detections.json").read_text()):
        assert detection.keys() == {"image_id", "category_id", "bbox", "score"}
        assert 1 <= detection["category_id"] <= 6 and 1 <= detection["image_id"] <= 4
    assert [int(row["step"]) for row in rows_of(run)] == list(range(STEPS))
    assert load_config(str(run / "config.yaml")) == load_config(str(work / "tiny.yaml"))
    assert re.match(r"# detector at commit \S+\n", (run / "config.yaml").read_text())


@pytest.mark.slow
def test_evaluate_finds_the_runs_own_numbers(run: Path, tmp_path: Path):
    before = snapshot(run)
    assert run_tool("evaluate", "--checkpoint", run / "checkpoints/last.pt", "--out", tmp_path / "a") == 0
    for name in ("metrics.json", "detections.json"):
        assert (tmp_path / "a" / name).read_text() == (run / name).read_text()
    assert len(json.loads((run / "detections.json").read_text())) > 0
    assert snapshot(run) == before
    assert run_tool("evaluate", "--checkpoint", run / "checkpoints/best.pt", "--cfg", run / "config.yaml") == 0
    best = json.loads((run / "evaluation_val/metrics.json").read_text())
    checkpoint = load_checkpoint(run / "checkpoints/last.pt")
    assert best["AP"] == checkpoint["training"]["best_ap"]


@pytest.mark.slow
def test_evaluate_on_the_other_split_with_another_score_threshold(run: Path, tmp_path: Path):
    options = ("--split", "train", "--out", tmp_path / "a", "evaluation.score_threshold=0.1")
    assert run_tool("evaluate", "--checkpoint", run / "checkpoints/last.pt", *options) == 0
    detections = json.loads((tmp_path / "a/detections.json").read_text())
    assert {d["image_id"] for d in detections} <= set(range(1, 17)) and all(d["score"] > 0.1 for d in detections)
    assert json.loads((tmp_path / "a/metrics.json").read_text())["settings"]["score_threshold"] == 0.1


def write_photos(folder: Path) -> None:
    """a.png, b.jpg, sub/a.png of odd sizes."""
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (97, 61)), ("b.jpg", (50, 133)), ("sub/a.png", (64, 64))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, rng.integers(256, size=(*size, 3), dtype=np.uint8))


@pytest.mark.slow
def test_infer_on_a_folder_a_glob_and_a_file(run: Path, tmp_path: Path):
    write_photos(tmp_path / "in")
    before, out = snapshot(tmp_path / "in"), tmp_path / "out"
    inputs = (tmp_path / "in", str(tmp_path / "in/sub/*.png"), tmp_path / "in/b.jpg")
    checkpoint = run / "checkpoints/last.pt"
    assert run_tool("infer", "--checkpoint", checkpoint, *inputs, "--out", out, "--score", 0.02) == 0
    assert {path.name for path in out.iterdir()} == {"a.png", "b.jpg", "a_2.png", "detections.json"}
    assert read_image(out / "b.jpg").shape == (50, 133, 3) and read_image(out / "a_2.png").shape == (64, 64, 3)
    detections = json.loads((out / "detections.json").read_text())
    assert {d["image_id"] for d in detections} == {1, 2, 3}
    sizes = {1: (61, 97), 2: (133, 50), 3: (64, 64)}
    class_names = load_checkpoint(checkpoint)["class_names"]
    for detection in detections:
        x, y, w, h = detection["bbox"]
        width, height = sizes[detection["image_id"]]
        assert 0 <= x <= x + w <= width + 1e-3 and 0 <= y <= y + h <= height + 1e-3
        assert detection["score"] > 0.02 and detection["category"] == class_names[detection["category_id"] - 1]
    assert {Path(d["file_name"]) for d in detections} == set(before)
    assert not np.array_equal(read_image(out / "a.png"), read_image(tmp_path / "in/a.png"))  # something is drawn
    assert snapshot(tmp_path / "in") == before
    assert run_tool("infer", "--checkpoint", checkpoint, *inputs, "--out", out, "--score", 1.0) == 0
    assert json.loads((out / "detections.json").read_text()) == []


@pytest.mark.slow
def test_infer_leaves_unreadable_images_out_and_says_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    write_photos(tmp_path / "in")
    (tmp_path / "in/aa.jpg").write_bytes(b"not an image")
    options = ("--checkpoint", run / "checkpoints/last.pt", tmp_path / "in", "--out", tmp_path / "out")
    assert run_tool("infer", *options) == 2
    assert_one_line(capsys, r"1 of 3 inputs .*aa\.jpg: ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "b.jpg", "detections.json"}


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(run: Path):
    before = {k: v for k, v in snapshot(run).items() if k.suffix in (".csv", ".json", ".pt", ".yaml")}
    assert run_tool("train", "--cfg", run / "config.yaml", "--out", run, "--resume", "auto") == 0
    assert {k: v for k, v in snapshot(run).items() if k in before} == before


@pytest.mark.slow
def test_a_run_ended_by_sigterm_and_resumed_equals_the_uninterrupted_one(run: Path, work: Path, tmp_path: Path):
    command = (
        "--cfg",
        work / "tiny.yaml",
        "--out",
        tmp_path / "b",
        "--resume",
        "auto",
    )  # as a cluster would repeat it
    process = start_command(tmp_path, "train", *command)
    rows, deadline = tmp_path / "b/metrics.csv", time.monotonic() + 100
    while not (rows.is_file() and rows.read_text().count("\n") > 1) and process.is_running:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    ended = process.end()
    assert ended.code == 143, ended.errors
    assert "Traceback" not in ended.errors and "--resume auto" in ended.errors
    done = load_checkpoint(tmp_path / "b/checkpoints/last.pt")["training"]["steps_done"]
    assert 1 <= done < STEPS and len(rows_of(tmp_path / "b")) == done
    assert run_tool("train", *command) == 0
    assert rows_of(tmp_path / "b") == rows_of(run)
    for name in ("metrics.json", "detections.json"):
        assert (tmp_path / "b" / name).read_text() == (run / name).read_text()


@pytest.mark.slow
def test_a_run_that_is_resumed_with_another_optimizer_stays_as_it_is(run: Path, capsys: pytest.CaptureFixture):
    before = snapshot(run)
    command = ("--cfg", run / "config.yaml", "--out", run, "--resume", "auto", "train.optimizer=adamw")
    assert run_tool("train", *command) == 2
    assert_one_line(capsys, r"train\.optimizer: sgd before, adamw now")
    assert snapshot(run) == before


def test_batch_norm_over_one_value_is_one_line_with_the_keys(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    overrides = ("model.backbone.norm=batch", "train.batch_size=1", "data.short_side=8", "train.epochs=1")
    overrides += ("model.levels=[3, 5]", "model.head.sizes=null")
    assert run_tool("train", "--cfg", work / "tiny.yaml", "--out", tmp_path / "out", *overrides) == 2
    assert_one_line(capsys, r"train\.batch_size.*data\.short_side.*model\.backbone\.norm")


def assert_one_line(capsys: pytest.CaptureFixture, fact: str) -> None:
    errors = capsys.readouterr().err
    assert re.match(rf"error: .*{fact}.*\n$", errors), errors
    assert "Traceback" not in errors


def write_coco(folder: Path, *class_names: str) -> None:
    folder.mkdir()
    write_image(folder / "a.png", np.zeros((64, 64, 3), dtype=np.uint8))
    (folder / "a.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
                "annotations": [
                    {"id": i, "image_id": 1, "category_id": i, "bbox": [5, 5, 20, 20]}
                    for i in range(1, 1 + len(class_names))
                ],
                "categories": [{"id": i, "name": name} for i, name in enumerate(class_names, 1)],
            }
        )
    )


def coco(folder: str) -> str:
    return f"{{type: coco, images: {folder}, annotations: {folder}/a.json}}"


@pytest.mark.parametrize(
    ("overrides", "fact"),
    [
        (["loss.classification.gama=2"], r"loss\.classification\.gama: .*'gamma'\?"),
        (["loss.classification=focl"], r"loss\.classification.*'focl'; did you mean 'focal'\?.*"),
        (["train.lr=fast"], r"train\.lr: 'fast' is wrong"),
        (["train.epochs"], r"'train\.epochs'.*key\.path=value"),
        (["model.backbone.norm=frozen"], r"model\.backbone\.norm: frozen batch norm .*model\.weights"),
        (["model.weights=gone.pt"], r"gone\.pt: no such weights file"),
        (["train.accumulation=9"], r"train\.accumulation: .*\b9\b.*\b8\b.*train\.batch_size"),
        ([f"data.train={coco('gone')}"], r"gone/a\.json: cannot read the annotations"),
        (
            [f"data.train={coco('cats')}", f"data.val={coco('zoo')}"],
            r"zoo/a\.json: annotation 2 of image 'a\.png': .*'dog'",
        ),
        ([f"data.train={coco('no_image')}"], r"no_image/a\.png: no such image"),
        (
            ["data.train={type: coco, images: cats, annotations: cats/bare.json}", "data.keep_empty=false"],
            r"data\.train: .*data\.keep_empty",
        ),
        (["--resume", "gone.pt"], r"gone\.pt: no such weights file"),
        (["--resume", "foreign.pt"], r"foreign\.pt: .*class_names"),
    ],
)
def test_train_names_what_is_wrong_and_writes_nothing(
    overrides: list[str], fact: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    write_coco(tmp_path / "cats", "cat")
    bare = json.loads((tmp_path / "cats/a.json").read_text()) | {"annotations": []}
    (tmp_path / "cats/bare.json").write_text(json.dumps(bare))
    write_coco(tmp_path / "zoo", "cat", "dog")
    write_coco(tmp_path / "no_image", "cat")
    (tmp_path / "no_image/a.png").unlink()
    torch.save({"weight": torch.zeros(3)}, tmp_path / "foreign.pt")
    before = snapshot(tmp_path)
    assert run_tool("train", "--cfg", work / "tiny.yaml", "--out", tmp_path / "out", *overrides) == 2
    assert_one_line(capsys, fact)
    assert snapshot(tmp_path) == before and not (tmp_path / "out").exists()


def test_the_example_that_train_gives_is_a_valid_one():
    example = re.search(r"Example: .*--cfg (\S+) --out \S+ (.*)", (REPO / "detector/cli/train.py").read_text())
    config = load_config(example[1], example[2].split())
    assert config.loss.classification.parameters["gamma"] == 1.0


def test_train_without_its_config_names_the_known_ones(capsys: pytest.CaptureFixture):
    assert run_tool("train", "--cfg", "retina_focl") == 2
    assert_one_line(capsys, r"'retina_focl'.*'retina_focal'\?.*bccd_focal")


def test_train_leaves_a_folder_that_holds_a_run_alone(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "metrics.csv").write_text("step,loss\n0,1.0\n")
    before = snapshot(tmp_path)
    assert run_tool("train", "--cfg", work / "tiny.yaml", "--out", tmp_path) == 2
    assert_one_line(capsys, f"{re.escape(str(tmp_path))}: .*--resume auto")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["evaluate", "infer"])
@pytest.mark.parametrize(
    ("file", "fact"),
    [("gone.pt", ""), ("foreign.pt", ".*class_names"), ("text.pt", ".*torch.save|.*another file")],
)
def test_evaluate_and_infer_need_a_checkpoint_of_ours(
    name: str, file: str, fact: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "foreign.pt")
    (tmp_path / "text.pt").write_text("text")
    write_photos(tmp_path / "in")
    before = snapshot(tmp_path)
    inputs = [tmp_path / "in"] if name == "infer" else []
    assert run_tool(name, "--checkpoint", tmp_path / file, *inputs, "--out", tmp_path / "out") == 2
    assert_one_line(capsys, rf"{re.escape(file)}: {fact}")
    assert snapshot(tmp_path) == before and not (tmp_path / "out").exists()


def test_evaluate_without_anything_to_evaluate(capsys: pytest.CaptureFixture):
    assert run_tool("evaluate") == 2
    assert_one_line(capsys, "--checkpoint PATH.*--cfg.*model.weights")


@pytest.mark.parametrize(
    ("inputs", "fact"),
    [
        (["empty"], "empty: .*image"),
        (["gone.jpg"], r"gone\.jpg: .*image"),
        (["in/*.bmp"], r"in/\*\.bmp: .*image"),
        (["notes.txt"], r"notes\.txt: '\.txt' is not an image suffix"),
        (["in", "--out", "in"], "--out in: "),
        (["in/sub/*.png", "in/b.jpg", "--out", "in/sub"], "--out in/sub: "),
    ],
)
def test_infer_names_inputs_that_are_wrong(inputs: list[str], fact: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    write_photos(tmp_path / "in")
    before = snapshot(tmp_path)
    assert run_tool("infer", "--checkpoint", "gone.pt", *inputs) == 2
    assert_one_line(capsys, fact)
    assert snapshot(tmp_path) == before
