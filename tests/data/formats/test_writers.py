import json
from pathlib import Path

import globox
import numpy as np
import pytest
from conversions import FORMATS, read
from PIL import Image
from refusals import refused

from detector.data.checks.findings import Findings
from detector.data.dataset import DetectionDataset
from detector.data.formats.coco import CocoDataset
from detector.data.formats.conversion import convert, what_is_lost
from detector.data.formats.voc import VocDataset
from detector.data.formats.yolo import YoloDataset
from detector.data.images import write_image


def without_crowds(dataset: DetectionDataset) -> list[tuple]:
    return [
        (r.path.name, r.width, r.height, r.boxes[~r.crowd], [dataset.class_names[k] for k in r.labels[~r.crowd]])
        for r in sorted(dataset.records, key=lambda r: r.path.name)
    ]


def assert_same_objects(a: DetectionDataset, b: DetectionDataset) -> None:
    assert len(a) == len(b)
    for (*ours, boxes, names), (*theirs, expected, expected_names) in zip(
        without_crowds(a), without_crowds(b), strict=True
    ):
        assert ours == theirs and names == expected_names
        np.testing.assert_allclose(boxes, expected, rtol=0, atol=2 * 1e-3)


@pytest.fixture(scope="module")
def coco(shared_data: Path) -> DetectionDataset:
    folder = shared_data / "coco_tiny"
    return CocoDataset(images=folder / "val2017", annotations=folder / "annotations/instances_val2017.json")


@pytest.fixture(scope="module")
def bccd(shared_data: Path) -> DetectionDataset:
    folder = shared_data / "bccd"
    folders = {"images": folder / "JPEGImages", "annotations": folder / "Annotations"}
    return VocDataset(None, Findings("skip"), **folders, split=folder / "ImageSets/Main/val.txt")


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_there_and_back_again(first: str, second: str, coco: DetectionDataset, bccd: DetectionDataset, tmp_path: Path):
    """The boxes of COCO have two decimals, and some are narrower than a pixel. The boxes of BCCD are integer pixels."""
    for name, source in (("coco", coco.evenly(30)), ("bccd", bccd.evenly(10))):
        there, back = tmp_path / name / "there", tmp_path / name / "back"
        converted = read(convert({"val": source}, first, there, link=False)["val"], there, source.class_names)
        returned = read(convert({"val": converted}, second, back, link=True)["val"], back, source.class_names)
        assert_same_objects(converted, source)
        assert_same_objects(returned, source)
        bytes_of = {record.path.name: record.path.read_bytes() for record in returned.records}
        assert bytes_of == {record.path.name: record.path.read_bytes() for record in source.records}


def test_coco_keeps_everything(coco: DetectionDataset, tmp_path: Path):
    spec = convert({"val": coco}, "coco", tmp_path / "out", link=True)["val"]
    again = read(spec, tmp_path / "out", None)
    assert (again.class_names, again.category_ids) == (coco.class_names, coco.category_ids)
    assert sum(r.crowd.sum() for r in coco.records) > 0 and not what_is_lost({"val": coco}, "coco")
    for ours, expected in zip(again.records, coco.records, strict=True):
        assert ours.image_id == expected.image_id
        for key in ("labels", "crowd", "area"):
            np.testing.assert_array_equal(getattr(ours, key), getattr(expected, key))
        np.testing.assert_allclose(ours.boxes, expected.boxes, rtol=0, atol=1e-4)


def test_lost_content_is_listed_with_its_count(coco: DetectionDataset, bccd: DetectionDataset):
    num_crowds = sum(int(r.crowd.sum()) for r in coco.records)
    assert what_is_lost({"val": bccd}, "yolo") == what_is_lost({"val": bccd}, "coco") == []
    voc, yolo = what_is_lost({"val": coco}, "voc"), what_is_lost({"val": coco}, "yolo")
    assert yolo[0].startswith(f"{num_crowds} ") and yolo[1:] == voc
    assert len(voc) == 3 and voc[0].split()[0].isdigit()  # areas of segments, image ids, category ids
    few = coco.subset([0])
    num_unseen = len(coco.class_names) - len(set(few.labels_by_image()[0].tolist()))
    assert any(line.startswith(f"{num_unseen} ") for line in what_is_lost({"val": few}, "voc"))


