import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from refusals import refused

from detector.core.errors import UserError
from detector.data.checks.findings import KINDS, Findings
from detector.data.formats.coco import CocoDataset
from detector.data.images import write_image


def scene() -> dict[str, Any]:
    """Return a file with sparse unsorted ids, a crowd, an image without annotations, and interleaved annotations."""
    return {
        "images": [
            {"id": 90, "file_name": "b.png", "width": 30, "height": 20},
            {"id": 7, "file_name": "a.png", "width": 30, "height": 20},
            {"id": 8, "file_name": "empty.png", "width": 30, "height": 20},
        ],
        "annotations": [
            {"id": 5, "image_id": 7, "category_id": 40, "bbox": [1.25, 2.5, 10.5, 5.0], "area": 31.5, "iscrowd": 0},
            {"id": 0, "image_id": 90, "category_id": 3, "bbox": [0, 0, 4, 4], "area": 9.0, "iscrowd": 1},
            {"id": 6, "image_id": 7, "category_id": 3, "bbox": [25, -5, 10, 15]},
        ],
        "categories": [{"id": 40, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 11, "name": "cow"}],
    }


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., CocoDataset]:
    for entry in scene()["images"]:
        write_image(tmp_path / entry["file_name"], np.zeros((20, 30, 3), dtype=np.uint8))

    def load(content: Any, findings: Findings | None = None, classes: Any = None) -> CocoDataset:
        (tmp_path / "a.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return CocoDataset(classes, findings, images=tmp_path, annotations=tmp_path / "a.json")

    return load


def test_records_of_a_small_file(load: Callable[..., CocoDataset]):
    dataset = load(scene())
    assert dataset.class_names == ("cat", "cow", "dog") and dataset.category_ids == (3, 11, 40)
    assert [record.image_id for record in dataset.records] == [90, 7, 8]
    b, a, empty = dataset.records
    np.testing.assert_array_equal(
        a.boxes, np.float32([[1.25, 2.5, 11.75, 7.5], [25, 0, 30, 10]])
    )  # the last box is clipped
    np.testing.assert_array_equal(a.labels, [2, 0])
    np.testing.assert_array_equal(a.area, np.float32([31.5, 50]))  # as written, or the area of the clipped box
    assert b.crowd.tolist() == [True] and a.crowd.tolist() == [False, False]
    assert (a.width, a.height) == (30, 20)
    for record in dataset.records:
        assert record.boxes.dtype == np.float32 and record.boxes.shape == (len(record.labels), 4)
        assert (record.labels.dtype, record.crowd.dtype, record.area.dtype) == (np.int64, np.bool_, np.float32)
    assert len(empty.boxes) == 0
    np.testing.assert_array_equal(dataset.class_counts(), [1, 0, 1])
    sample = dataset[1]
    assert sample.image.shape == (20, 30, 3) and sample.image_id == 7 and sample.file_name == "a.png"


def test_the_area_of_the_box_replaces_an_area_of_nan(load: Callable[..., CocoDataset]):
    content = scene()
    content["annotations"][0]["area"] = math.nan
    assert load(content).records[1].area[0] == np.float32(52.5)


def test_no_annotations_at_all(load: Callable[..., CocoDataset]):
    dataset = load({**scene(), "annotations": []})
    assert len(dataset) == 3 and all(record.boxes.shape == (0, 4) for record in dataset.records)


def test_classes_are_mapped_by_name(load: Callable[..., CocoDataset]):
    dataset = load(scene(), classes=("dog", "horse", "cat"))
    assert dataset.class_names == ("dog", "horse", "cat")
    assert dataset.category_ids == (40, 41, 3)  # the class without a category gets an unused id
    assert dataset.records[1].labels.tolist() == [0, 2]
    with refused("a.json", "'dog'", "cat, cow", remedy=KINDS["class_unknown"].remedy):
        load(scene(), classes=("cat", "cow"))


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([1, 1, 0, 5], "box_empty"),
        ([1, 1, 5, -1], "box_empty"),
        ([40, 1, 5, 5], "box_outside"),
        ([math.nan, 1, 5, 5], "box_malformed"),
        ([1, 1, math.inf, 5], "box_malformed"),
        ([1, 2, 3], "box_malformed"),
        ([1, 2, 3, "4 px"], "box_malformed"),
        ([1, 2, 3, "inf"], "box_malformed"),
        ([1, 2, 3, 10**400], "box_malformed"),
        ([1e308, 1, 1e308, 5], "box_malformed"),
        ([math.inf, 1, -math.inf, 5], "box_malformed"),
        ([25, 1, 1e-7, 5], "box_outside"),  # as float32
        (None, "box_malformed"),
    ],
    ids=str,
)
def test_invalid_boxes_are_an_error_or_skipped_and_counted(load: Callable[..., CocoDataset], box: Any, kind: str):
    content = scene()
    content["annotations"].insert(1, {"id": 77, "image_id": 7, "category_id": 11, "bbox": box})
    with refused("a.json", "annotation 77", "'a.png'", remedy="data.invalid=skip"):
        load(content)
    findings = Findings("skip")
    dataset, clean = load(content, findings), load(scene())
    assert findings.count(kind) == 1 and "annotation 77" in findings.by_kind[kind].examples[0]
    assert [k for k in findings.by_kind if KINDS[k].level != "note"] == [kind]
    for ours, expected in zip(dataset.records, clean.records, strict=True):
        np.testing.assert_array_equal(ours.boxes, expected.boxes)
        np.testing.assert_array_equal(ours.labels, expected.labels)


