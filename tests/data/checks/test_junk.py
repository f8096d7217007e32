"""Random files: each reader returns a data set or raises an error of one line, and counts each lost annotation."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector.core.errors import UserError
from detector.data.checks.findings import KINDS, Findings
from detector.data.checks.records import check_records
from detector.data.dataset import DetectionDataset
from detector.data.formats.coco import CocoDataset
from detector.data.formats.voc import VocDataset
from detector.data.formats.yolo import YoloDataset
from detector.data.images import write_image

FEW = settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
HEIGHT, WIDTH = 20, 30
LEFT_OUT = (  # the kinds that leave out single annotations
    *("annotation_orphan", "annotation_lost", "category_unknown", "class_unknown", "number"),
    *("object_malformed", "row_ambiguous", "box_malformed", "box_empty", "box_outside"),
)
LEFT_OUT_IMAGES = ("image_missing", "image_outside", "image_twice", "image_unlike", "image_unreadable")

any_text = st.text(st.characters(exclude_categories=()), max_size=8)  # lone surrogates too
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from((0, -1, 10**400, 1e308, math.nan, math.inf)))
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, any_text),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)


def mostly(valid: st.SearchStrategy, other: st.SearchStrategy = junk, odds: int = 9) -> st.SearchStrategy:
    return st.integers(0, odds).flatmap(lambda number: other if number == odds // 2 else valid)


def nearly(valid: st.SearchStrategy) -> st.SearchStrategy:
    """Return a strategy of rare faults, for values whose fault makes the file unusable."""
    return mostly(valid, odds=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images/: a.png, b.png, sub/c.png, damaged.png, and away.png, a link to an outside image."""
    folder = tmp_path_factory.mktemp("junk")
    for name in ("images/a.png", "images/b.png", "images/sub/c.png", "elsewhere.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8))
    (folder / "images/damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "images/away.png").symlink_to(folder / "elsewhere.png")
    (folder / "labels").mkdir()
    return folder


def read_both_ways(read: Callable[[Findings], DetectionDataset]) -> tuple[DetectionDataset, Findings] | None:
    """Read with data.invalid=skip and with data.invalid=error, and compare the two results.

    Returns:
        The data set and the findings of skip, or None where skip refuses the files too.
    """

    def attempt(findings: Findings) -> DetectionDataset | None:
        try:
            return read(findings)
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 1100 and str(error)[0] != " "
            return None

    skipping, strict = Findings("skip"), Findings("error")
    dataset, strictly = attempt(skipping), attempt(strict)
    if dataset is None:
        assert strictly is None
        return None
    assert all(finding.count >= len(finding.examples) > 0 for finding in skipping.by_kind.values())
    assert all(line.isprintable() for finding in skipping.by_kind.values() for line in finding.examples)
    faults = {kind for kind in skipping.by_kind if KINDS[kind].level != "note"}
    assert (strictly is None) == bool(faults)
    for record in dataset.records:
        assert record.boxes.dtype == np.float32 and (record.labels < len(dataset.class_names)).all()
        assert (record.boxes[:, 2:] > record.boxes[:, :2]).all() and (record.boxes >= 0).all()
        assert (record.boxes[:, 2:] <= [record.width, record.height]).all()
        assert (record.area >= 0).all() and np.isfinite(record.area).all() and (record.labels >= 0).all()
    check_records(
        dataset, skipping, max_objects=1, anchor_sides=np.array([[9.0, 9.0]]), matched_iou=0.5, scale=lambda _: 1.0
    )
    assert len(dataset.ground_truth()["annotations"]) == sum(len(record.boxes) for record in dataset.records)
    assert dataset.describe()
    return dataset, skipping


def counted(dataset: DetectionDataset, findings: Findings) -> tuple[int, int]:
    """Return the numbers of images and annotations, including the entries that are left out."""
    images = len(dataset) + sum(map(findings.count, LEFT_OUT_IMAGES))
    return images, sum(len(r.boxes) for r in dataset.records) + sum(map(findings.count, LEFT_OUT))


def entries(required: dict[str, st.SearchStrategy], optional: dict[str, st.SearchStrategy], size: int) -> Any:
    """Return a strategy of lists of objects that sometimes have no required keys."""
    complete = st.fixed_dictionaries(required, optional=optional)
    return st.lists(
        mostly(complete, st.fixed_dictionaries({}, optional=required | optional)), min_size=size // 2, max_size=size
    )


def listed(entry: dict[str, st.SearchStrategy]) -> st.SearchStrategy:
    """Return a strategy of lists of objects with different ids."""
    entry = st.fixed_dictionaries({"id": nearly(ids)} | entry)
    return nearly(st.lists(entry, min_size=2, max_size=3, unique_by=lambda entry: str(entry["id"])))


names = mostly(
    st.sampled_from(("a.png", "b.png", "sub/c.png")),
    st.sampled_from(("./a.png", "gone.png", "../elsewhere.png", "away.png", ".", "")),
    odds=5,
)
ids = st.integers(0, 2)
coordinates = st.one_of(st.floats(-5, 40), st.integers(-5, 40), numbers)
boxes = mostly(
    st.tuples(st.integers(0, 25), st.floats(0, 15), st.floats(1, 9), st.integers(1, 9)).map(list),
    st.lists(coordinates, min_size=4, max_size=4),
    odds=3,
)
coco_files = st.fixed_dictionaries(
    {
        "images": listed(
            {
                "file_name": nearly(names),
                "width": nearly(st.just(WIDTH)),
                "height": mostly(st.just(HEIGHT), st.integers()),
            }
        ),
        "annotations": nearly(
            entries(
                {
                    "id": mostly(ids),
                    "image_id": mostly(ids, odds=20),
                    "category_id": mostly(ids, odds=20),
                    "bbox": mostly(boxes, odds=20),
                },
                {"area": mostly(st.floats(0, 600), odds=20), "iscrowd": mostly(st.sampled_from((0, 1)), odds=20)},
                8,
            )
        ),
        "categories": listed({"name": nearly(any_text)}),
    }
)


@FEW
@given(content=mostly(coco_files), classes=st.sampled_from((None, None, ("cat", "dog"))))
def test_coco(content: Any, classes: tuple[str, ...] | None, folder: Path):
    file = folder / "a.json"
    file.write_text(json.dumps(content))
    read = read_both_ways(lambda findings: CocoDataset(classes, findings, images=folder / "images", annotations=file))
    if read is not None:
        assert counted(*read) == (len(content["images"]), len(content["annotations"]))


def test_many_random_coco_files_are_readable(folder: Path):
    """Otherwise, `test_coco` would test only refusals."""
    outcomes = []

    @settings(FEW, max_examples=100)
    @given(content=coco_files)
    def read(content: Any) -> None:
        (folder / "a.json").write_text(json.dumps(content))
        try:
            dataset = CocoDataset(None, Findings("skip"), images=folder / "images", annotations=folder / "a.json")
            outcomes.append(sum(len(record.boxes) for record in dataset.records))
        except UserError:
            outcomes.append(-1)

    read()
    assert sum(count >= 0 for count in outcomes) > 20 and sum(count > 0 for count in outcomes) > 5


@FEW
@given(content=st.one_of(st.binary(max_size=60), any_text.map(lambda text: json.dumps(text).encode())))
def test_bytes_as_any_format(content: bytes, folder: Path):
    file = folder / "any"
    file.write_bytes(content)
    (folder / "xml").mkdir(exist_ok=True)
    (folder / "xml/a.xml").write_bytes(content)
    for read in (
        lambda findings: CocoDataset(None, findings, images=folder / "images", annotations=file),
        lambda findings: VocDataset(None, findings, images=folder / "images", annotations=folder / "xml"),
        lambda findings: VocDataset(None, findings, images=folder / "images", annotations=folder / "xml", split=file),
        lambda findings: YoloDataset(None, findings, annotations=file, split="train"),
    ):
        assert read_both_ways(read) is None


xml_text = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8).map(escape)
voc_numbers = st.one_of(st.integers(-5, 40).map(str), numbers.map(lambda n: str(n)[:50]), xml_text)
voc_objects = st.fixed_dictionaries(
    {
        "name": mostly(st.sampled_from(("cat", "dog")), xml_text),
        "box": st.lists(mostly(st.integers(0, 31).map(str), voc_numbers), min_size=4, max_size=4),
    },
    optional={"difficult": mostly(st.sampled_from("01"), xml_text)},
)
voc_files = st.lists(
    st.tuples(
        mostly(names.map(escape), xml_text), mostly(st.just("30"), voc_numbers), st.lists(voc_objects, max_size=5)
    ),
    min_size=1,
    max_size=4,
)


def voc_xml(name: str, width: str, objects: list[dict[str, Any]]) -> str:
    parts = []
    for item in objects:
        sides = zip(("xmin", "ymin", "xmax", "ymax"), item["box"], strict=True)
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in sides)
        difficult = f"<difficult>{item.get('difficult', '')}</difficult>"
        parts.append(f"<object><name>{item['name']}</name>{difficult}<bndbox>{box}</bndbox></object>")
    size = f"<size><width>{width}</width><height>20</height></size>"
    return f"<annotation><filename>{name}</filename>{size}{''.join(parts)}</annotation>"


