"""The data check: all kinds of findings, its cache of images, and its exit code."""

import json
import logging
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image
from tools_run import run_tool

from detector.data.checks import inspection
from detector.data.checks.findings import KINDS
from detector.data.images import write_image

WIDTH, HEIGHT = 40, 30


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)


class Coco:
    """A COCO file and the images of a split."""

    def __init__(self, folder: Path, split: str):
        self.images, self.file = folder / split, folder / f"{split}.json"
        self.images.mkdir()
        self.contents: dict[str, list] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }

    def add(self, name: str, *boxes: list, picture: Any = None, **values: Any) -> None:
        """Add an image with boxes.

        Args:
            name: the file of the image.
            boxes: a box (x, y, w, h) for each annotation.
            picture: an image, the bytes of a file, False for a missing file, or None for random pixels.
            values: more values of the annotations. `width` is the annotated width of the image.
        """
        number = len(self.contents["images"]) + 1
        entry = {"id": number, "file_name": name, "width": values.pop("width", WIDTH), "height": HEIGHT}
        self.contents["images"].append(entry)
        if isinstance(picture, Image.Image):
            picture.save(self.images / name, exif=picture.getexif())
        elif isinstance(picture, bytes):
            (self.images / name).write_bytes(picture)
        elif picture is None:
            write_image(self.images / name, image(number + (100 if self.images.name == "val" else 0)))
        for box in boxes:
            known = {"id": len(self.contents["annotations"]) + 1, "image_id": number, "category_id": 1, "bbox": box}
            self.contents["annotations"].append(known | {"area": 9.0, "iscrowd": 0} | values)

    def write(self) -> str:
        self.file.write_text(json.dumps(self.contents))
        return f"{{type: coco, images: {self.images}, annotations: {self.file}}}"


def check(*overrides: object) -> int:
    return run_tool("check_data", "--json", "--cfg", "retina_focal.yaml", *overrides)


@pytest.fixture
def findings_of(capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, dict[str, dict]]]:
    """A function that checks data, and returns the exit code and the findings of a split by their kind."""

    def findings_of(*overrides: object, split: str = "train") -> tuple[int, dict[str, dict]]:
        code = check(*overrides)
        report = json.loads(capsys.readouterr().out)
        return code, {finding["kind"]: finding for finding in report["findings"] if finding["split"] == split}

    return findings_of