def changed(section: str, index: int, **values: Any) -> dict[str, Any]:
    content = scene()
    content[section][index].update(values)
    return content


def without(section: str, index: int, key: str) -> dict[str, Any]:
    content = scene()
    del content[section][index][key]
    return content


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("{", ["JSON", "line 1"]),
        ("\x00", ["JSON", "line 1"]),
        ("[]", ["JSON", "list"]),
        ({"images": [], "categories": []}, ["'images'"]),
        ({**scene(), "categories": []}, ["'categories'"]),
        ({**scene(), "annotations": None}, ["'annotations'"]),
        ({**scene(), "annotations": [1]}, ["'annotations'"]),
        (without("images", 1, "file_name"), ["images[1].file_name"]),
        (without("categories", 0, "name"), ["categories[0].name"]),
        (changed("images", 1, id=-1), ["id -1", "'images'"]),
        (changed("categories", 1, id=-2), ["id -2", "'categories'"]),
        (changed("images", 1, id=10**30), [f"id {10**30}", "'images'"]),
        (changed("images", 1, id="a7"), ["images[1].id", "'a7'"]),
        (changed("images", 1, id=7.5), ["images[1].id", "7.5"]),
        (changed("images", 1, id=True), ["images[1].id", "True"]),
        (changed("images", 1, id=90), ["id 90", "'images'"]),
        (changed("categories", 1, id=40), ["id 40", "'categories'"]),
        (changed("categories", 1, name="dog"), ["'dog'"]),
    ],
)
def test_a_malformed_file_is_refused(load: Callable[..., CocoDataset], content: Any, facts: list[str]):
    with refused("a.json", *facts):
        load(content)


@pytest.mark.parametrize(
    ("content", "kind", "facts"),
    [
        (without("annotations", 2, "category_id"), "category_unknown", ["annotation 6", "'a.png'", "None"]),
        (changed("annotations", 2, category_id=1), "category_unknown", ["annotation 6", "'a.png'", "category_id 1"]),
        (without("annotations", 2, "image_id"), "annotation_orphan", ["annotation 6", "None"]),
        (changed("annotations", 2, image_id="seven"), "annotation_orphan", ["annotation 6", "'seven'"]),
        (changed("annotations", 2, image_id=1), "annotation_orphan", ["annotation 6", "image_id 1"]),
        (changed("images", 1, height=21), "image_unlike", ["a.png", "30x20", "30x21"]),
        (changed("images", 1, file_name="gone.png"), "image_missing", ["gone.png", "a.json"]),
        (changed("annotations", 2, area="big"), "number", ["annotation 6", "'a.png'", "area", "'big'"]),
        (changed("annotations", 2, area=-4), "number", ["annotation 6", "'a.png'", "area", "-4"]),
        (changed("annotations", 2, area=1e300), "number", ["annotation 6", "'a.png'", "area", "1e+300"]),
        (changed("annotations", 2, iscrowd="no"), "number", ["annotation 6", "'a.png'", "iscrowd", "'no'"]),
    ],
)
def test_an_invalid_entry_is_refused(load: Callable[..., CocoDataset], content: Any, kind: str, facts: list[str]):
    with refused(*facts, remedy=KINDS[kind].remedy):
        load(content)


def test_missing_file(tmp_path: Path):
    with refused("absent.json"):
        CocoDataset(images=tmp_path, annotations=tmp_path / "absent.json")


