"""Data and arguments with typical faults, as input of the real tools.

Each fault causes a line that names its location and the remedy. No other entry is lost, and no file is overwritten.
"""

import csv
import json
import logging
import math
import os
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from tiny import TINY
from tools_run import run_tool

from detector.build import build_dataset, build_model
from detector.config import config_from_text, load_config
from detector.data.checks.findings import KINDS
from detector.data.dataset import DetectionDataset
from detector.data.images import as_rgb, write_image
from detector.deploy.predict import Detector
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.evaluation.coco import coco_metrics
from detector.old_versions import CHECKPOINT_VERSION

NUM_IMAGES, SIZE = 6, 64  # each image has two objects, a cat and a dog


def contents() -> dict[str, Any]:
    """Return the contents of an intact COCO file."""
    images = [{"id": i, "file_name": f"{i}.png", "width": SIZE, "height": SIZE} for i in range(1, NUM_IMAGES + 1)]
    boxes = ([4, 6, 20, 16], [30.5, 20, 24, 30])
    annotations = [
        {"id": 2 * i + k - 1, "image_id": i, "category_id": 1 + k, "bbox": list(box), "area": 300.0, "iscrowd": 0}
        for i in range(1, NUM_IMAGES + 1)
        for k, box in enumerate(boxes)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


class DataFolder:
    """A folder with an intact data set in train/ and val/, which a case damages."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.images = folder / "train"
        self.contents = contents()
        (folder / "tiny.yaml").write_text(TINY)
        rng = np.random.default_rng(0)
        for split in ("train", "val"):
            (folder / split).mkdir()
            for i in range(1, NUM_IMAGES + 1):
                write_image(folder / f"{split}/{i}.png", rng.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8))
        self.write(json.dumps(contents()), "val")

    def write(self, text: str, split: str = "train") -> None:
        (self.folder / f"{split}.json").write_text(text)

    def change(self, section: str, index: int, **values: Any) -> None:
        self.contents[section][index].update(values)

    def rename(self, index: int, name: str) -> Path:
        """Remove the file of an image, change its name in the annotations, and return the new path."""
        (self.images / self.contents["images"][index]["file_name"]).unlink()
        self.change("images", index, file_name=name)
        return self.images / name

    def overrides(self) -> list[str]:
        return [
            f"data.{split}={{type: coco, images: {self.folder / split}, annotations: {self.folder / split}.json}}"
            for split in ("train", "val")
        ]

    def damage(self, case: "Case") -> list[str]:
        """Damage the data set, and return the arguments of a tool."""
        self.write("")
        arguments = case.damage(self) or []
        if not (self.folder / "train.json").read_text():
            self.write(json.dumps(self.contents))
        return ["--cfg", str(self.folder / "tiny.yaml"), *self.overrides(), "train.epochs=1", *arguments]


@dataclass(frozen=True)
class Case:
    """A data set or an argument with a fault, and the expected reaction.

    Attributes:
        number: the number of the group of cases.
        title: the name of the test case.
        damage: creates the fault, and may return more arguments.
        facts: texts that the message contains, such as the file, the entry and the value. DIR is the folder.
        kind: the kind of the finding in KINDS, or an empty text for a fault that is not in the data.
        remaining: the numbers of images and objects with data.invalid=skip. None means that the training stops.
        count: the number of entries with the fault.
        is_late: whether the fault is detected only when the image is read.
    """

    number: int
    title: str
    damage: Callable[[DataFolder], list[str] | None]
    facts: tuple[str, ...]
    kind: str = ""
    remaining: tuple[int, int] | None = None
    count: int = 1
    is_late: bool = False

    @property
    def level(self) -> str:
        return KINDS[self.kind].level if self.kind else "fatal"

    def assert_reported(self, line: str) -> None:
        """Assert that the error line of a tool has the facts, the remedy, and the number of invalid entries."""
        assert all(fact in line for fact in self.facts), line
        if self.level == "invalid":
            remedy = line.partition(KINDS[self.kind].remedy)[2]
            assert "data.invalid=skip" in remedy and re.search(rf"\b{self.count}\b", remedy), line

    def assert_logged(self, lines: list[str]) -> None:
        """Assert that a line of the log has the kind, the number of entries, the effect and the facts."""
        kind = KINDS[self.kind]
        facts = ("data.train: ", kind.what, str(self.count), kind.becomes, *self.facts)
        assert any(all(fact in line for fact in facts) for line in lines), lines

    def __str__(self) -> str:
        return f"{self.number} {self.title}"


def damaged_image(name: str, make: Callable[[bytes], bytes]) -> Callable[[DataFolder], None]:
    def damage(data: DataFolder) -> None:
        path = data.rename(2, name)
        write_image(path, np.random.default_rng(0).integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8))
        path.write_bytes(make(path.read_bytes()))

    return damage


def bomb(_: bytes) -> bytes:
    """Return a PNG of 30 kB with 178 megapixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    side = 13_350
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # gray, a bit per pixel
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def changed(section: str, index: int, **values: Any) -> Callable[[DataFolder], None]:
    return lambda data: data.change(section, index, **values)


def corners(data: DataFolder) -> None:
    for annotation in data.contents["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]


def sparse(data: DataFolder) -> None:
    """Change the category ids to 0 and 7, and the image ids to 0, 500, 1000 and so on."""
    for category in data.contents["categories"]:
        category["id"] = 7 * (category["id"] - 1)
    for image in data.contents["images"]:
        image["id"] = 500 * (image["id"] - 1)
    for annotation in data.contents["annotations"]:
        annotation["category_id"] = 7 * (annotation["category_id"] - 1)
        annotation["image_id"] = 500 * (annotation["image_id"] - 1)


def without(key: str) -> Callable[[DataFolder], None]:
    def damage(data: DataFolder) -> None:
        for annotation in data.contents["annotations"][:2]:
            del annotation[key]

    return damage


def outside(name: str) -> Callable[[DataFolder], None]:
    def damage(data: DataFolder) -> None:
        write_image(data.folder / "secret.png", np.zeros((SIZE, SIZE, 3), dtype=np.uint8))
        data.rename(2, name.replace("DIR", str(data.folder)))

    return damage


def text(make: Callable[[str], str]) -> Callable[[DataFolder], None]:
    return lambda data: data.write(make(json.dumps(data.contents)))


def given(*arguments: str) -> Callable[[DataFolder], list[str]]:
    return lambda data: [argument.replace("DIR", str(data.folder)) for argument in arguments]


class Malice:
    """An object whose unpickling creates a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def weights(make: Callable[[DataFolder, Path], None], *arguments: str) -> Callable[[DataFolder], list[str]]:
    def damage(data: DataFolder) -> list[str]:
        make(data, data.folder / "x.pt")
        return given(*(arguments or ("model.weights=DIR/x.pt",)))(data)

    return damage


def foreign(_: DataFolder, path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path)


def malicious(data: DataFolder, path: Path) -> None:
    path.write_bytes(pickle.dumps(Malice(data.folder / "marker"), 2))


def of_other_classes(_: DataFolder, path: Path) -> None:
    model = build_model(config_from_text(TINY, "TINY"), 1).state_dict()
    checkpoint = {
        "version": CHECKPOINT_VERSION,
        "config": TINY,
        "class_names": ["cow"],
        "category_ids": [1],
        "model": model,
        "training": {},
    }
    save_checkpoint(path, checkpoint)


def yaml_config(line: str) -> Callable[[DataFolder], list[str]]:
    def damage(data: DataFolder) -> list[str]:
        (data.folder / "bad.yaml").write_text(TINY + line.replace("DIR", str(data.folder)))
        return ["--cfg", str(data.folder / "bad.yaml")]

    return damage


def yolo(content: str) -> Callable[[DataFolder], list[str]]:
    def damage(data: DataFolder) -> list[str]:
        (data.folder / "data.yaml").write_text(content.replace("DIR", str(data.folder)))
        return given("data.train={type: yolo, annotations: DIR/data.yaml, split: train}")(data)

    return damage


def empty_val(data: DataFolder) -> None:
    data.write(json.dumps(contents() | {"images": [], "annotations": []}), "val")


def empty_voc_split(data: DataFolder) -> list[str]:
    (data.folder / "val.txt").write_text("\n")
    return given("data.val={type: voc, images: DIR/val, annotations: DIR/val, split: DIR/val.txt}")(data)


def one_image(data: DataFolder) -> list[str]:
    data.contents["images"] = data.contents["images"][:1]
    data.contents["annotations"] = data.contents["annotations"][:2]
    return ["data.val=null", "data.split=0.8"]


JSON, THIRD, FIFTH = "DIR/train.json", "DIR/train/3.jpg", ("DIR/train.json", "annotation 5", "'3.png'")
NINES = "9" * 400

CASES = (
    Case(1, "a JPEG without its end", damaged_image("3.jpg", lambda content: content[:-20]),
         (THIRD, "JPEG"), "image_unreadable", (5, 10)),
    Case(1, "a PNG without its end", damaged_image("3.png", lambda content: content[: len(content) // 2]),
         ("DIR/train/3.png",), "image_damaged", is_late=True),
    Case(2, "an empty image file", damaged_image("3.jpg", lambda _: b""), (THIRD,), "image_unreadable", (5, 10)),
    Case(3, "a text named .jpg", damaged_image("3.jpg", lambda _: b"text"), (THIRD,), "image_unreadable", (5, 10)),
    Case(4, "a missing image", lambda data: (data.images / "3.png").unlink(),
         ("DIR/train/3.png", JSON), "image_missing", (5, 10)),
    Case(5, "a PNG of 23 kB and 178 megapixels", damaged_image("3.png", bomb),
         ("DIR/train/3.png", "13350", "178000000"), "image_unreadable", (5, 10)),
    Case(8, "another size than annotated", changed("images", 2, width=63),
         ("DIR/train/3.png", "64", "63"), "image_unlike", (5, 10)),
    Case(9, "a width of zero", changed("annotations", 4, bbox=[4, 6, 0, 16]),
         (*FIFTH, "[4, 6, 0, 16]"), "box_empty", (6, 11)),
    Case(9, "a negative height", changed("annotations", 4, bbox=[4, 6, 20, -16]),
         (*FIFTH, "[4, 6, 20, -16]"), "box_empty", (6, 11)),
    Case(10, "a box with NaN", changed("annotations", 4, bbox=[4, math.nan, 20, 16]),
         (*FIFTH, "[4, nan, 20, 16]"), "box_malformed", (6, 11)),
    Case(10, "a box with Inf", changed("annotations", 4, bbox=[4, 6, math.inf, 16]),
         (*FIFTH, "[4, 6, inf, 16]"), "box_malformed", (6, 11)),
    Case(11, "a box completely outside", changed("annotations", 4, bbox=[70, 6, 20, 16]),
         (*FIFTH, "[70, 6, 20, 16]"), "box_outside", (6, 11)),
    Case(11, "a box partly outside", changed("annotations", 4, bbox=[50, 6, 20, 16]),
         (*FIFTH, "[50, 6, 20, 16]", "64"), "box_clipped", (6, 12)),
    Case(12, "x1, y1, x2, y2 as x, y, w, h", corners,
         (JSON, "annotation 2", "'1.png'", "[30.5, 20, 54.5, 50]"), "box_corners", (6, 12), count=6),
    Case(13, "a repeated annotation id", changed("annotations", 4, id=1),
         (JSON, "annotation 1", "'3.png'"), "annotation_id", (6, 12)),
    Case(13, "an annotation id of 0", changed("annotations", 4, id=0),
         (JSON, "annotation 0", "'3.png'"), "annotation_id", (6, 12)),
    Case(14, "a repeated image id", changed("images", 2, id=1), (JSON, "id 1", "images"), "data_set"),
    Case(14, "an image listed twice", changed("images", 2, file_name="1.png"),
         (JSON, "'1.png'"), "image_twice", (5, 10)),
    Case(15, "an unknown category", changed("annotations", 4, category_id=9),
         (*FIFTH, "category_id", "9", "categories"), "category_unknown", (6, 11)),
    Case(16, "category ids from 0, with gaps", sparse, (JSON, "0, 7"), "category_ids", (6, 12)),
    Case(17, "an unknown image", changed("annotations", 4, image_id=99),
         (JSON, "annotation 5", "image_id", "99"), "annotation_orphan", (6, 11)),
    Case(18, "annotations without area", without("area"), (JSON, "annotation 1", "'1.png'"), "area", (6, 12), count=2),
    Case(18, "annotations without iscrowd", without("iscrowd"),
         (JSON, "annotation 1", "'1.png'"), "crowd", (6, 12), count=2),
    Case(20, "an image at ../", outside("../secret.png"),
         (JSON, "'../secret.png'", "DIR/train"), "image_outside", (5, 10)),
    Case(20, "an image by its absolute path", outside("DIR/secret.png"),
         (JSON, "'DIR/secret.png'", "DIR/train"), "image_outside", (5, 10)),
    Case(21, "JSON without its end", text(lambda t: t[:-50]), (JSON, "line 1 column 1598"), "data_set"),
    Case(21, "JSON nested a million deep", text(lambda _: "[" * 10**6), (JSON,), "data_set"),
    Case(21, "1e999 in JSON", text(lambda t: t.replace("[4, 6, 20,", "[4, 6, 1e999,", 1)),
         (JSON, "annotation 1", "'1.png'", "[4, 6, inf, 16]"), "box_malformed", (6, 11)),
    Case(21, "a number of 400 digits", text(lambda t: t.replace('"id": 6,', f'"id": {NINES},', 1)),
         (JSON, NINES, "images"), "data_set"),
    Case(21, "NaN in place of a text", text(lambda t: t.replace('"3.png"', "NaN")),
         (JSON, "images[2].file_name", "nan"), "data_set"),
    Case(22, "a misspelt key", given("loss.classification.gama=2"), ("loss.classification.gama", "'gamma'?")),
    Case(22, "a repeated key", yaml_config("train: {epochs: 2}\n"), ("DIR/bad.yaml: line 14", "'train'")),
    Case(22, "a text in place of a number", given("train.lr=1e-4x"), ("train.lr", "'1e-4x'")),
    Case(23, "a corrupt checkpoint", weights(lambda _, path: path.write_bytes(b"PK\x03\x04" + bytes(500))),
         ("DIR/x.pt",)),
    Case(23, "a foreign checkpoint as weights", weights(foreign),
         ("model.weights", "DIR/x.pt", "small_resnet", "bn1.bias, bn1.weight, conv1.weight", "model.backbone")),
    Case(23, "a run resumed from a foreign checkpoint", weights(foreign, "--resume", "DIR/x.pt"),
         ("DIR/x.pt", "category_ids, class_names, config, model, version", "model.weights")),
    Case(23, "a run resumed from a checkpoint of other classes", weights(of_other_classes, "--resume", "DIR/x.pt"),
         ("DIR/x.pt", "['cow']", "['cat', 'dog']", "model.weights=DIR/x.pt")),
    Case(24, "code in a pickle", weights(malicious), ("DIR/x.pt",)),
    Case(24, "code in a config", yaml_config("imports: !!python/object/apply:os.mkdir [DIR/marker]\n"),
         ("DIR/bad.yaml: line 14", "(!)")),
    Case(24, "code in a YOLO data.yaml", yolo("train: train\nnames: !!python/object/apply:os.mkdir [DIR/marker]\n"),
         ("DIR/data.yaml: line 2", "(!)"), "data_set"),
    Case(24, "YAML that expands to gigabytes", yolo("a: &a [x, x]\nb: &b [*a, *a]\nnames: *b\n"),
         ("DIR/data.yaml: line 1", "(&)"), "data_set"),
    Case(25, "a validation set without images", empty_val, ("DIR/val.json", "'images'"), "data_set"),
    Case(25, "an empty VOC split", empty_voc_split, ("DIR/val.txt",), "data_set"),
    Case(25, "data.split of a single image", one_image, ("data.val", "data.split")),
)  # fmt: skip
DATA = [case for case in CASES if case.kind]


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    (tmp_path / "data").mkdir()
    return DataFolder(tmp_path / "data")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(arguments: list[str], *overrides: str) -> DetectionDataset:
    """Return the training set that `detector train` reads."""
    return build_dataset(load_config(arguments[1], [*arguments[2:], *overrides]), "train")


@pytest.mark.parametrize("case", [case for case in CASES if case.level != "note"], ids=str)
def test_training_stops_with_an_error_line_and_changes_no_file(
    case: Case, data: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture
):
    arguments = data.damage(case)
    before = snapshot(data.folder)
    assert run_tool("train", *arguments, "--out", tmp_path / "out") == 2
    errors = capsys.readouterr().err.replace(str(data.folder), "DIR")
    assert errors.startswith("error: ") and errors.count("\n") == 1
    case.assert_reported(errors)
    assert snapshot(data.folder) == before and not (data.folder / "marker").exists()
    created = {path.name for path in tmp_path.iterdir()} - {"data"}
    assert created == ({"out"} if case.is_late else set()) and not list(tmp_path.glob("out/checkpoints/*"))


@pytest.mark.parametrize("case", [case for case in CASES if case.level == "note"], ids=str)
def test_training_logs_a_note_on_a_harmless_oddity(case: Case, data: DataFolder, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    dataset = read(data.damage(case))
    case.assert_logged([line.replace(str(data.folder), "DIR") for line in caplog.messages])
    assert (len(dataset), dataset.class_counts().sum()) == case.remaining


@pytest.mark.parametrize("case", DATA, ids=str)
@pytest.mark.parametrize("invalid", ["error", "skip"])
def test_the_data_check_lists_the_fault(case: Case, invalid: str, data: DataFolder, capsys: pytest.CaptureFixture):
    arguments = data.damage(case)
    before = snapshot(data.folder)
    stops = case.level == "fatal" or (case.level == "invalid" and invalid == "error")
    assert run_tool("check_data", "--json", *arguments, f"data.invalid={invalid}") == stops
    findings = json.loads(capsys.readouterr().out.replace(str(data.folder), "DIR"))["findings"]
    (finding,) = (finding for finding in findings if finding["kind"] == case.kind)
    assert finding["count"] == case.count and finding["stops"] == stops
    assert all(fact in finding["examples"][0] for fact in case.facts)
    assert snapshot(data.folder) == before and not (data.folder / "marker").exists()


@pytest.mark.parametrize("case", [case for case in CASES if case.level == "invalid"], ids=str)
def test_skip_removes_only_the_invalid_entry(case: Case, data: DataFolder, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    dataset = read(data.damage(case), "data.invalid=skip")
    assert (len(dataset), dataset.class_counts().sum()) == case.remaining
    case.assert_logged([line.replace(str(data.folder), "DIR") for line in caplog.messages])
    for record in dataset.records[-3:] if case.kind != "box_corners" else ():
        np.testing.assert_array_equal(record.boxes, np.float32([[4, 6, 24, 22], [30.5, 20, 54.5, 50]]))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.is_late], ids=str)
def test_another_image_replaces_an_unreadable_image(
    case: Case, data: DataFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    arguments = [*data.damage(case), "faults.max_unreadable=1", "train.epochs=2"]
    assert run_tool("train", *arguments, "--out", tmp_path / "out") == 0
    lines = caplog.text.replace(str(data.folder), "DIR").splitlines()
    assert any(all(fact in line for fact in case.facts) for line in lines)


# ---- data sets that train


def train(data: DataFolder, *overrides: str) -> Path:
    """Train for an epoch, assert that all losses are finite, and return the run folder."""
    out = data.folder.parent / "out"
    data.write(json.dumps(data.contents))
    options = ["--cfg", str(data.folder / "tiny.yaml"), *data.overrides(), "train.epochs=1", "train.log_every=1"]
    assert run_tool("train", *options, *overrides, "--out", out) == 0
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and all(math.isfinite(float(row[key])) for row in rows for key in ("loss", "cls", "box"))
    return out


@pytest.mark.parametrize("annotated", ["as stored", "as shown"])
def test_case_6_the_boxes_of_a_rotated_photograph_enclose_their_pixels(annotated: str, data: DataFolder):
    """The red area is at the top left as stored, and at the top right as shown (orientation 6, clockwise)."""
    pixels = np.zeros((40, SIZE, 3), dtype=np.uint8)
    pixels[:20, :32] = (255, 0, 0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(data.rename(0, "1.jpg"), quality=95, exif=exif)
    stored = annotated == "as stored"
    data.change("images", 0, width=SIZE if stored else 40, height=40 if stored else SIZE)
    data.contents["annotations"] = data.contents["annotations"][:1]
    data.change("annotations", 0, bbox=[0, 0, 32, 20] if stored else [20, 0, 20, 32])
    data.write(json.dumps(data.contents))
    sample = read(["--cfg", str(data.folder / "tiny.yaml"), *data.overrides()])[0]
    assert sample.image.shape[:2] == ((40, SIZE) if stored else (SIZE, 40))
    x1, y1, x2, y2 = sample.boxes[0].astype(int)
    red = (sample.image[..., 0] > 128) & (sample.image[..., 1] < 64)
    assert red[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].all() and red.sum() == pytest.approx(32 * 20, abs=60)


@pytest.mark.slow
def test_case_7_grey_transparent_cmyk_and_16_bit_images_train_as_rgb(data: DataFolder):
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8), (9, 9), 3)
    rgb = Image.fromarray(smooth)
    deep = Image.fromarray(smooth[..., 0].astype(np.uint16) * 257)
    pictures = {"1.png": rgb.convert("L"), "2.png": rgb.convert("RGBA"), "3.jpg": rgb.convert("CMYK"), "4.png": deep}
    for index, (name, picture) in enumerate(pictures.items()):
        picture.save(data.rename(index, name))
    train(data)
    dataset = read(["--cfg", str(data.folder / "tiny.yaml"), *data.overrides()])
    grey = [np.repeat(np.asarray(image)[..., None], 3, axis=2) for image in (rgb.convert("L"), rgb.split()[0])]
    for index, expected in enumerate((grey[0], smooth, smooth, grey[1])):
        image = dataset[index].image
        assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
        assert np.abs(image.astype(int) - expected).mean() < (6 if index == 2 else 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_case_16_detections_have_the_ids_of_the_data_set(backend: str, data: DataFolder):
    for split in ("train", "val"):
        data.contents = contents()
        sparse(data)
        data.write(json.dumps(data.contents), split)
    out = train(data, f"evaluation.backend={backend}", "evaluation.score_threshold=0", "train.lr=0.01")
    detections = json.loads((out / "detections.json").read_text())
    assert {detection["category_id"] for detection in detections} == {0, 7}
    assert {detection["image_id"] for detection in detections} == {0, 500, 1000, 1500, 2000, 2500}
    assert load_checkpoint(out / "checkpoints/last.pt")["category_ids"] == [0, 7]
    truth = [annotation | {"score": 1.0} for annotation in data.contents["annotations"]]  # of a perfect detector
    dataset = read(["--cfg", str(data.folder / "tiny.yaml"), *data.overrides()])
    assert coco_metrics(dataset.ground_truth(), truth, backend=backend, max_detections=100)["AP"] == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["crowds", "nothing"])
def test_case_19_images_that_have_only_crowds_or_no_objects(content: str, data: DataFolder):
    """The first image has objects."""
    annotations = data.contents["annotations"]
    if content == "nothing":
        del annotations[2:]
    for annotation in annotations[2:]:
        annotation["iscrowd"] = 1
    train(data)


@pytest.mark.parametrize("content", ["crowds", "nothing"])
def test_a_training_set_without_objects_stops_before_the_first_step(content: str, data: DataFolder, tmp_path: Path):
    for annotation in data.contents["annotations"]:
        annotation["iscrowd"] = 1
    if content == "nothing":
        data.contents["annotations"] = []
    data.write(json.dumps(data.contents))
    options = ["--cfg", data.folder / "tiny.yaml", *data.overrides(), "--out", tmp_path / "out"]
    assert run_tool("train", *options) == 2 and not (tmp_path / "out/metrics.csv").exists()


@pytest.mark.slow
def test_12_bit_values_in_16_bit_images_are_scaled_by_their_range(data: DataFolder, tmp_path: Path):
    """The training set decides the range of all images. The checkpoint stores it for validation and new pictures."""
    rng = np.random.default_rng(0)
    for split, highest in (("train", 4095), ("val", 255)):
        for i in range(1, NUM_IMAGES + 1):
            deep = rng.integers(highest + 1, size=(SIZE, SIZE), dtype=np.uint16)
            deep[0, 0] = highest
            Image.fromarray(deep).save(data.folder / f"{split}/{i}.png")
    expected = np.asarray(Image.open(data.images / "1.png")).astype(int) // 16
    arguments = ["--cfg", str(data.folder / "tiny.yaml"), *data.overrides()]
    data.write(json.dumps(data.contents))
    np.testing.assert_array_equal(read(arguments)[0].image, np.repeat(expected[..., None], 3, axis=2))
    out = train(data)
    assert load_config(str(out / "config.yaml")).data.bits == 12
    detector = Detector.load(out / "checkpoints/last.pt")
    evaluated = build_dataset(detector.config, "val", detector.class_names)
    assert evaluated[0].image.max() == 255 // 16  # by the range of the training set, not of the validation set
    with Image.open(data.images / "1.png") as picture:
        from_file, from_picture = detector.predict([data.images / "1.png", picture])
    assert torch.equal(from_file.boxes, from_picture.boxes)
    np.testing.assert_array_equal(as_rgb(data.images / "1.png", "", 12), read(arguments)[0].image)


@pytest.mark.slow
def test_case_23_a_checkpoint_on_a_set_of_other_classes(data: DataFolder, capsys: pytest.CaptureFixture):
    of_other_classes(data, data.folder / "x.pt")
    before = snapshot(data.folder)
    options = ["--checkpoint", data.folder / "x.pt", *data.overrides(), "--out", data.folder / "out"]
    assert run_tool("evaluate", *options) == 2
    errors = capsys.readouterr().err.replace(str(data.folder), "DIR")
    assert errors.startswith("error: DIR/val.json: ") and errors.count("\n") == 1
    for fact in ("annotation 1", "'1.png'", "'cat'", "cow", "data.invalid=skip", "12"):
        assert fact in errors
    assert snapshot(data.folder) == before


@pytest.mark.slow
def test_case_25_a_validation_set_without_objects(data: DataFolder):
    data.write(json.dumps(contents() | {"annotations": []}), "val")
    assert json.loads((train(data) / "metrics.json").read_text())["AP"] is None
