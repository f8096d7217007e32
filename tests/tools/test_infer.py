"""The command `infer` on real images and videos: its formats agree, and its errors name the inputs."""

import csv
import json
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ranks import start_command
from tiny_checkpoint import CATEGORY_IDS, CLASS_NAMES, save_tiny_checkpoint
from tools_run import run_tool
from videos import read_video, write_video

import detector.deploy.inference.sources  # noqa: F401  (switches off FFmpeg's log, before a test writes a video)
from detector import Detector
from detector.core.errors import UserError
from detector.data.images import read_image, write_image
from detector.deploy.inference.sinks import Drawings
from detector.deploy.inference.sources import Picture


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def noise() -> np.ndarray:
    """Frames (30, 62, 96, 3) with random pixels."""
    return np.random.default_rng(0).integers(256, size=(30, 62, 96, 3), dtype=np.uint8)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "detections.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def results_of(folder: Path) -> list[dict]:
    return json.loads((folder / "detections.json").read_text())


def assert_error_line(capsys: pytest.CaptureFixture, *facts: str) -> None:
    """Assert that stderr is a single error line that contains the facts in this order."""
    errors = line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1, errors
    for fact in facts:
        assert fact in line, errors
        line = line.partition(fact)[2]


def as_row(result: dict) -> tuple:
    x, y, w, h = result["bbox"]
    names = result["file_name"], str(result.get("frame", "")), result["category"]
    return *names, *map(pytest.approx, (result["score"], x, y, x + w, y + h))