@FEW
@given(files=voc_files)
def test_voc(files: list[tuple[str, str, list[dict[str, Any]]]], folder: Path):
    annotations = folder / "voc"
    annotations.mkdir(exist_ok=True)
    for old in annotations.iterdir():
        old.unlink()
    for number, file in enumerate(files):
        (annotations / f"{number}.xml").write_text(voc_xml(*file), encoding="utf-8")
    read = read_both_ways(
        lambda findings: VocDataset(None, findings, images=folder / "images", annotations=annotations)
    )
    if read is not None:
        images, objects = counted(*read)
        assert images + read[1].count("annotation_file") == len(files)
        assert objects == sum(len(file[2]) for file in files)


yolo_lines = st.one_of(
    st.tuples(st.integers(0, 1), *[st.floats(0, 1)] * 4).map(lambda row: " ".join(map(str, row))),
    st.lists(mostly(st.floats(-0.1, 1.1), numbers), min_size=3, max_size=9).map(
        lambda row: " ".join(["0", *map(str, row)])
    ),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
)


@FEW
@given(labels=st.dictionaries(st.sampled_from(("a", "b", "sub/c", "damaged")), st.lists(yolo_lines, max_size=5)))
def test_yolo(labels: dict[str, list[str]], folder: Path):
    (folder / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    for stem in ("a", "b", "sub/c", "damaged"):
        file = folder / f"labels/{stem}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(labels.get(stem, [])), encoding="utf-8")
    read = read_both_ways(lambda findings: YoloDataset(None, findings, annotations=folder / "data.yaml", split="train"))
    assert read is not None
    lines = [line for text in labels.values() for line in "\n".join(text).splitlines() if line.strip()]
    assert counted(*read) == (5, len(lines))  # the annotations of away.png cannot be checked


yolo_values = mostly(st.sampled_from(("images", ".", "../images", "gone", "list.txt")), xml_text)


@FEW
@given(
    content=st.fixed_dictionaries(
        {"names": mostly(st.just(["cat", "dog"]))}, optional={"path": mostly(yolo_values), "train": mostly(yolo_values)}
    ),
    paths=st.lists(mostly(names, any_text.map(lambda t: t.encode(errors="replace").decode())), max_size=3),
)
def test_data_yaml(content: dict[str, Any], paths: list[str], folder: Path):
    (folder / "images/list.txt").write_text("\n".join(paths), encoding="utf-8")
    (folder / "data.yaml").write_text(json.dumps(content))  # JSON is YAML
    read_both_ways(lambda findings: YoloDataset(None, findings, annotations=folder / "data.yaml", split="train"))
