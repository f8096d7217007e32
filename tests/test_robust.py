"""What people's data are like, each case through the real tools: one line that says what, where and what to do; nothing
lost, nothing overwritten. `python tests/test_robust.py` prints the table."""

import csv
import json
import logging
import math
import os
import pickle
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

NUM_IMAGES, SIZE = 6, 64  # two objects each, a cat and a dog


def contents() -> dict[str, Any]:
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


class Place:
    """A folder with a sound data set, train/ and val/, for a case to spoil."""

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
        """The image's new place; the old file is gone."""
        (self.images / self.contents["images"][index]["file_name"]).unlink()
        self.change("images", index, file_name=name)
        return self.images / name

    def overrides(self) -> list[str]:
        return [
            f"data.{split}={{type: coco, images: {self.folder / split}, annotations: {self.folder / split}.json}}"
            for split in ("train", "val")
        ]

    def spoil(self, case: "Case") -> list[str]:
        """The arguments of a tool on the spoilt data."""
        self.write("")
        given = case.spoil(self) or []
        if not (self.folder / "train.json").read_text():
            self.write(json.dumps(self.contents))
        return ["--cfg", str(self.folder / "tiny.yaml"), *self.overrides(), "train.epochs=1", *given]


@dataclass(frozen=True)
class Case:
    """spoil: makes what is wrong, and gives further arguments. says: what is wrong and where, with DIR for the folder;
    the whole line where no kind of KINDS completes it. kind: what the data check calls it. kept: images and objects
    under data.invalid=skip, None where it stops all the same. late: found when the image comes up."""

    number: int
    what: str
    spoil: Callable[[Place], list[str] | None]
    says: str
    kind: str = ""
    kept: tuple[int, int] | None = None
    count: int = 1
    late: bool = False

    @property
    def level(self) -> str:
        return KINDS[self.kind].level if self.kind else "fatal"

    def line(self) -> str:
        """What the tool writes on stderr, or into the log of a note."""
        kind = KINDS.get(self.kind)
        if self.level == "note":
            return f"data.train: {kind.what}: {self.count}, {kind.becomes} (first: {self.says})"
        if self.level == "invalid":
            return f"error: {self.says}; {kind.remedy}, or set data.invalid=skip ({self.count} such in all)"
        return f"error: {self.says}"

    def skipped(self) -> str:
        """What becomes of it under data.invalid=skip."""
        if self.level == "note":
            return "the same"
        if self.kept is not None:
            return "goes on with {} images, {} objects".format(*self.kept)
        return "stops (`faults.max_unreadable=1`: goes on, another in its place)" if self.late else "stops"

    def __str__(self) -> str:
        return f"{self.number} {self.what}"


def damaged(name: str, make: Callable[[bytes], bytes]) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        path = place.rename(2, name)
        write_image(path, np.random.default_rng(0).integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8))
        path.write_bytes(make(path.read_bytes()))

    return spoil


def bomb(_: bytes) -> bytes:
    """A PNG of 30 kB that is 178 megapixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    side = 13_350
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # one bit a pixel, grey
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def changed(section: str, index: int, **values: Any) -> Callable[[Place], None]:
    return lambda place: place.change(section, index, **values)


def corners(place: Place) -> None:
    for annotation in place.contents["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]


def sparse(place: Place) -> None:
    """Category ids 0 and 7, image ids 0, 500, 1000, ..."""
    for category in place.contents["categories"]:
        category["id"] = 7 * (category["id"] - 1)
    for image in place.contents["images"]:
        image["id"] = 500 * (image["id"] - 1)
    for annotation in place.contents["annotations"]:
        annotation["category_id"] = 7 * (annotation["category_id"] - 1)
        annotation["image_id"] = 500 * (annotation["image_id"] - 1)


def without(key: str) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        for annotation in place.contents["annotations"][:2]:
            del annotation[key]

    return spoil


def outside(name: str) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        write_image(place.folder / "secret.png", np.zeros((SIZE, SIZE, 3), dtype=np.uint8))
        place.rename(2, name.replace("DIR", str(place.folder)))

    return spoil


def text(make: Callable[[str], str]) -> Callable[[Place], None]:
    return lambda place: place.write(make(json.dumps(place.contents)))


def given(*arguments: str) -> Callable[[Place], list[str]]:
    return lambda place: [argument.replace("DIR", str(place.folder)) for argument in arguments]


class Malice:
    """Unpickling it leaves a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def weights(make: Callable[[Place, Path], None], *arguments: str) -> Callable[[Place], list[str]]:
    def spoil(place: Place) -> list[str]:
        make(place, place.folder / "x.pt")
        return given(*(arguments or ("model.weights=DIR/x.pt",)))(place)

    return spoil