def test_numbers_may_be_text_decimals_or_booleans(load: Callable[..., CocoDataset]):
    """The file has the same content as a file with integers."""
    content, usual = scene(), load(scene())
    for image in content["images"]:
        image |= {"id": f"{image['id']}", "width": 30.0, "height": "20"}
    for annotation in content["annotations"]:
        annotation |= {"image_id": float(annotation["image_id"]), "category_id": f"{annotation['category_id']}.0"}
        annotation["bbox"] = [str(value) for value in annotation["bbox"]]
        annotation["iscrowd"] = bool(annotation.get("iscrowd"))
    for category in content["categories"]:
        category["id"] = float(category["id"])
    dataset = load(content)
    assert dataset.category_ids == usual.category_ids and dataset.class_names == usual.class_names
    for ours, expected in zip(dataset.records, usual.records, strict=True):
        assert (ours.image_id, ours.width, ours.height) == (expected.image_id, expected.width, expected.height)
        np.testing.assert_array_equal(ours.boxes, expected.boxes)
        np.testing.assert_array_equal(ours.labels, expected.labels)
        np.testing.assert_array_equal(ours.crowd, expected.crowd)


def test_ignored_regions_count_neither_as_objects_nor_as_background(load: Callable[..., CocoDataset]):
    dataset = load(changed("annotations", 0, ignore=1))
    assert dataset.records[1].crowd.tolist() == [True, False]
    assert dataset.class_counts().tolist() == [1, 0, 0]
    assert dataset.ground_truth()["annotations"][1]["iscrowd"] == 1  # the scorer ignores the region
    assert load(changed("annotations", 0, ignore=0)).class_counts().tolist() == [1, 0, 1]


def test_keys_without_use_are_listed_once(load: Callable[..., CocoDataset]):
    content, findings = changed("annotations", 0, keypoints=[1, 2, 2]), Findings()
    content["annotations"][1]["keypoints"] = []
    content["images"][0]["weather"] = "rain"
    load(content, findings)
    assert findings.count("key_unknown") == 2
    assert [example.split(": ")[1] for example in findings.by_kind["key_unknown"].examples] == [
        "images.weather",
        "annotations.keypoints",
    ]


@pytest.mark.parametrize("name", ["animals", "cat"])
def test_a_root_category_without_objects_is_left_out(load: Callable[..., CocoDataset], name: str):
    """Roboflow writes a category with the name of the project, which can be the name of a class."""
    content, findings = scene(), Findings()
    for category in content["categories"]:
        category["supercategory"] = name
    content["categories"].insert(0, {"id": 0, "name": name, "supercategory": "none"})
    dataset = load(content, findings)
    assert dataset.class_names == ("cat", "cow", "dog") and dataset.category_ids == (3, 11, 40)
    assert findings.count("category_root") == 1
    content["annotations"][0]["category_id"] = 0  # a category with an object is a class
    if name == "cat":
        with pytest.raises(UserError):
            load(content, Findings("skip"))
    else:
        assert load(content).class_names == ("animals", "cat", "cow", "dog")


def test_a_class_of_the_training_set_is_not_a_root(load: Callable[..., CocoDataset]):
    content = scene()
    for category in content["categories"]:
        category["supercategory"] = "cow"  # this class has no objects here
    dataset = load(content, Findings(), classes=("cat", "cow", "dog"))
    assert dataset.category_ids == (3, 11, 40)


def test_unknown_keys_change_nothing(load: Callable[..., CocoDataset]):
    content = changed("annotations", 2, where=5, written=7)
    assert [len(record.boxes) for record in load(content).records] == [1, 2, 0]


def test_of_two_roots_with_the_same_name_a_class_remains(load: Callable[..., CocoDataset]):
    content = scene()
    content["categories"] += [{"id": 50, "name": "owl"}, {"id": 51, "name": "owl"}]
    assert load(content).class_names == ("cat", "cow", "dog", "owl")


def test_classes_with_similar_names_are_noted(load: Callable[..., CocoDataset]):
    content, findings = changed("categories", 1, name=" Dog"), Findings()
    assert load(content, findings).class_names == (" Dog", "cow", "dog") and findings.count("class_alike") == 1


def test_the_file_names_of_lvis(load: Callable[..., CocoDataset], tmp_path: Path):
    content = scene()
    (tmp_path / "train2017").mkdir()
    (tmp_path / "b.png").rename(tmp_path / "train2017/b.png")
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    content["images"][0]["not_exhaustive_category_ids"] = [3]
    findings = Findings()
    names = [str(record.path.relative_to(tmp_path)) for record in load(content, findings).records]
    assert names == ["train2017/b.png", "a.png", "empty.png"] and findings.count("image_partly") == 1