@pytest.mark.parametrize("frames", [[], ["--frames", 12]])
def test_all_formats_agree_on_a_video_and_images(frames, checkpoint, noise, shared_data, tmp_path):
    photos = sorted((shared_data / "coco_tiny/val2017").glob("*.jpg"))[:3]
    write_video(tmp_path / "clip.avi", 30, size=(62, 96), rate=10, frames=noise)
    out, num_frames = tmp_path / "out", 12 if frames else 30
    inputs = [photos[0], tmp_path / "clip.avi", *photos[1:]]
    options = ["--save", "yolo", "coco", "csv", "--score", 0.6, "--batch-size", 7, *frames]
    assert run_tool("infer", "--checkpoint", checkpoint, *inputs, "--out", out, *options) == 0

    results, rows = results_of(out), rows_of(out)
    assert [tuple(row.values())[:3] + tuple(map(float, tuple(row.values())[3:])) for row in rows] == list(
        map(as_row, results)
    )
    assert list(rows[0]) == ["file", "frame", "class", "score", "x1", "y1", "x2", "y2"]
    assert all(result["category"] == CLASS_NAMES[CATEGORY_IDS.index(result["category_id"])] for result in results)
    ids = {(result["file_name"], result.get("frame")): result["image_id"] for result in results}
    of_frames = {(str(inputs[1]), i): i + 2 for i in range(num_frames)}
    stills = {(str(photos[0]), None): 1, (str(photos[1]), None): num_frames + 2, (str(photos[2]), None): num_frames + 3}
    assert ids == of_frames | stills

    assert (out / "yolo/classes.txt").read_text().splitlines() == list(CLASS_NAMES)
    for file, frame in of_frames | stills:
        of_image = [result for result in results if (result["file_name"], result.get("frame")) == (file, frame)]
        labels = out / "yolo" / (f"{Path(file).stem}.txt" if frame is None else f"clip/{frame:06}.txt")
        height, width = noise.shape[1:3] if frame is not None else read_image(Path(file)).shape[:2]
        for line, result in zip(labels.read_text().splitlines(), of_image, strict=True):
            label, cx, cy, w, h, score = map(float, line.split())
            box = ((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height)
            assert result["bbox"] == pytest.approx(box, abs=1e-3) and result["score"] == pytest.approx(score)
            assert result["category_id"] == CATEGORY_IDS[int(label)]
    assert len(list((out / "yolo").rglob("*.txt"))) == num_frames + 3 + 1  # with classes.txt

    drawn = read_video(out / "clip.mp4")
    assert len(drawn) == num_frames and drawn[0].shape == (62, 96, 3)
    for path in photos:
        assert read_image(out / path.name).shape == read_image(path).shape
        assert not np.array_equal(read_image(out / path.name), read_image(path))
    detector = Detector.load(checkpoint)
    (expected,) = detector.predict([photos[2]], score_threshold=0.6)  # its batch has no other image
    assert [result["score"] for result in results if result["image_id"] == num_frames + 3] == pytest.approx(
        expected.scores.tolist(), abs=1e-3
    )


def test_the_options_choose_classes_and_views(checkpoint, shared_data, tmp_path):
    photo = sorted((shared_data / "coco_tiny/val2017").glob("*.jpg"))[4]
    where = ["--checkpoint", checkpoint, photo, "--score", 0.5]
    assert run_tool("infer", *where, "--out", tmp_path / "a", "--classes", "square", "disc") == 0
    assert {result["category"] for result in results_of(tmp_path / "a")} == {"square", "disc"}
    assert run_tool("infer", *where, "--out", tmp_path / "b", "--flip", "--scales", 1, 1.5) == 0
    overrides = ["evaluation.flip=true", "evaluation.scales=[1.0, 1.5]"]
    (augmented,) = Detector.load(checkpoint, overrides=overrides).predict([photo], score_threshold=0.5)
    assert [result["score"] for result in results_of(tmp_path / "b")] == augmented.scores.tolist()
    (plain,) = Detector.load(checkpoint).predict([photo], score_threshold=0.5)
    assert augmented.scores.tolist() != plain.scores.tolist()


def test_a_picture_without_objects_gets_a_line_with_the_threshold_and_its_highest_score(
    checkpoint, shared_data, tmp_path, caplog
):
    photo = sorted((shared_data / "coco_tiny/val2017").glob("*.jpg"))[0]
    (every,) = Detector.load(checkpoint).predict([photo], score_threshold=0)
    highest = every.scores[0].item()
    threshold = round(highest, 3) + 0.001
    caplog.set_level("INFO")
    arguments = ("--checkpoint", checkpoint, photo, "--out", tmp_path / "out")
    assert run_tool("infer", *arguments, "--score", threshold) == 0
    (line,) = (text for text in caplog.messages if text.startswith(f"{photo}: "))
    assert all(fact in line for fact in ("0 objects", f"{threshold:g}", "--score", f"{highest:.3f}"))
    assert results_of(tmp_path / "out") == []


def test_the_line_of_a_picture_counts_its_objects_by_class(checkpoint, shared_data, tmp_path, caplog):
    photo = sorted((shared_data / "coco_tiny/val2017").glob("*.jpg"))[4]
    caplog.set_level("INFO")
    arguments = ("--checkpoint", checkpoint, photo, "--score", 0.5, "--out", tmp_path)
    assert run_tool("infer", *arguments) == 0
    (line,) = (text for text in caplog.messages if text.startswith(f"{photo}: "))
    names = Counter(result["category"] for result in results_of(tmp_path))
    assert len(names) > 1 and f"{names.total()} objects" in line
    assert all(f"{name} {count}" in line for name, count in names.items())


def test_the_lower_scores_of_a_picture_do_not_change_its_detections(shared_data, tmp_path):
    """The picture has more candidates than `evaluation.max_detections`."""
    checkpoint = save_tiny_checkpoint(tmp_path, "evaluation.max_detections=20")
    photo = sorted((shared_data / "coco_tiny/val2017").glob("*.jpg"))[0]
    detector = Detector.load(checkpoint)
    for threshold, is_limited in ((0.02, True), (detector.predict([photo])[0].scores[7].item(), False)):
        (expected,) = detector.predict([photo], score_threshold=threshold)
        assert len(expected.scores) == (20 if is_limited else 7)
        out = tmp_path / f"{threshold}"
        assert run_tool("infer", "--checkpoint", checkpoint, photo, "--score", threshold, "--out", out) == 0
        assert [result["score"] for result in results_of(out)] == expected.scores.tolist()


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--classes", "squre"], ("'squre'", "'square'?", "disc, square, triangle")),
        (["--scales", 0.8], ("evaluation.scales: ", "0.8", "1.0")),
        (["--scales", 1, -1], ("evaluation.scales.1: ", "-1.0")),
        (["--scales", 1, 1000], ("evaluation.scales: ", "1000")),
        (["--scales", 1, "nan"], ("evaluation.scales",)),
        (["--scales", 1, "inf"], ("evaluation.scales",)),
        (["--batch-size", 0], ("evaluation.batch_size: ", "0")),
        (["--batch-size", -3], ("evaluation.batch_size: ", "-3")),
        (["--score", 1.5], ("evaluation.score_threshold: ", "1.5")),
        (["--score", "nan"], ("evaluation.score_threshold: ",)),
        (["--score", "inf"], ("evaluation.score_threshold: ",)),
        (["--score", -0.1], ("evaluation.score_threshold: ", "-0.1")),
        (["--frames", 0], ("--frames 0", "--frames 1")),
        (["--frames", -1], ("--frames -1", "--frames 1")),
        (["--out", "."], ("--out .: ",)),
    ],
)
def test_wrong_options_are_refused_before_a_file_is_written(options, facts, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "clip.mp4", 3, codec="mp4v")
    before = (tmp_path / "clip.mp4").read_bytes()
    assert run_tool("infer", "--checkpoint", checkpoint, "clip.mp4", *options) == 2
    assert_error_line(capsys, *facts)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert (tmp_path / "clip.mp4").read_bytes() == before