@pytest.mark.parametrize("target", FORMATS)
def test_another_package_reads_the_same_boxes(target: str, coco: DetectionDataset, tmp_path: Path):
    source, out = coco.evenly(20), tmp_path / "out"
    convert({"val": source}, target, out, link=True)
    if target == "coco":
        read_back = globox.AnnotationSet.from_coco(out / "annotations/instances_val.json")
    elif target == "voc":
        read_back = globox.AnnotationSet.from_pascal_voc(out / "Annotations")
    else:
        read_back = globox.AnnotationSet.from_yolo_v5(out / "labels/val", image_folder=out / "images/val")
    for record in source.records:
        written = [i for i in range(len(record.boxes)) if target != "yolo" or not record.crowd[i]]
        boxes = read_back[record.path.name].boxes
        names = [coco.class_names[record.labels[i]] for i in written]
        if target == "yolo":
            names = [str(record.labels[i]) for i in written]
        assert [box.label for box in boxes] == names
        corners = np.array([[b.xmin, b.ymin, b.xmax, b.ymax] for b in boxes]).reshape(-1, 4)
        offset = [1, 1, 0, 0] if target == "voc" else 0  # globox reads the coordinates as written
        np.testing.assert_allclose(corners, record.boxes[written] + offset, rtol=0, atol=2e-3)


def test_equal_names_get_numbers(bccd: DetectionDataset, tmp_path: Path):
    half = bccd.evenly(3)
    specs = convert({"train": half, "val": half}, "voc", tmp_path / "out", link=False)
    for folder in ("JPEGImages", "Annotations"):
        assert len(list((tmp_path / "out" / folder).iterdir())) == 6
    val = read(specs["val"], tmp_path / "out", half.class_names)
    assert all(record.path.stem.endswith("_2") for record in val.records)
    for ours, expected in zip(val.records, half.records, strict=True):
        np.testing.assert_array_equal(ours.boxes, expected.boxes)
        assert ours.path.read_bytes() == expected.path.read_bytes()


def test_a_folder_in_use_is_left_alone(bccd: DetectionDataset, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with refused("--out", str(tmp_path)):
        convert({"val": bccd}, "coco", tmp_path, link=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("orientation", "size"), [(6, (30, 20)), (3, (30, 20)), (2, (30, 20)), (8, (30, 30))])
def test_images_with_an_orientation_are_refused_before_anything_is_written(
    orientation: int, size: tuple[int, int], tmp_path: Path
):
    """The boxes of COCO refer to the stored image, which readers of YOLO rotate.

    The boxes of YOLO refer to the shown image, and readers of the other formats use the stored image.
    """
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.new("RGB", size).save(tmp_path / "images/b.jpg", exif=exif)
    write_image(tmp_path / "images/a.png", np.zeros((20, 30, 3), np.uint8))
    images = [{"id": i, "file_name": n, "width": w, "height": h}
              for i, (n, w, h) in enumerate([("a.png", 30, 20), ("b.jpg", *size)], 1)]  # fmt: skip
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "labels/classes.txt").write_text("cat\n")
    (tmp_path / "labels/a.txt").write_text("")
    stored = CocoDataset(images=tmp_path / "images", annotations=tmp_path / "a.json")
    shown = YoloDataset(images=tmp_path / "images", annotations=tmp_path / "labels")
    cases = [(stored, "yolo")] + [(shown, target) for target in ("coco", "voc")] * (orientation != 6)
    for source, target in cases:
        with refused("b.jpg", str(orientation), target):
            convert({"train": source.subset([0]), "val": source.subset([1])}, target, tmp_path / "out", link=False)
        assert not (tmp_path / "out").exists()
        convert({"val": source.subset([0])}, target, tmp_path / f"upright_{target}", link=False)
    convert({"val": shown}, "yolo", tmp_path / "yolo", link=False)
    spec = convert({"val": stored}, "coco", tmp_path / "coco", link=False)["val"]
    assert len(read(spec, tmp_path / "coco", None)) == 2
    assert len(YoloDataset(annotations=tmp_path / "yolo/data.yaml", split="val")) == 2


def test_an_image_annotated_as_shown_can_be_converted_to_yolo(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    images = [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 30}]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    convert({"val": CocoDataset(images=tmp_path, annotations=tmp_path / "a.json")}, "yolo", tmp_path / "out", link=True)
    assert YoloDataset(annotations=tmp_path / "out/data.yaml", split="val")[0].image.shape == (30, 20, 3)