def test_links_are_followed_and_names_that_lead_outside_are_refused(load: Callable[..., CocoDataset], tmp_path: Path):
    outside = tmp_path.parent / f"{tmp_path.name}_outside"
    outside.mkdir()
    (tmp_path / "a.png").rename(outside / "a.png")
    (tmp_path / "a.png").symlink_to(outside / "a.png")
    (tmp_path / "folder").symlink_to(outside)
    assert load(scene())[1].image.shape == (20, 30, 3)
    assert load(changed("images", 1, file_name="folder/a.png"))[1].image.shape == (20, 30, 3)
    for name in (f"../{outside.name}/a.png", str(outside / "a.png"), "folder/../../x.png", "C:\\x.png", "..\\x.png"):
        findings = Findings("skip")
        assert len(load(changed("images", 1, file_name=name), findings)) == 2
        assert findings.count("image_outside") == 1


@pytest.mark.parametrize("name", ["A.PNG", "./a.png", ".\\a.png", " a.png", "DIR/a.png"])
def test_names_with_other_separators_or_case(load: Callable[..., CocoDataset], tmp_path: Path, name: str):
    findings = Findings()
    dataset = load(changed("images", 1, file_name=name.replace("DIR", str(tmp_path))), findings)
    assert dataset.records[1].path == tmp_path / "a.png" and findings.count("image_renamed") == 1


def test_files_that_are_not_listed(load: Callable[..., CocoDataset], tmp_path: Path):
    write_image(tmp_path / "more.png", np.zeros((20, 30, 3), dtype=np.uint8))
    (tmp_path / "more.heif.txt").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "unlike.png").write_bytes((tmp_path / "a.png").read_bytes())
    content = scene()
    content["images"].append({"id": 9, "file_name": "unlike.png", "width": 31, "height": 20})
    findings = Findings("skip")
    load(content, findings)
    assert findings.count("link_broken") == 1 and findings.count("image_unlike") == 1
    assert findings.count("image_unlisted") == 1 and findings.count("file_other") == 1


def test_boxes_in_fractions_are_refused(load: Callable[..., CocoDataset]):
    content = scene()
    entry = {"image_id": 7, "category_id": 3, "bbox": [0.1, 0.2, 0.5, 0.3], "area": 1, "iscrowd": 0}
    content["annotations"] = [entry | {"id": number} for number in range(1, 7)]
    with pytest.raises(UserError):
        load(content)
    findings = Findings("skip")
    load(content, findings)
    assert findings.count("box_fractions") == 6


def test_images_that_cannot_be_used_are_left_out_before_the_first_step(
    load: Callable[..., CocoDataset], tmp_path: Path
):
    content = scene()
    content["images"].append({"id": 9, "file_name": "text.png", "width": 30, "height": 20})
    content["images"].append({"id": 10, "file_name": "unlike.png", "width": 31, "height": 20})
    content["images"].append({"id": 11, "file_name": "sizeless.png"})
    (tmp_path / "text.png").write_text("text")
    for name in ("unlike.png", "sizeless.png"):
        write_image(tmp_path / name, np.zeros((20, 30, 3), dtype=np.uint8))
    findings = Findings("skip")
    dataset = load(content, findings)
    assert [record.path.name for record in dataset.records] == ["b.png", "a.png", "empty.png", "sizeless.png"]
    kinds = ("image_unreadable", "image_unlike", "image_size")
    assert [findings.count(kind) for kind in kinds] == [1, 1, 1]
    assert (dataset.records[3].width, dataset.records[3].height) == (30, 20)


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_annotations_equal_pycocotools(shared_data: Path, split: str):
    annotations = shared_data / f"coco_tiny/annotations/instances_{split}.json"
    findings = Findings()
    dataset = CocoDataset(None, findings, images=shared_data / "coco_tiny" / split, annotations=annotations)
    reference = COCO(annotations)
    assert len(dataset) == 80 and findings.by_kind.keys() == {"category_ids"}
    assert list(dataset.category_ids) == reference.getCatIds()
    assert dataset.class_names[0] == "person" and dataset.class_names[79] == "toothbrush"
    for record in dataset.records:
        expected = reference.loadAnns(reference.getAnnIds(record.image_id))
        boxes = np.float32([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in expected)])
        np.testing.assert_array_equal(record.boxes, boxes)
        assert [dataset.category_ids[label] for label in record.labels] == [a["category_id"] for a in expected]
        assert record.crowd.tolist() == [a["iscrowd"] == 1 for a in expected]
        np.testing.assert_array_equal(record.area, np.float32([a["area"] for a in expected]))
        entry = reference.imgs[record.image_id]
        assert (record.path.name, record.width, record.height) == (entry["file_name"], entry["width"], entry["height"])
    assert dataset[3].image.shape[:2] == (dataset.records[3].height, dataset.records[3].width)
    assert len(pickle.loads(pickle.dumps(dataset))) == 80  # spawned workers pickle the data set