def foreign(_: Place, path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path)


def malicious(place: Place, path: Path) -> None:
    path.write_bytes(pickle.dumps(Malice(place.folder / "marker"), 2))


def of_other_classes(_: Place, path: Path) -> None:
    model = build_model(config_from_text(TINY, "TINY"), 1).state_dict()
    own = {
        "version": CHECKPOINT_VERSION,
        "config": TINY,
        "class_names": ["cow"],
        "category_ids": [1],
        "model": model,
        "training": {},
    }
    save_checkpoint(path, own)


def yaml_config(line: str) -> Callable[[Place], list[str]]:
    def spoil(place: Place) -> list[str]:
        (place.folder / "bad.yaml").write_text(TINY + line.replace("DIR", str(place.folder)))
        return ["--cfg", str(place.folder / "bad.yaml")]

    return spoil


def yolo(content: str) -> Callable[[Place], list[str]]:
    def spoil(place: Place) -> list[str]:
        (place.folder / "data.yaml").write_text(content.replace("DIR", str(place.folder)))
        return given("data.train={type: yolo, annotations: DIR/data.yaml, split: train}")(place)

    return spoil


def empty_val(place: Place) -> None:
    place.write(json.dumps(contents() | {"images": [], "annotations": []}), "val")


def empty_voc_split(place: Place) -> list[str]:
    (place.folder / "val.txt").write_text("\n")
    return given("data.val={type: voc, images: DIR/val, annotations: DIR/val, split: DIR/val.txt}")(place)


def one_image(place: Place) -> list[str]:
    place.contents["images"] = place.contents["images"][:1]
    place.contents["annotations"] = place.contents["annotations"][:2]
    return ["data.val=null", "data.split=0.8"]


JSON, THIRD, FIFTH = "DIR/train.json", "DIR/train/3.jpg", "DIR/train.json: annotation 5 of image '3.png'"
FOREIGN = (
    "not a checkpoint of `detector train` (no category_ids, class_names, config, model, version); give a checkpoint of "
    "`detector train`"
)
UNREADABLE = (
    "DIR/x.pt: not a readable checkpoint: damaged, or not what torch.save writes of tensors alone; give another"
)
TAGS = "tags (!) have no place here; quote the text if it is meant as such"
NINES = "9" * 400

