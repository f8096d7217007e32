import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import globox
import numpy as np
import pytest
from PIL import Image, ImageOps
from refusals import refused

from detector.core.errors import UserError
from detector.data.checks.findings import KINDS, Findings
from detector.data.formats.yolo import YoloDataset, labels_path
from detector.data.images import write_image
from detector.data.pipeline.cache import CachedDataset

SIZES = {"images/train/a.png": (20, 30), "images/train/b.jpg": (33, 17), "images/val/c.png": (20, 30)}
LABELS = {
    "labels/train/a.txt": "1 0.5 0.5 1 1\n\n0 0.25 0.5 0.1 0.2\n",
    "labels/val/c.txt": "0 0.1 0.1 0.3 0.1 0.2 0.4 0.1 0.3\n",
}
YAML = "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n"


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., YoloDataset]:
    for name, (height, width) in SIZES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / name, np.zeros((height, width, 3), dtype=np.uint8))
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/val").mkdir()

    def load(
        yaml: str = YAML,
        labels: dict[str, str] = LABELS,
        findings: Findings | None = None,
        classes: Any = None,
        **parameters: Any,
    ) -> YoloDataset:
        (tmp_path / "data.yaml").write_text(yaml)
        for name, text in labels.items():
            (tmp_path / name).write_text(text)
        return YoloDataset(classes, findings, **{"annotations": tmp_path / "data.yaml", "split": "train"} | parameters)

    return load


def test_records(load: Callable[..., YoloDataset]):
    dataset = load()
    assert dataset.class_names == ("cat", "dog") and dataset.category_ids == (1, 2)
    a, b = dataset.records
    assert (a.width, a.height, a.image_id, a.path.name) == (30, 20, 1, "a.png")
    np.testing.assert_allclose(a.boxes, [[0, 0, 30, 20], [6, 8, 9, 12]], rtol=1e-6)
    assert a.labels.tolist() == [1, 0] and a.crowd.tolist() == [False, False]
    np.testing.assert_allclose(a.area, [600, 12], rtol=1e-6)
    assert len(b.boxes) == 0  # no label file
    assert dataset[0].image.shape == (20, 30, 3)


def test_a_polygon_is_its_box(load: Callable[..., YoloDataset]):
    (record,) = load(split="val").records
    np.testing.assert_allclose(record.boxes, [[3, 2, 9, 8]], rtol=1e-6)


@pytest.mark.parametrize(
    "yaml",
    [
        YAML.replace("{0: cat, 1: dog}", "[cat, dog]"),
        YAML.replace("path: .\n", ""),
        YAML.replace("path: .", "path: /elsewhere/on/another/machine"),
        YAML.replace("images/train", "../images/train"),
        YAML.replace("images/train", "train.txt"),
        YAML.replace("train: images/train", "train: [images/train/]"),
    ],
)
def test_the_accepted_forms_of_a_data_yaml(load: Callable[..., YoloDataset], yaml: str, tmp_path: Path):
    (tmp_path / "train.txt").write_text("./images/train/a.png\n./images/train/b.jpg\n")
    dataset = load(yaml)
    assert [record.path.name for record in dataset.records] == ["a.png", "b.jpg"]
    assert dataset.class_counts().tolist() == [1, 1]


def test_folders_with_a_list_of_classes(load: Callable[..., YoloDataset], tmp_path: Path):
    (tmp_path / "labels/train/classes.txt").write_text("cat\ndog\n")
    folders = {"annotations": tmp_path / "labels/train", "images": tmp_path / "images/train"}
    dataset, listed = load(**folders), load()
    assert dataset.class_names == listed.class_names
    for ours, expected in zip(dataset.records, listed.records, strict=True):
        np.testing.assert_array_equal(ours.boxes, expected.boxes)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(20, 30), (30, 30)])
