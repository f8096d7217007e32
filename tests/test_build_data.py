"""The data sets that are built from the section `data`: splits, images without objects, and invalid entries."""

import logging
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY

from detector.build import build_dataset, build_trained_model, build_trainer, with_decisions
from detector.config import config_from_text
from detector.core.errors import UserError
from detector.data.checks.findings import KINDS
from detector.data.dataset import DetectionDataset
from detector.data.images import write_image

BCCD = "{type: voc, images: JPEGImages, annotations: Annotations}"


def build(split: str, *overrides: str, classes: tuple[str, ...] | None = None) -> DetectionDataset:
    return build_dataset(config_from_text(TINY, "TINY", overrides), split, classes)


@pytest.fixture
def bccd(shared_data: Path) -> list[str]:
    return [f"data.root={shared_data / 'bccd'}", f"data.train={BCCD}", "data.val=null", "data.invalid=skip"]


def names(dataset: DetectionDataset) -> list[str]:
    return [record.path.name for record in dataset.records]


@pytest.mark.parametrize("fraction", [0.5, 0.9])
def test_the_parts_of_a_split_are_disjoint_complete_and_reproducible(fraction: float, bccd: list[str]):
    divided = [*bccd, f"data.split={fraction}"]
    train, val = build("train", *divided), build("val", *divided)
    assert not set(names(train)) & set(names(val)) and len({*names(train), *names(val)}) == 364
    assert len(train) == pytest.approx(fraction * 364, abs=5)
    assert train.class_names == val.class_names and train.category_ids == val.category_ids
    np.testing.assert_array_equal(train.class_counts() + val.class_counts(), [361, 4153, 372])
    again = build("train", *divided), build("val", *divided, classes=train.class_names)
    assert (names(again[0]), names(again[1])) == (names(train), names(val))
    ids = [record.image_id for part in (train, val) for record in part.records]
    assert sorted(ids) == list(range(1, 365))  # both parts have the ids of the complete data set
    assert names(build("train", *divided, "data.split_seed=1")) != names(train)


@pytest.mark.parametrize(
    ("overrides", "key", "facts"),
    [
        (["data.split=0.8"], "data.val", ["split"]),
        (["data.val=null"], "data.val", ["split"]),
        (["data.val=null", "data.split=1"], "data.split", ["1"]),
        (["data.invalid=ignore"], "data.invalid", ["'ignore'", "'error'", "'skip'"]),
    ],
)
def test_wrong_settings_of_the_section_are_refused(overrides: list[str], key: str, facts: list[str]):
    with pytest.raises(UserError) as error:
        build("train", *overrides)
    where, _, message = str(error.value).partition(": ")
    assert where == key and all(fact in message for fact in facts)


def write_yolo(folder: Path, num_images: int, with_objects: int) -> list[str]:
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for i in range(num_images):
        write_image(folder / f"images/{i:02}.png", np.zeros((64, 64, 3), dtype=np.uint8))
        if i < with_objects:
            (folder / f"labels/{i:02}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "data.yaml").write_text("train: images\nval: images\nnames: [cat, dog]\n")
    return [
        f"data.{split}={{type: yolo, annotations: {folder / 'data.yaml'}, split: {split}}}"
        for split in ("train", "val")
    ]


def logged(caplog: pytest.LogCaptureFixture, kind: str) -> list[str]:
    """Return the lines of the log for a kind of finding in data.train."""
    return [line for line in caplog.messages if line.startswith(f"data.train: {KINDS[kind].what}: ")]


def test_images_without_objects_are_used_or_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    data = write_yolo(tmp_path, 10, 4)
    assert len(build("train", *data)) == 10
    (line,) = logged(caplog, "image_empty")
    assert "6" in line
    with_objects = build("train", *data, "data.keep_empty=false")
    assert names(with_objects) == ["00.png", "01.png", "02.png", "03.png"]
    assert with_objects.class_names == ("cat", "dog")
    assert (6,) in [record.args for record in caplog.records], "the number of removed images is logged"
    divided = [data[0], "data.val=null", "data.split=0.5"]
    parts = [build(split, *divided, "data.keep_empty=false") for split in ("train", "val")]
    val = build("val", *divided)
    assert len(parts[0]) == 2 and names(parts[1]) == names(val)  # an evaluation uses images without objects


def test_a_data_yaml_needs_the_name_of_its_split(tmp_path: Path):
    write_yolo(tmp_path, 3, 3)
    with pytest.raises(UserError) as error:
        build("val", f"data.val={{type: yolo, annotations: {tmp_path / 'data.yaml'}}}")
    assert str(tmp_path / "data.yaml") in error.value.problem and "split" in error.value.remedy


def test_a_training_set_without_images_is_refused(tmp_path: Path):
    data = write_yolo(tmp_path, 3, 0)
    (tmp_path / "labels/00.txt").write_text("")
    with pytest.raises(UserError) as error:
        build("train", *data, "data.keep_empty=false")
    assert error.value.problem.startswith("data.train: ") and "data.keep_empty" in error.value.remedy


@pytest.mark.parametrize("line", ["5 0.5 0.5 0.2 0.2", "cat 0.5 0.5 0.2 0.2", "0 0.5 0.5 0 0.2"])
def test_invalid_entries_are_errors_or_are_skipped(line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    data = write_yolo(tmp_path, 3, 3)
    with (tmp_path / "labels/01.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError) as error:
        build("train", *data)
    assert "01.txt: line 2" in error.value.problem and "data.invalid=skip (1 " in error.value.remedy
    dataset = build("train", *data, "data.invalid=skip")
    assert [len(record.boxes) for record in dataset.records] == [1, 1, 1]
    assert len([line for line in caplog.messages if "01.txt: line 2" in line]) == 1


def test_the_findings_of_a_divided_set_are_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    data = [write_yolo(tmp_path, 10, 4)[0], "data.val=null", "data.split=0.5"]
    for split in ("train", "val"):
        build(split, *data)
    assert len(logged(caplog, "image_empty")) == 1


def test_the_training_set_decides_for_both(tmp_path: Path):
    """The training set decides whether coordinates count from 1. Each set has a separate folder, as in Roboflow."""
    for split, box in (("train", (0, 0, 9, 9)), ("val", (5, 5, 20, 20))):
        (tmp_path / split).mkdir()
        write_image(tmp_path / split / "a.png", np.zeros((64, 64, 3), dtype=np.uint8))
        corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        text = f"<annotation><object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
        (tmp_path / split / "a.xml").write_text(text)
    data = [
        f"data.{split}={{type: voc, images: {tmp_path / split}, annotations: {tmp_path / split}}}"
        for split in ("train", "val")
    ]
    config = config_from_text(TINY, "TINY", data)
    train = build_dataset(config, "train")
    val = build_dataset(with_decisions(config, train), "val", train.class_names)
    assert train.records[0].boxes.tolist() == [[0, 0, 9, 9]] and val.records[0].boxes.tolist() == [[5, 5, 20, 20]]


def test_images_in_both_sets_cause_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data = write_yolo(tmp_path, 4, 4)
    config = config_from_text(TINY, "TINY", data)
    train = build_dataset(config, "train")
    model = build_trained_model(config, train)
    build_trainer(config, model, train, train.subset([0, 1]), tmp_path / "run")
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "00.png" in warning.getMessage() and warning.args[:2] == (2, 2)
    caplog.clear()
    build_trainer(config, model, train.subset([0, 1]), train.subset([2, 3]), tmp_path / "run")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