CASES = (
    Case(1, "a JPEG cut short", damaged("3.jpg", lambda data: data[:-20]),
         f"{THIRD}: the JPEG is cut short (no end-of-image marker)", "image_unreadable", (5, 10)),
    Case(1, "a PNG cut short", damaged("3.png", lambda data: data[: len(data) // 2]),
         "DIR/train/3.png: the image cannot be decoded; replace or remove it", "image_damaged", late=True),
    Case(2, "an empty image file", damaged("3.jpg", lambda _: b""),
         f"{THIRD}: the image file is empty", "image_unreadable", (5, 10)),
    Case(3, "a text named .jpg", damaged("3.jpg", lambda _: b"no picture"),
         f"{THIRD}: not an image, or a damaged one", "image_unreadable", (5, 10)),
    Case(4, "a missing image", lambda place: (place.images / "3.png").unlink(),
         f"DIR/train/3.png: no such image, yet {JSON} lists it", "image_missing", (5, 10)),
    Case(5, "a PNG of 23 kB and 178 megapixels", damaged("3.png", bomb),
         "DIR/train/3.png: 13350x13350 pixels are over the limit of 178000000", "image_unreadable", (5, 10)),
    Case(8, "another size than annotated", changed("images", 2, width=63),
         "DIR/train/3.png: 64x64 pixels, its annotations say 63x64", "image_unlike", (5, 10)),
    Case(9, "a width of zero", changed("annotations", 4, bbox=[4, 6, 0, 16]),
         f"{FIFTH}: box [4, 6, 0, 16] (x, y, w, h) has no area", "box_empty", (6, 11)),
    Case(9, "a negative height", changed("annotations", 4, bbox=[4, 6, 20, -16]),
         f"{FIFTH}: box [4, 6, 20, -16] (x, y, w, h) has no area", "box_empty", (6, 11)),
    Case(10, "a box with NaN", changed("annotations", 4, bbox=[4, math.nan, 20, 16]),
         f"{FIFTH}: box [4, nan, 20, 16] (x, y, w, h) is not four finite numbers", "box_malformed", (6, 11)),
    Case(10, "a box with Inf", changed("annotations", 4, bbox=[4, 6, math.inf, 16]),
         f"{FIFTH}: box [4, 6, inf, 16] (x, y, w, h) is not four finite numbers", "box_malformed", (6, 11)),
    Case(11, "a box wholly outside", changed("annotations", 4, bbox=[70, 6, 20, 16]),
         f"{FIFTH}: box [70, 6, 20, 16] (x, y, w, h) has no area inside the image", "box_outside", (6, 11)),
    Case(11, "a box partly outside", changed("annotations", 4, bbox=[50, 6, 20, 16]),
         f"{FIFTH}: box [50, 6, 20, 16] (x, y, w, h) in 64x64 pixels", "box_clipped", (6, 12)),
    Case(12, "x1, y1, x2, y2 as x, y, w, h", corners,
         f"{JSON}: annotation 2 of image '1.png': box [30.5, 20, 54.5, 50] (x, y, w, h) fits its image as "
         "(x1, y1, x2, y2) alone, and so do all the others", "box_corners", (6, 12), count=6),
    Case(13, "a repeated annotation id", changed("annotations", 4, id=1),
         f"{JSON}: annotation 1 of image '3.png'", "annotation_id", (6, 12)),
    Case(13, "an annotation id of 0", changed("annotations", 4, id=0),
         f"{JSON}: annotation 0 of image '3.png'", "annotation_id", (6, 12)),
    Case(14, "a repeated image id", changed("images", 2, id=1),
         f"{JSON}: id 1 occurs twice in 'images'; give each entry its own", "data_set"),
    Case(14, "an image listed twice", changed("images", 2, file_name="1.png"),
         f"{JSON}: image '1.png' is listed twice", "image_twice", (5, 10)),
    Case(15, "an unknown category", changed("annotations", 4, category_id=9),
         f"{FIFTH} has category_id 9, which 'categories' does not list", "category_unknown", (6, 11)),
    Case(16, "category ids from 0, with gaps", sparse,
         f"{JSON}: 0, 7", "category_ids", (6, 12)),
    Case(17, "an unknown image", changed("annotations", 4, image_id=99),
         f"{JSON}: annotation 5 has image_id 99, which 'images' does not list", "annotation_orphan", (6, 11)),
    Case(18, "annotations without area", without("area"),
         f"{JSON}: annotation 1 of image '1.png'", "area", (6, 12), count=2),
    Case(18, "annotations without iscrowd", without("iscrowd"),
         f"{JSON}: annotation 1 of image '1.png'", "crowd", (6, 12), count=2),
    Case(20, "an image at ../", outside("../secret.png"),
         f"{JSON}: image '../secret.png' leads outside the images folder DIR/train", "image_outside", (5, 10)),
    Case(20, "an image by its absolute path", outside("DIR/secret.png"),
         f"{JSON}: image 'DIR/secret.png' leads outside the images folder DIR/train", "image_outside", (5, 10)),
    Case(21, "JSON cut short", text(lambda t: t[:-50]),
         f"{JSON}: not valid JSON (Unterminated string starting at: line 1 column 1598 (char 1597)); correct or "
         "replace the file", "data_set"),
    Case(21, "JSON nested a million deep", text(lambda _: "[" * 10**6),
         f"{JSON}: not valid JSON (nested too deep); correct or replace the file", "data_set"),
    Case(21, "1e999 in JSON", text(lambda t: t.replace("[4, 6, 20,", "[4, 6, 1e999,", 1)),
         f"{JSON}: annotation 1 of image '1.png': box [4, 6, inf, 16] (x, y, w, h) is not four finite numbers",
         "box_malformed", (6, 11)),
    Case(21, "a number of 400 digits", text(lambda t: t.replace('"id": 6,', f'"id": {NINES},', 1)),
         f"{JSON}: id {NINES} in 'images' is too large; number the entries from 1", "data_set"),
    Case(21, "NaN where a text belongs", text(lambda t: t.replace('"3.png"', "NaN")),
         f"{JSON}: images[2].file_name is nan; give the name of the image's file", "data_set"),
    Case(22, "a misspelt key", given("loss.classification.gama=2"),
         "loss.classification.gama: unknown key; did you mean 'gamma'?"),
    Case(22, "a key given twice", yaml_config("train: {epochs: 2}\n"),
         "DIR/bad.yaml: line 13: duplicate key 'train'; keep one"),
    Case(22, "a text where a number belongs", given("train.lr=1e-4x"),
         "train.lr: '1e-4x' is wrong: should be a valid number"),
    Case(23, "a corrupt checkpoint", weights(lambda _, path: path.write_bytes(b"PK\x03\x04" + bytes(500))), UNREADABLE),
    Case(23, "a foreign one as weights", weights(foreign),
         "model.weights: DIR/x.pt does not fit the backbone resnet18 (no values for bn1.bias, bn1.weight, "
         "conv1.weight); give weights of that backbone, or set model.backbone to theirs"),
    Case(23, "a foreign one resumed", weights(foreign, "--resume", "DIR/x.pt"),
         f"DIR/x.pt: {FOREIGN}, or load the weights through model.weights"),
    Case(23, "one of other classes resumed", weights(of_other_classes, "--resume", "DIR/x.pt"),
         "DIR/x.pt: the classes differ: class_names: ['cow'] before, ['cat', 'dog'] now; resume with the data of the "
         "run, or start a new run from its weights with model.weights=DIR/x.pt"),
    Case(24, "code in a pickle", weights(malicious), UNREADABLE),
    Case(24, "code in a config", yaml_config("imports: !!python/object/apply:os.mkdir [DIR/marker]\n"),
         f"DIR/bad.yaml: line 13: {TAGS}"),
    Case(24, "code in a YOLO data.yaml", yolo("train: train\nnames: !!python/object/apply:os.mkdir [DIR/marker]\n"),
         f"DIR/data.yaml: line 2: {TAGS}", "data_set"),
    Case(24, "YAML that unfolds to gigabytes", yolo("a: &a [x, x]\nb: &b [*a, *a]\nnames: *b\n"),
         "DIR/data.yaml: line 1: anchors (&) have no place here; quote the text if it is meant as such", "data_set"),
    Case(25, "a validation set without images", empty_val,
         "DIR/val.json: 'images' is empty; give at least one", "data_set"),
    Case(25, "an empty VOC split", empty_voc_split,
         "DIR/val.txt: the split is empty; write one image id a line", "data_set"),
    Case(25, "data.split of one image", one_image,
         "data.val: no image is left of the data set; check its paths, data.split, data.keep_empty and what "
         "data.invalid=skip left out"),
)  # fmt: skip
DATA = [case for case in CASES if case.kind]


def markdown() -> str:
    rows = ["| case | what the tool says | with `data.invalid=skip` |", "|---|---|---|"]
    for case in CASES:
        said = case.line().replace(NINES, "999...").removeprefix("error: ").replace("|", "\\|")
        rows.append(f"| {case} | {said} | {case.skipped()} |")
    return "\n".join(rows)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "data").mkdir()
    return Place(tmp_path / "data")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(arguments: list[str], *overrides: str) -> DetectionDataset:
    """data.train, as tools/train.py reads it."""
    return build_dataset(load_config(arguments[1], [*arguments[2:], *overrides]), "train")


@pytest.mark.parametrize("case", [case for case in CASES if case.level != "note"], ids=str)
def test_train_says_it_in_one_line_and_leaves_everything_as_it_was(
    case: Case, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture
):
    arguments = place.spoil(case)
    before = snapshot(place.folder)
    assert run_tool("train", *arguments, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.replace(str(place.folder), "DIR") == case.line() + "\n"
    assert snapshot(place.folder) == before and not (place.folder / "marker").exists()
    left = {path.name for path in tmp_path.iterdir()} - {"data"}
    assert left == ({"out"} if case.late else set()) and not list(tmp_path.glob("out/checkpoints/*"))


@pytest.mark.parametrize("case", [case for case in CASES if case.level == "note"], ids=str)
def test_what_training_can_do_with_is_said_in_the_log(case: Case, place: Place, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    dataset = read(place.spoil(case))
    assert case.line() in caplog.text.replace(str(place.folder), "DIR")
    assert (len(dataset), dataset.class_counts().sum()) == case.kept


@pytest.mark.parametrize("case", DATA, ids=str)
@pytest.mark.parametrize("invalid", ["error", "skip"])
def test_the_data_check_finds_it(case: Case, invalid: str, place: Place, capsys: pytest.CaptureFixture):
    arguments = place.spoil(case)
    before = snapshot(place.folder)
    stops = case.level == "fatal" or (case.level == "invalid" and invalid == "error")
    assert run_tool("check_data", "--json", *arguments, f"data.invalid={invalid}") == stops
    findings = json.loads(capsys.readouterr().out.replace(str(place.folder), "DIR"))["findings"]
    (found,) = (one for one in findings if one["kind"] == case.kind)
    assert found["count"] == case.count and found["stops"] == stops
    assert found["examples"][0] == (case.says.partition("; ")[0] if case.late else case.says)
    assert snapshot(place.folder) == before and not (place.folder / "marker").exists()


@pytest.mark.parametrize("case", [case for case in CASES if case.level == "invalid"], ids=str)
def test_with_skip_all_the_others_are_there(case: Case, place: Place, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    dataset = read(place.spoil(case), "data.invalid=skip")
    kind = KINDS[case.kind]
    assert (len(dataset), dataset.class_counts().sum()) == case.kept
    assert f"data.train: {kind.what}: {case.count}, {kind.becomes} (first: {case.says})" in caplog.text.replace(
        str(place.folder), "DIR"
    )
    for record in dataset.records[-3:] if case.kind != "box_corners" else ():
        np.testing.assert_array_equal(record.boxes, np.float32([[4, 6, 24, 22], [30.5, 20, 54.5, 50]]))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.late], ids=str)
def test_another_image_stands_in(case: Case, place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    arguments = [*place.spoil(case), "faults.max_unreadable=1", "train.epochs=2"]
    assert run_tool("train", *arguments, "--out", tmp_path / "out") == 0
    assert case.says.partition("; ")[0] in caplog.text.replace(str(place.folder), "DIR")


# ---- what trains


def train(place: Place, *overrides: str) -> Path:
    """The run folder of an epoch; every loss is finite."""
    out = place.folder.parent / "out"
    place.write(json.dumps(place.contents))
    options = ["--cfg", str(place.folder / "tiny.yaml"), *place.overrides(), "train.epochs=1", "train.log_every=1"]
    assert run_tool("train", *options, *overrides, "--out", out) == 0
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and all(math.isfinite(float(row[key])) for row in rows for key in ("loss", "cls", "box"))
    return out


@pytest.mark.parametrize("annotated", ["as stored", "as shown"])
def test_case_6_boxes_of_a_turned_photograph_land_on_their_pixels(annotated: str, place: Place):
    """Red at the top left as stored, at the top right as shown (orientation 6: turned clockwise)."""
    pixels = np.zeros((40, SIZE, 3), dtype=np.uint8)
    pixels[:20, :32] = (255, 0, 0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(place.rename(0, "1.jpg"), quality=95, exif=exif)
    stored = annotated == "as stored"
    place.change("images", 0, width=SIZE if stored else 40, height=40 if stored else SIZE)
    place.contents["annotations"] = place.contents["annotations"][:1]
    place.change("annotations", 0, bbox=[0, 0, 32, 20] if stored else [20, 0, 20, 32])
    place.write(json.dumps(place.contents))
    sample = read(["--cfg", str(place.folder / "tiny.yaml"), *place.overrides()])[0]
    assert sample.image.shape[:2] == ((40, SIZE) if stored else (SIZE, 40))
    x1, y1, x2, y2 = sample.boxes[0].astype(int)
    red = (sample.image[..., 0] > 128) & (sample.image[..., 1] < 64)
    assert red[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].all() and red.sum() == pytest.approx(32 * 20, abs=60)


@pytest.mark.slow
def test_case_7_grey_transparent_cmyk_and_16_bit_images_train_as_rgb(place: Place):
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8), (9, 9), 3)
    rgb = Image.fromarray(smooth)
    deep = Image.fromarray(smooth[..., 0].astype(np.uint16) * 257)
    pictures = {"1.png": rgb.convert("L"), "2.png": rgb.convert("RGBA"), "3.jpg": rgb.convert("CMYK"), "4.png": deep}
    for index, (name, picture) in enumerate(pictures.items()):
        picture.save(place.rename(index, name))
    train(place)
    dataset = read(["--cfg", str(place.folder / "tiny.yaml"), *place.overrides()])
    grey = [np.repeat(np.asarray(one)[..., None], 3, axis=2) for one in (rgb.convert("L"), rgb.split()[0])]
    for index, expected in enumerate((grey[0], smooth, smooth, grey[1])):
        image = dataset[index].image
        assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
        assert np.abs(image.astype(int) - expected).mean() < (6 if index == 2 else 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_case_16_detections_carry_the_data_sets_own_ids(backend: str, place: Place):
    for split in ("train", "val"):
        place.contents = contents()
        sparse(place)
        place.write(json.dumps(place.contents), split)
    out = train(place, f"evaluation.backend={backend}", "evaluation.score_threshold=0", "train.lr=0.01")
    detections = json.loads((out / "detections.json").read_text())
    assert {one["category_id"] for one in detections} == {0, 7}
    assert {one["image_id"] for one in detections} == {0, 500, 1000, 1500, 2000, 2500}
    assert load_checkpoint(out / "checkpoints/last.pt")["category_ids"] == [0, 7]
    truth = [one | {"score": 1.0} for one in place.contents["annotations"]]  # what a perfect detector would write
    dataset = read(["--cfg", str(place.folder / "tiny.yaml"), *place.overrides()])
    assert coco_metrics(dataset.ground_truth(), truth, backend=backend, max_detections=100)["AP"] == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["crowds", "nothing"])
def test_case_19_images_of_crowds_alone_and_of_nothing(what: str, place: Place):
    """All but one image, which has something to learn from."""
    annotations = place.contents["annotations"]
    if what == "nothing":
        del annotations[2:]
    for annotation in annotations[2:]:
        annotation["iscrowd"] = 1
    train(place)


@pytest.mark.parametrize("what", ["crowds", "nothing"])
def test_nothing_to_learn_from_ends_before_the_first_step(what: str, place: Place, tmp_path: Path):
    for annotation in place.contents["annotations"]:
        annotation["iscrowd"] = 1
    if what == "nothing":
        place.contents["annotations"] = []
    place.write(json.dumps(place.contents))
    options = ["--cfg", place.folder / "tiny.yaml", *place.overrides(), "--out", tmp_path / "out"]
    assert run_tool("train", *options) == 2 and not (tmp_path / "out/metrics.csv").exists()


@pytest.mark.slow
def test_12_bit_values_in_16_bit_images_train_as_they_look(place: Place, tmp_path: Path):
    """One range for the whole set, decided by the training set, kept with the checkpoint, also for new pictures."""
    rng = np.random.default_rng(0)
    for split, highest in (("train", 4095), ("val", 255)):
        for i in range(1, NUM_IMAGES + 1):
            deep = rng.integers(highest + 1, size=(SIZE, SIZE), dtype=np.uint16)
            deep[0, 0] = highest
            Image.fromarray(deep).save(place.folder / f"{split}/{i}.png")
    expected = np.asarray(Image.open(place.images / "1.png")).astype(int) // 16
    arguments = ["--cfg", str(place.folder / "tiny.yaml"), *place.overrides()]
    place.write(json.dumps(place.contents))
    np.testing.assert_array_equal(read(arguments)[0].image, np.repeat(expected[..., None], 3, axis=2))
    out = train(place)
    assert load_config(str(out / "config.yaml")).data.bits == 12
    detector = Detector.load(out / "checkpoints/last.pt")
    evaluated = build_dataset(detector.config, "val", detector.class_names)
    assert evaluated[0].image.max() == 255 // 16  # by the training set's range, not by its own
    with Image.open(place.images / "1.png") as picture:
        assert torch.equal(*(found.boxes for found in detector.predict([place.images / "1.png", picture])))
    np.testing.assert_array_equal(as_rgb(place.images / "1.png", "", 12), read(arguments)[0].image)


@pytest.mark.slow
def test_case_23_a_checkpoint_on_a_set_of_other_classes(place: Place, capsys: pytest.CaptureFixture):
    of_other_classes(place, place.folder / "x.pt")
    before = snapshot(place.folder)
    options = ["--checkpoint", place.folder / "x.pt", *place.overrides(), "--out", place.folder / "out"]
    assert run_tool("evaluate", *options) == 2
    assert capsys.readouterr().err.replace(str(place.folder), "DIR") == (
        "error: DIR/val.json: annotation 1 of image '1.png': category 'cat' is in use but not among the classes cow; "
        "annotate both splits with the same classes, or set data.invalid=skip (12 such in all)\n"
    )
    assert snapshot(place.folder) == before


@pytest.mark.slow
def test_case_25_a_validation_set_without_objects(place: Place):
    place.write(json.dumps(contents() | {"annotations": []}), "val")
    assert json.loads((train(place) / "metrics.json").read_text())["AP"] is None


if __name__ == "__main__":
    print(markdown())