def test_the_error_at_the_end_names_the_inputs_that_cannot_be_read(checkpoint, tmp_path, capfd):
    write_image(tmp_path / "a.png", np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "b.mp4").write_bytes(b"not a video" * 100)
    inputs = ("97", tmp_path / "a.png", tmp_path / "b.mp4")
    assert run_tool("infer", "--checkpoint", checkpoint, *inputs, "--out", tmp_path / "out") == 2
    assert_error_line(capfd, "2 of 3 ", "camera 97: ", "b.mp4: ")
    assert {result["file_name"] for result in results_of(tmp_path / "out")} == {str(tmp_path / "a.png")}


@pytest.mark.slow
def test_an_interrupt_keeps_the_written_detections(checkpoint, tmp_path):
    """The video has 20,000 frames, and each frame takes many milliseconds."""
    write_video(tmp_path / "long.avi", 20_000, size=(32, 32))
    out = tmp_path / "out"
    options = ("--out", out, "--score", "0.5", "--save", "coco", "csv", "--batch-size", "2")
    process = start_command(tmp_path, "infer", "--checkpoint", checkpoint, tmp_path / "long.avi", *options)
    deadline = time.monotonic() + 100
    while not ((out / "detections.csv").is_file() and len(rows_of(out)) > 100) and process.is_running:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    ended = process.end()
    assert ended.code == 130 and "Traceback" not in ended.errors, ended.errors
    results, rows = results_of(out), rows_of(out)
    assert len(results) == len(rows) > 100 and not (out / "detections.json.tmp").exists()
    last = max(result["frame"] for result in results)
    assert len(read_video(out / "long.mp4")) >= last + 1 and last < 19_999


def test_the_error_counts_inputs_and_not_their_frames(checkpoint, tmp_path, monkeypatch, capfd):
    write_video(tmp_path / "a.avi", 3)
    write_image(tmp_path / "b.png", np.zeros((64, 64, 3), np.uint8))

    def write(sink: Drawings, picture: Picture, detections: object) -> None:
        if picture.frame is not None:
            raise UserError(f"{picture.source}: frame {picture.frame} cannot be written")

    monkeypatch.setattr(Drawings, "write", write)
    inputs = (tmp_path / "a.avi", tmp_path / "b.png")
    assert run_tool("infer", "--checkpoint", checkpoint, *inputs, "--out", tmp_path / "out") == 2
    assert_error_line(capfd, "1 of 2 ", "frame 0 ", "frame 2 ")


def test_a_drawn_picture_that_cannot_be_written_does_not_end_the_command(checkpoint, tmp_path, capfd):
    """The input is a PNG with the suffix of WebP, and its width is over WebP's limit of 16383 pixels."""
    pixels = np.random.default_rng(0).integers(256, size=(8, 20_000, 3), dtype=np.uint8)
    write_image(tmp_path / "a.png", pixels)
    (tmp_path / "a.png").rename(tmp_path / "a.webp")
    write_image(tmp_path / "b.png", pixels[:, :64])
    inputs = (tmp_path / "a.webp", tmp_path / "b.png")
    assert run_tool("infer", "--checkpoint", checkpoint, *inputs, "--out", tmp_path / "out", "--score", 0.01) == 2
    assert_error_line(capfd, "1 of 2 ", "a.webp: ")
    assert {result["file_name"] for result in results_of(tmp_path / "out")} == set(map(str, inputs))
    assert (tmp_path / "out/b.png").is_file() and not (tmp_path / "out/a.webp").exists()