def test_labels_of_a_rotated_photograph_refer_to_the_shown_image(
    shape: tuple[int, int], orientation: int, load: Callable[..., YoloDataset], tmp_path: Path
):
    """The stored image has a red quarter at the top left. Pillow gives the shown image."""
    pixels = np.zeros((*shape, 3), dtype=np.uint8)
    pixels[: shape[0] // 2, : shape[1] // 2] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "images/train/b.jpg", quality=95, subsampling=0, exif=exif)
    with Image.open(tmp_path / "images/train/b.jpg") as stored:
        shown = np.asarray(ImageOps.exif_transpose(stored))
    height, width = shown.shape[:2]
    ys, xs = (shown[..., 0] > 128).nonzero()
    cx, cy = (xs.min() + xs.max() + 1) / 2 / width, (ys.min() + ys.max() + 1) / 2 / height
    data = load(labels={"labels/train/b.txt": f"0 {cx} {cy} 0.5 0.5\n"})
    for dataset in (data, CachedDataset(data, tmp_path / "kept", min(shape), 1000)):
        sample = dataset[1]
        assert sample.image.shape == shown.shape
        x1, y1, x2, y2 = sample.boxes[0].astype(int)
        red = (sample.image[..., 0] > 128).nonzero()
        assert (red[1].min(), red[0].min(), red[1].max() + 1, red[0].max() + 1) == (x1, y1, x2, y2)


@pytest.mark.parametrize(
    "line",
    [
        "0 0.5 0.5 0.1",
        "0 0.5 0.5 0.1 0.1 0.9",
        "cat 0.5 0.5 0.1 0.1",
        "-1 0.5 0.5 0.1 0.1",
        "0 0.5 nan 0.1 0.1",
        "9" * 5000 + " 0.5 0.5 0.1 0.1",
        "0 15 10 5 5",
        "2 0.5 0.5 0.1 0.1",
    ],
)
def test_malformed_lines(load: Callable[..., YoloDataset], line: str):
    labels = {"labels/train/a.txt": f"1 0.5 0.5 0.5 0.5\n{line}\n"}
    with refused("labels/train/a.txt", "line 2", line[:60], remedy="data.invalid=skip"):
        load(labels=labels)
    findings = Findings("skip")
    dataset = load(labels=labels, findings=findings)
    assert findings.count("object_malformed") == 1 and dataset.class_counts().tolist() == [0, 1]


def test_a_box_without_area(load: Callable[..., YoloDataset]):
    findings = Findings("skip")
    load(labels={"labels/train/a.txt": "0 0.5 0.5 0 0.1"}, findings=findings)
    assert findings.count("box_empty") == 1


def test_an_unreadable_image(load: Callable[..., YoloDataset], tmp_path: Path):
    (tmp_path / "images/train/b.jpg").write_text("text")
    with refused("b.jpg", remedy=KINDS["image_unreadable"].remedy):
        load()
    findings = Findings("skip")
    labels = LABELS | {"labels/train/b.txt": "0 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.2 0.2\n"}
    assert len(load(labels=labels, findings=findings)) == 1 and findings.count("image_unreadable") == 1
    assert findings.count("annotation_lost") == 2
    (tmp_path / "images/train/a.png").write_text("")
    with refused("data.yaml", "a.png"):
        load(findings=Findings("skip"))


@pytest.mark.parametrize(
    ("yaml", "pattern"),
    [
        ("names: [", "data.yaml: line 1"),
        ("names: " + "[" * 5000, "data.yaml: .*recursion"),
        ("names: [[cat]]\ntrain: images", "data.yaml: .*'names'"),
        ("names: [cat]\nval: [{a: b}]", "data.yaml: .*{'a': 'b'}.*'val'"),
        ("names: [cat]\nval: images/list.txt", r"list\.txt: .*notes\.md"),
        ("names: [cat]\nval: images/none.txt", r"none\.txt: "),
        ("[]", "data.yaml: .*'names'"),
        ("names: {0: cat, 2: dog}\ntrain: images", "data.yaml: .*'names'"),
        ("names: [cat]\ntrain: images", "data.yaml: .*'val'.*train"),
        ("names: [cat]\nval: gone", "gone: .*No such file"),
        ("names: [cat]\nval: labels", r"labels: .*\.png"),
        ("names: !!python/object/apply:os.system ['touch marker']", r"data.yaml: line 1: .*!"),
    ],
)
def test_malformed_files(load: Callable[..., YoloDataset], yaml: str, pattern: str, tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images/list.txt").write_text("train/a.png\nnotes.md\n")
    (tmp_path / "images/none.txt").write_text("\n")
    with pytest.raises(UserError, match=pattern) as error:
        load(yaml, split="val")
    assert "\n" not in str(error.value) and not (tmp_path / "marker").exists()


def test_missing_files(load: Callable[..., YoloDataset], tmp_path: Path):
    with refused("gone.yaml"):
        load(annotations=tmp_path / "gone.yaml")
    with refused("labels/train", remedy="images"):
        load(annotations=tmp_path / "labels/train")
    with refused("classes.txt"):
        load(annotations=tmp_path / "labels/train", images=tmp_path / "images/train")


POSE = "0 0.4 0.5 0.2 0.4 0.35 0.45 1 0.45 0.55 1"  # a box and two keypoints with visibility
TRACK = "0 0.4 0.5 0.2 0.4 0.9 1"  # a box, a score and a track id
POLYGON = "0 0.8 0.5 0.9 0.5 0.9 0.9 0.8 0.9"


@pytest.mark.parametrize("line", [POSE, TRACK])
def test_rows_that_could_be_polygons_or_boxes_are_refused(load: Callable[..., YoloDataset], line: str):
    labels = {"labels/train/a.txt": f"1 0.5 0.5 1 1\n{line}\n"}
    with pytest.raises(UserError):
        load(labels=labels)
    findings = Findings("skip")
    assert load(labels=labels, findings=findings).class_counts().tolist() == [0, 1]
    assert findings.count("row_ambiguous") == 1
    box = load(labels=labels, rows="box").records[0].boxes[1]
    np.testing.assert_allclose(box, [9, 6, 15, 14], rtol=1e-6)


def test_keypoints_that_the_data_yaml_declares(load: Callable[..., YoloDataset]):
    labels = {"labels/train/a.txt": f"{POSE}\n{POSE[:-4]}\n"}
    findings = Findings("skip")
    dataset = load(YAML + "kpt_shape: [2, 3]\n", labels=labels, findings=findings)
    np.testing.assert_allclose(dataset.records[0].boxes, [[9, 6, 15, 14]], rtol=1e-6)
    assert findings.count("object_malformed") == 1  # the line has another length than declared
    with pytest.raises(UserError):
        load(YAML + "kpt_shape: [2]\n")


@pytest.mark.parametrize("rows", [[POLYGON], [POSE, POLYGON], [TRACK, TRACK + " 0.5 0.5"]])
def test_polygons_are_recognized_by_their_values(load: Callable[..., YoloDataset], rows: list[str]):
    findings = Findings()
    dataset = load(labels={"labels/train/a.txt": "\n".join(rows)}, findings=findings)
    assert findings.count("row_polygon") == len(rows)
    points = np.array([float(word) for word in rows[0].split()[1:]]).reshape(-1, 2) * (30, 20)
    np.testing.assert_allclose(dataset.records[0].boxes[0], [*points.min(0), *points.max(0)], rtol=1e-6)


@pytest.mark.parametrize("box", [(0.6, 0.6, 0.9, 0.95), (0.05, 0.1, 0.5, 0.6)])
def test_another_convention_is_refused(load: Callable[..., YoloDataset], box: tuple[float, ...]):
    """The first box has corners. The second box has the top left corner instead of the center."""
    rows = "".join(f"0 {' '.join(f'{value + i / 100:g}' for value in box)}\n" for i in range(5))
    with pytest.raises(UserError):
        load(labels={"labels/train/a.txt": rows})
    findings = Findings("skip")
    load(labels={"labels/train/a.txt": rows}, findings=findings)
    assert findings.count("box_corners") == 5


def test_every_file_is_used_or_listed(load: Callable[..., YoloDataset], tmp_path: Path):
    for name in ("images/train/sub/d.png", "images/train/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_image(tmp_path / name, np.zeros((20, 30, 3), dtype=np.uint8))
    (tmp_path / "images/train/x.psd").write_bytes(b"8BPS")
    (tmp_path / "labels/train/sub").mkdir()
    labels = LABELS | {
        "labels/train/sub/d.txt": "0 0.5 0.5 1 1",
        "labels/train/x.txt": "0 0.5 0.5 1 1",
        "labels/train/README.txt": "made by a tool",
        "labels/train/classes.txt": "cat\ndog\n",
    }
    with pytest.raises(UserError):
        load(labels=labels)  # the image of x.txt has an unreadable format
    for folders in ({}, {"annotations": tmp_path / "labels/train", "images": tmp_path / "images/train"}):
        findings = Findings("skip")
        dataset = load(labels=labels, findings=findings, **folders)
        assert [record.path.name for record in dataset.records] == ["a.jpg", "a.png", "b.jpg", "d.png"]
        assert [len(record.boxes) for record in dataset.records] == [2, 2, 0, 1]
        counts = {kind: finding.count for kind, finding in findings.by_kind.items()}
        orphan = "annotation_unlisted" if folders else "label_orphan"  # another split may have the image of the labels
        expected = {"image_unlabelled": 1, "image_twins": 1, orphan: 1, "image_format": 1, "file_other": 1}
        assert {kind: counts[kind] for kind in expected} == expected


def test_labels_in_another_folder_are_an_error(load: Callable[..., YoloDataset], tmp_path: Path):
    load()
    (tmp_path / "labels").rename(tmp_path / "Labels")
    with refused("labels/train/a.txt"):
        load(labels={}, findings=Findings("skip"))


def test_linked_folders(load: Callable[..., YoloDataset], tmp_path: Path):
    load()
    for name in ("images", "labels"):
        (tmp_path / name).rename(tmp_path / f"{name}_elsewhere")
        (tmp_path / name).mkdir()
        (tmp_path / name / "train").symlink_to(tmp_path / f"{name}_elsewhere/train")
    assert load(labels={}).class_counts().tolist() == [1, 1]


def test_the_class_names_are_text(load: Callable[..., YoloDataset]):
    findings = Findings()
    yaml = YAML.replace("{0: cat, 1: dog}", "[007, 1.50, no, 1e3]") + "nc: 5\nextra: 1\n"
    assert load(yaml, findings=findings).class_names == ("007", "1.50", "no", "1e3")
    assert findings.count("count_differs") == 1 and findings.count("key_unknown") == 1


def test_unused_files_in_the_folders_of_a_list_are_reported(load: Callable[..., YoloDataset], tmp_path: Path):
    (tmp_path / "train.txt").write_text("images/train/a.png\n")
    (tmp_path / "images/train/notes.md").write_text("")
    findings = Findings()
    load(YAML.replace("images/train", "train.txt"), findings=findings)
    assert findings.count("image_unlisted") == 1 and findings.count("file_other") == 1


@pytest.mark.parametrize("null", ["", "null", "~"])
def test_null_means_a_missing_key(load: Callable[..., YoloDataset], null: str):
    findings = Findings()
    load(f"{YAML}kpt_shape: {null}\nnc: {null}\n", findings=findings)
    assert findings.count("count_differs") == 0


def test_a_few_lines_outside_the_image_do_not_decide_for_polygons(load: Callable[..., YoloDataset]):
    """The box of a pose may extend beyond the edge of the image."""
    rows = [POSE] * 15 + [POSE.replace("0.4 0.5 0.2 0.4", "0.95 0.5 0.2 0.4")]
    findings = Findings("skip")
    load(labels={"labels/train/a.txt": "\n".join(rows)}, findings=findings)
    assert findings.count("row_ambiguous") == 16


def test_a_class_written_with_decimals(load: Callable[..., YoloDataset]):
    assert load(labels={"labels/train/a.txt": "1.0 0.5 0.5 1 1"}).class_counts().tolist() == [0, 1]


def test_labels_in_utf_16(load: Callable[..., YoloDataset], tmp_path: Path):
    load()
    (tmp_path / "labels/train/a.txt").write_bytes("1 0.5 0.5 1 1\r\n".encode("utf-16"))
    assert load(labels={}).class_counts().tolist() == [0, 1]


def test_a_list_with_windows_separators(load: Callable[..., YoloDataset], tmp_path: Path):
    (tmp_path / "train.txt").write_bytes("images\\train\\a.png\r\nimages\\train\\b.jpg\r\n".encode("utf-16"))
    assert load(YAML.replace("images/train", "train.txt")).class_counts().tolist() == [1, 1]


def test_labels_path():
    assert labels_path(Path("images/a/images/b/c.d.jpg")) == Path("images/a/labels/b/c.d.txt")
    assert labels_path(Path("photos/a.jpg")) == Path("photos/a.txt")
    assert labels_path(Path("photos/images")) == Path("photos/images.txt")


def test_real_boxes_equal_globox(shared_data: Path, tmp_path: Path):
    """Another package writes and reads the validation images of COCO as YOLO labels."""
    images = shared_data / "coco_tiny/val2017"
    source = shared_data / "coco_tiny/annotations/instances_val2017.json"
    names = {c["name"]: i for i, c in enumerate(json.loads(source.read_text())["categories"])}
    annotations = globox.AnnotationSet.from_coco(source)
    annotations.save_yolo_v5(tmp_path / "labels", label_to_id=names)
    (tmp_path / "labels/classes.txt").write_text("\n".join(names))
    dataset = YoloDataset(annotations=tmp_path / "labels", images=images)
    assert len(dataset) == 80 and dataset.class_counts().sum() > 500
    for record in dataset.records:
        expected = annotations[record.path.name].boxes
        assert [dataset.class_names[k] for k in record.labels] == [box.label for box in expected]
        corners = np.array([[b.xmin, b.ymin, b.xmax, b.ymax] for b in expected]).reshape(-1, 4)
        np.testing.assert_allclose(record.boxes, corners, atol=1e-2)