def snapshot(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


BOX = [4, 4, 10, 10]


def everything(folder: Path) -> list[str]:
    """Write data sets with findings of all kinds, and return the overrides to read them."""
    train, val = Coco(folder, "train"), Coco(folder, "val")
    rgb, exif = Image.fromarray(image(0)), Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    turned = Image.fromarray(image(1))
    turned.getexif().update(exif)
    train.add("intact.png", BOX, [20, 4, 10, 10])
    train.add("copy.png", BOX, picture=(train.images / "intact.png").read_bytes())
    train.add("grey.png", BOX, picture=rgb.convert("L"))
    train.add("alpha.png", BOX, picture=rgb.convert("RGBA"))
    train.add("cmyk.jpg", BOX, picture=rgb.convert("CMYK"))
    train.add("deep.png", BOX, picture=Image.fromarray(image(2)[..., 0].astype(np.uint16) * 257))
    train.add("turned.jpg", BOX, picture=turned)
    train.add("misnamed.png", BOX, picture=cv2.imencode(".jpg", image(3))[1].tobytes())
    intact = cv2.imencode(".png", image(5))[1].tobytes()
    train.add("damaged.png", BOX, picture=intact[: len(intact) // 2])
    train.add("text.png", BOX, picture=b"text")
    train.add("RENAMED.png", BOX)
    train.contents["images"][-1]["file_name"] = "renamed.png"
    train.add("unlike.png", BOX, width=WIDTH + 1)
    train.add("empty.png")
    train.add("crowded.png", *([[x, y, 4, 4] for x in range(0, 36, 4) for y in range(0, 24, 4)] * 2))
    train.add("../elsewhere.png", picture=(train.images / "intact.png").read_bytes())
    train.add("gone.png", BOX, picture=False)
    train.add("intact.png", picture=False)
    train.add("sizeless.png", width=0)
    train.add("wrong.png", [4, 4, 0, 9], [50, 4, 9, 9], [4, 4, 9], [30, 4, 20, 9], [1, 1, 0.5, 0.5])
    train.add("conflict.png", BOX, BOX)
    train.contents["annotations"][-1]["category_id"] = 2
    train.add("odd.png", BOX, image_id=99)
    train.add("odder.png", BOX, category_id=99)
    train.add("oddest.png", BOX, area="big")
    train.add("scene.png", BOX, picture=Image.fromarray(image(4)))
    train.add("bare.png", BOX, id=0)
    for key in ("area", "iscrowd"):
        del train.contents["annotations"][-1][key]
    train.contents["categories"][1]["id"] = 2
    train.contents["annotations"][0]["score"] = 1
    train.contents["images"][0]["not_exhaustive_category_ids"] = [1]
    train.contents["categories"].append({"id": 7, "name": "cow"})
    train.contents["categories"].append({"id": 8, "name": "Cow"})
    train.contents["categories"].append({"id": 9, "name": "cow"})
    write_image(train.images / "unlisted.png", image(6))
    (train.images / "raw.nef").write_bytes(b"raw")
    (train.images / "notes.md").write_text("")
    (train.images / "link.png").symlink_to(folder / "gone.png")
    val.add("leaked.png", BOX, picture=(train.images / "intact.png").read_bytes())
    brighter = np.clip(image(4).astype(int) + 9, 0, 255).astype(np.uint8)
    val.add("alike.jpg", BOX, picture=Image.fromarray(brighter))
    val.contents["categories"][1]["name"] = "elk"
    val.add("elk.png", BOX, category_id=2)
    return [f"data.train={train.write()}", f"data.val={val.write()}"]


def assert_pair(finding: dict, first: Path, second: Path) -> None:
    """Assert that a finding has a single example, which names two files."""
    (example,) = finding["examples"]
    assert example.startswith(f"{first}: ") and str(second) in example


def test_all_kinds_are_detected(findings_of: Callable, tmp_path: Path):
    folder = tmp_path / "coco"
    folder.mkdir()
    data = everything(folder)
    before = snapshot(folder)
    code, train = findings_of(*data, "data.invalid=skip", "model={levels: [3, 4], head: {sizes: [[64], [64]]}}")
    assert code == 1 and snapshot(folder) == before
    _, val = findings_of(*data, "data.invalid=skip", split="val")
    kinds = train.keys() | val.keys()
    assert "category_ids" not in val  # the ids in the file are 1 and 2
    assert_pair(val["image_leaked"], folder / "val/leaked.png", folder / "train/intact.png")
    assert_pair(val["image_alike"], folder / "val/alike.jpg", folder / "train/scene.png")
    single = ("alpha", "cmyk", "deep", "turned", "misnamed", "damaged", "unlike", "same", "missing", "outside", "twice")
    assert {kind: train[f"image_{kind}"]["count"] for kind in single} == dict.fromkeys(single, 1)
    assert train["image_grey"]["count"] == 2  # the gray image and the 16-bit image
    for finding in (*train.values(), *val.values()):
        kind = KINDS[finding["kind"]]
        assert finding["stops"] == (kind.level == "fatal") and finding["count"] >= len(finding["examples"]) > 0
        assert (finding["what"], finding["becomes"], finding["remedy"]) == (kind.what, kind.becomes, kind.remedy)

    # the kinds of other formats and of complete data sets
    alone = ("data.val=null", "data.split=0.5", "data.invalid=skip")
    corners = Coco(tmp_path, "corners")
    corners.add("a.png", *[[x, 8, x + 14, 26] for x in range(4, 14)])
    kinds |= findings_of(f"data.train={corners.write()}", *alone)[1].keys()
    fractions = Coco(tmp_path, "fractions")
    fractions.add("a.png", *[[0.1, 0.2, 0.3, 0.4]] * 5)
    kinds |= findings_of(f"data.train={fractions.write()}", *alone)[1].keys()
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml/b.xml").write_text("<annotation>")
    (tmp_path / "list.txt").write_text("a\nb\n")
    box = "<bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>9</xmax></bndbox>"
    complete = "<object><name>cat</name>" + box.replace("</bndbox>", "<ymax>9</ymax></bndbox></object>")
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    write_image(corners.images / "c.png", image(1))
    voc = f"{{type: voc, images: {corners.images}, annotations: {tmp_path / 'xml'}, split: {tmp_path / 'list.txt'}}}"
    for first, others in (("0", 30), ("1.5", 0)):  # with 30 boxes that begin at 1, and without other boxes
        objects = f"<object><name>cat</name>{box.format(1)}</object>" + complete.format(first)
        objects += others * complete.format(1)
        for name in ("a", "c"):
            text = f"<annotation><filename>c.png</filename>{size}{objects}</annotation>"
            (tmp_path / f"xml/{name}.xml").write_text(text)
        kinds |= findings_of(f"data.train={voc}", *alone)[1].keys()
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for name in ("a.png", "a.bmp", "b.png"):
        write_image(tmp_path / "images" / name, image(7))
    (tmp_path / "labels/a.txt").write_text("0 0.4 0.5 0.2 0.4 0.9 1\n0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "labels/c.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\nnc: 2\n")
    yolo = f"data.train={{type: yolo, annotations: {tmp_path / 'data.yaml'}, split: train}}"
    kinds |= findings_of(yolo, *alone)[1].keys()
    (tmp_path / "labels/a.txt").write_text("0 0.9 0.5 0.9 0.4 0.8 1\n")
    kinds |= findings_of(yolo, *alone)[1].keys()
    gone = "data.train={type: yolo, annotations: gone.yaml, split: train}"
    kinds |= findings_of(gone, "data.val=null", "data.split=0.5")[1].keys()
    assert kinds == KINDS.keys()


@pytest.fixture
def intact(tmp_path: Path) -> Callable[[], list[str]]:
    """A function that writes two splits without findings to tmp_path/coco, and returns the overrides to read them."""
    (tmp_path / "coco").mkdir()
    splits = {split: Coco(tmp_path / "coco", split) for split in ("train", "val")}
    for split in splits.values():
        for i in range(4):
            split.add(f"{i}.png", BOX, [20, 4, 16, 20])
            split.contents["annotations"][-1]["category_id"] = 2
    return lambda: [f"data.{name}={split.write()}" for name, split in splits.items()]


def test_an_intact_set_has_no_finding_and_exit_code_0(
    intact: Callable, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    data = intact()
    assert check(*data, "data.short_side=300") == 0
    assert json.loads(capsys.readouterr().out) == {"images": {"train": 4, "val": 4}, "findings": []}
    words = shlex.split(caplog.messages[-1].splitlines()[-1], comments=True)
    assert words[-6:] == ["census", "--cfg", "retina_focal.yaml", *data, "data.short_side=300"]
    assert check(*data, "data.shrt_side=300") == 2
    assert capsys.readouterr().out == ""


def test_the_findings_are_shown_as_a_table_and_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    (tmp_path / "coco").mkdir()
    data = everything(tmp_path / "coco")
    assert run_tool("check_data", "--cfg", "retina_focal.yaml", *data) == 1
    table = capsys.readouterr().out
    fatal = {kind.what for kind in KINDS.values() if kind.level == "fatal"}
    assert any(what in table for what in fatal)
    notes = {kind.what for kind in KINDS.values() if kind.level == "note"}
    levels = {cells[4].strip(): cells[1].strip() for line in table.splitlines() if len(cells := line.split("│")) > 5}
    assert {levels.get(what, "error") for what in fatal} == {"error"}
    assert {levels.get(what, "note") for what in notes} == {"note"} and "note" in levels.values()
    assert any(line.startswith("data.train: ") for line in caplog.messages)
    assert "data.invalid" in caplog.messages[-1] and "faults.max_unreadable" in caplog.messages[-1]


def test_files_are_inspected_once_until_they_change(
    intact: Callable, findings_of: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    inspected, look = [], inspection.look
    monkeypatch.setattr(inspection, "look", lambda path: inspected.append(path.name) or look(path))
    data = intact()
    assert findings_of(*data)[0] == 0 and len(inspected) == 8
    inspected.clear()
    assert findings_of(*data)[0] == 0 and inspected == []

    changed = tmp_path / "coco/train/1.png"
    content = changed.read_bytes()
    changed.write_bytes(content[:100] + b"x" * (len(content) - 100))  # the header is intact
    os.utime(changed, ns=(1, 1))  # the size is the same, and the time is another
    code, findings = findings_of(*data)
    assert code == 1 and inspected == ["1.png"] and findings["image_damaged"]["count"] == 1

    (file,) = (tmp_path / "cache").rglob("images.json")
    verdicts = json.loads(file.read_text())
    for corrupt in ("{", "[]", '{"a": 1}', json.dumps({key: {"header": 3} for key in verdicts})):
        file.write_text(corrupt)
        inspected.clear()
        assert findings_of(*data)[0] == 1 and len(inspected) == 8
    assert json.loads(file.read_text()).keys() <= verdicts.keys()
    assert {path.name for path in file.parent.iterdir()} == {"images.json", "headers"}


def test_the_cache_and_the_data_may_be_read_only(
    intact: Callable, findings_of: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    data = intact()
    before = snapshot(tmp_path / "coco")
    folders = [tmp_path / "coco", *(path for path in (tmp_path / "coco").iterdir() if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert findings_of(*data)[0] == 0
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert snapshot(tmp_path / "coco") == before and (tmp_path / "file").read_text() == ""


def test_fast_opens_no_image(intact: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setattr(inspection, "look", lambda path: pytest.fail("an image was opened"))
    assert check(*intact(), "--fast") == 0


def test_a_validation_image_that_is_in_the_training_set_is_reported(
    intact: Callable, findings_of: Callable, tmp_path: Path
):
    data = intact()
    (tmp_path / "coco/val/2.png").write_bytes((tmp_path / "coco/train/0.png").read_bytes())
    code, findings = findings_of(*data, split="val")
    assert code == 0 and findings["image_leaked"]["count"] == 1
    assert_pair(findings["image_leaked"], tmp_path / "coco/val/2.png", tmp_path / "coco/train/0.png")


def test_empty_files_are_not_copies_of_each_other(intact: Callable, findings_of: Callable, tmp_path: Path):
    data = intact()
    for name in ("train/0.png", "train/1.png", "val/0.png"):
        (tmp_path / "coco" / name).write_bytes(b"")
    code, findings = findings_of(*data)
    assert code == 1 and findings["image_unreadable"]["count"] == 2 and "image_same" not in findings
    assert findings_of(*data, split="val")[1].keys() == {"image_unreadable", "annotation_lost"}


def test_bccd(shared_data: Path, capsys: pytest.CaptureFixture):
    """Two boxes have no area, and seven cells are marked twice. These findings do not stop a training."""
    complete = (f"data.root={shared_data / 'bccd'}", "data.train.split=null", "data.val=null", "data.split=0.5")
    assert run_tool("check_data", "--json", "--cfg", "bccd_focal.yaml", *complete) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == {"train": 364} and not any(finding["stops"] for finding in report["findings"])
    counts = {finding["kind"]: finding["count"] for finding in report["findings"]}
    assert counts["box_empty"] == 2 and counts["object_twice"] == 7, counts


def test_coco_tiny(shared_data: Path, capsys: pytest.CaptureFixture):
    assert (
        run_tool("check_data", "--json", "--cfg", "coco_focal_r50_1x.yaml", f"data.root={shared_data}/coco_tiny") == 0
    )
    report = json.loads(capsys.readouterr().out)
    counts = {(finding["split"], finding["kind"]): finding["count"] for finding in report["findings"]}
    assert report["images"] == {"train": 80, "val": 80}
    assert counts.pop(("train", "box_small")) > 0 and counts.pop(("val", "box_small")) > 0
    assert counts == {
        ("train", "category_ids"): 1,
        ("train", "object_conflict"): 1,
        ("val", "category_ids"): 1,
        ("val", "object_conflict"): 2,
    }


def test_points_have_no_box_that_is_too_small_for_an_anchor(shared_data: Path, capsys: pytest.CaptureFixture):
    config = ("coco_fcos_r50_1x.yaml", f"data.root={shared_data}/coco_tiny")
    assert run_tool("check_data", "--json", "--cfg", *config) == 0
    assert "box_small" not in {finding["kind"] for finding in json.loads(capsys.readouterr().out)["findings"]}
