from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

from detector.core.errors import UserError
from detector.data.checks.findings import KINDS, Findings
from detector.data.formats.voc import VocDataset
from detector.data.images import write_image


def obj(name: str, box: str, difficult: str = "0") -> str:
    x1, y1, x2, y2 = box.split()
    return (
        f"<object><name>{name}</name><part><name>head</name></part><difficult>{difficult}</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
    )


def xml(file_name: str, *objects: str, size: str = "<width>30</width><height>20</height>") -> str:
    return f"<annotation><filename>{file_name}</filename><size>{size}</size>{''.join(objects)}</annotation>"


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., VocDataset]:
    (tmp_path / "xml").mkdir()
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png", "other.png"):
        write_image(tmp_path / "images" / name, np.zeros((20, 30, 3), dtype=np.uint8))

    def load(files: dict[str, str | bytes], split: str | None = None, **parameters: Any) -> VocDataset:
        for stem, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / f"xml/{stem}.xml").write_bytes(data)
        if split is not None:
            parameters["split"] = tmp_path / "split.txt"
            parameters["split"].write_text(split)
        injected = parameters.pop("class_names", None), parameters.pop("findings", None)
        return VocDataset(*injected, images=tmp_path / "images", annotations=tmp_path / "xml", **parameters)

    return load


FILES = {
    "a": xml("a.png", obj("sheep", "1 1 30 20"), obj("goat", "3 4 5 6", difficult="1")),
    "b": xml("renamed.jpg", obj("ant", "0 2 31 8")),
}


def test_coordinates_names_and_flags(load: Callable[..., VocDataset]):
    dataset = load(FILES)
    assert dataset.class_names == ("ant", "goat", "sheep") and dataset.category_ids == (1, 2, 3)
    a, b = dataset.records
    assert (a.image_id, b.image_id) == (1, 2)
    # 1..30 by 1..20 is the full image of 30x20, 3..5 covers three pixels, and 0 and 31 are outside and are clipped
    np.testing.assert_array_equal(a.boxes, np.float32([[0, 0, 30, 20], [2, 3, 5, 6]]))
    np.testing.assert_array_equal(b.boxes, np.float32([[0, 1, 30, 8]]))
    np.testing.assert_array_equal(a.area, np.float32([600, 9]))
    assert a.labels.tolist() == [2, 1] and a.crowd.tolist() == [False, True]
    assert b.path.name == "b.png"  # the named file does not exist: the image with the stem of the XML file is used
    assert dataset[0].image.shape == (20, 30, 3)


def test_coordinates_counted_from_zero(load: Callable[..., VocDataset]):
    dataset = load({"a": xml("a.png", obj("ant", "0 2 29.5 8"))}, one_based=False)
    np.testing.assert_array_equal(dataset.records[0].boxes, np.float32([[0, 2, 29.5, 8]]))


def test_split_gives_the_order_and_the_classes(load: Callable[..., VocDataset]):
    dataset = load(FILES, split="b\n\n  a \n")
    assert [(record.path.stem, record.image_id) for record in dataset.records] == [("b", 1), ("a", 2)]
    assert load(FILES, split="b\n").class_names == ("ant",)


def test_classes_of_another_split(load: Callable[..., VocDataset]):
    classes = ("sheep", "cow", "ant", "goat")
    dataset = load(FILES, class_names=classes)
    assert dataset.class_names == classes and dataset.category_ids == (1, 2, 3, 4)
    assert dataset.records[0].labels.tolist() == [0, 3]
    with refused("'goat'", "sheep, ant", remedy=KINDS["class_unknown"].remedy):
        load(FILES, class_names=("sheep", "ant"))


def test_the_stem_of_the_file_has_priority_over_the_name_in_the_file(load: Callable[..., VocDataset]):
    findings = Findings()
    files = {"a": xml("C:\\pictures\\other.png", obj("ant", "1 1 5 5")), "b": xml("gone.png"), "z": xml("other.png")}
    dataset = load(files, findings=findings)
    assert [record.path.name for record in dataset.records] == ["a.png", "b.png", "other.png"]
    assert [len(record.boxes) for record in dataset.records] == [1, 0, 0]
    assert findings.count("image_ambiguous") == 1  # both a.png and other.png exist


def test_two_images_with_the_same_stem(load: Callable[..., VocDataset], tmp_path: Path):
    write_image(tmp_path / "images/a.jpg", np.zeros((20, 30, 3), dtype=np.uint8))
    findings = Findings()
    ants = obj("ant", "1 1 5 5")
    assert load({"a": xml("a.png", ants)}, findings=findings).records[0].path.name == "a.png"
    assert (
        findings.count("image_ambiguous") == 0 and findings.count("image_unlisted") == 3
    )  # the XML file names the image
    findings = Findings()
    assert load({"a": xml("gone.gif", ants)}, findings=findings).records[0].path.name == "a.jpg"
    assert findings.count("image_ambiguous") == 1


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        # decimals, as CVAT writes them: continuous coordinates
        (["10.25 12.5 20.75 18.5"], [[10.25, 12.5, 20.75, 18.5]]),
        # from 0, without decimals
        (["0 0 10 10", "4 5 9 8"], [[0, 0, 10, 10], [4, 5, 9, 8]]),
        # as VOC defines: from 1, with the last pixel included
        (["1 1 10 10", "4 5 9 8"], [[0, 0, 10, 10], [3, 4, 9, 8]]),
        # a single 0 among boxes that begin at 1
        (["1 1 10 10", "1 5 9 8", "0 5 9 8"], [[0, 0, 10, 10], [0, 4, 9, 8], [0, 4, 9, 8]]),
        # nothing contradicts the definition of VOC
        (["4 5 9 8"], [[3, 4, 9, 8]]),
    ],
)
def test_the_convention_of_coordinates_is_decided_by_all_boxes(
    load: Callable[..., VocDataset], boxes: list[str], expected: list[list[float]]
):
    findings = Findings()
    dataset = load({"a": xml("a.png", *(obj("ant", box) for box in boxes))}, findings=findings)
    np.testing.assert_array_equal(dataset.records[0].boxes, np.float32(expected))
    contradicted = any(float(value) % 1 or value == "0" for box in boxes for value in box.split())
    kind = "box_continuous" if expected[0][0] == float(boxes[0].split()[0]) else "box_one_based"
    assert findings.count(kind) == (1 if contradicted else 0)
    for one_based in (True, False):  # the key has priority over the boxes
        first = float(boxes[0].split()[0]) - one_based
        dataset = load({}, one_based=one_based)
        assert dataset.records[0].boxes[0, 0] == max(first, 0)


def test_the_convention_is_the_same_for_all_splits(load: Callable[..., VocDataset]):
    files = {"a": xml("a.png", obj("ant", "4 5 9 8")), "b": xml("b.png", obj("ant", "4.5 5 9 8"))}
    for split, first in (("a\n", 4), ("b\n", 4.5)):
        assert load(files, split=split).records[0].boxes[0, 0] == first


def test_every_file_is_used_or_listed(load: Callable[..., VocDataset], tmp_path: Path):
    (tmp_path / "xml/sub").mkdir()
    (tmp_path / "images/sub").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("images/sub/c.png", "elsewhere/d.png", "elsewhere/e.png"):
        write_image(tmp_path / name, np.zeros((20, 30, 3), dtype=np.uint8))
    (tmp_path / "xml/b.XML").write_text(xml("b.png", obj("bee", "1 1 5 5")))
    (tmp_path / "xml/sub/c.xml").write_text(xml("c.png", obj("cat", "1 1 5 5")))
    (tmp_path / "xml/notes.md").write_text("notes")
    (tmp_path / "images/d.png").symlink_to(tmp_path / "elsewhere/d.png")
    (tmp_path / "images/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images/loop").symlink_to(tmp_path / "images")
    (tmp_path / "images/gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "images/phone.CR2").write_bytes(b"raw")
    (tmp_path / "images/.hidden").write_text("")
    findings = Findings()
    files = {"a": xml("a.png", obj("ant", "1 1 5 5")), "d": xml("d.png", obj("dog", "1 1 5 5")), "e": xml("e.png")}
    dataset = load(files, findings=findings)
    names = [str(record.path.relative_to(tmp_path)) for record in dataset.records]
    assert names == [f"images/{name}.png" for name in ("a", "b", "d", "linked/e", "sub/c")]
    assert dataset[2].image.shape == (20, 30, 3)
    counts = {kind: finding.count for kind, finding in findings.by_kind.items()}
    assert counts == {"image_unlisted": 2, "file_other": 1, "link_broken": 1, "image_format": 1}
    listed = findings.by_kind["image_unlisted"].examples
    assert sorted(Path(example).name for example in listed) == ["d.png", "other.png"]

    findings = Findings()
    assert len(load({}, findings=findings, split="a\n")) == 1
    assert findings.count("annotation_unlisted") == 4 and findings.count("image_unlisted") == 2


@pytest.mark.parametrize(
    "split", ["a  1\nb -1\n", "a.png\nb.xml\n", "images/a.png\nimages\\b.png\n", "\ufeffa\r\nb\r\n"], ids=repr
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_the_accepted_forms_of_a_split(load: Callable[..., VocDataset], tmp_path: Path, split: str, encoding: str):
    load(FILES)
    (tmp_path / "list.txt").write_bytes(split.encode(encoding))
    dataset = VocDataset(images=tmp_path / "images", annotations=tmp_path / "xml", split=tmp_path / "list.txt")
    assert [record.path.stem for record in dataset.records] == ["a", "b"]


def test_split_lines_that_match_no_file(load: Callable[..., VocDataset], tmp_path: Path):
    """A name in two folders, a missing name, and a file in another folder."""
    for folder in ("p", "q"):
        (tmp_path / "xml" / folder).mkdir()
        (tmp_path / "xml" / folder / "c.xml").write_text(xml("a.png", obj("ant", "1 1 5 5")))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/e.xml").write_text(xml("b.png", obj("ant", "1 1 5 5")))
    for line in ("c", "a 2", "../other/e"):
        findings = Findings("skip")
        dataset = load(FILES, split=f"b\n{line}\n", findings=findings)
        assert [record.path.name for record in dataset.records] == ["b.png"]
        assert findings.count("annotation_file") == 1


def test_an_image_of_another_folder_is_not_used(load: Callable[..., VocDataset], tmp_path: Path):
    for folder in ("xml/train", "images/val"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images/a.png").rename(tmp_path / "images/val/a.png")
    (tmp_path / "xml/train/a.xml").write_text(xml("a.jpg", obj("ant", "1 1 5 5")))
    findings = Findings("skip")
    assert [record.path.name for record in load({"b": xml("b.png")}, findings=findings).records] == ["b.png"]
    assert findings.count("image_missing") == 1


@pytest.mark.parametrize("written", ["sub/p.png", "p.png", "p", "sub\\p.png"])
def test_an_image_that_only_the_name_in_the_file_matches(load: Callable[..., VocDataset], tmp_path: Path, written: str):
    (tmp_path / "images/sub").mkdir()
    write_image(tmp_path / "images/sub/p.png", np.zeros((20, 30, 3), dtype=np.uint8))
    dataset = load({"0001": xml(written, obj("ant", "1 1 5 5"))})
    assert dataset.records[0].path == tmp_path / "images/sub/p.png"


def test_files_that_declare_their_convention_do_not_decide_for_others(load: Callable[..., VocDataset]):
    mark = "<source><coordinates>counted from 1</coordinates></source><size>"
    declared = xml("a.png", obj("ant", "1.5 1 10 10")).replace("<size>", mark)
    dataset = load({"a": declared, "b": xml("b.png", obj("ant", "0 0 9 9"))})
    np.testing.assert_array_equal(dataset.records[0].boxes, np.float32([[0.5, 0, 10, 10]]))
    np.testing.assert_array_equal(dataset.records[1].boxes, np.float32([[0, 0, 9, 9]]))
    assert dataset.decided == {"one_based": False} and dataset.subset([0]).decided == dataset.decided
    assert load({}, one_based=False).records[0].boxes[0].tolist() == [1.5, 1, 10, 10]  # the key has priority


def test_names_that_differ_in_case(load: Callable[..., VocDataset], tmp_path: Path):
    (tmp_path / "images/other.png").rename(tmp_path / "images/Other.PNG")
    dataset = load({"renamed": xml("other.png", obj("ant", "1 1 5 5"))})
    assert dataset.records[0].path.name == "Other.PNG" and dataset[0].image.shape == (20, 30, 3)


@pytest.mark.parametrize("flag", ["<difficult>1</difficult>", "<difficult>True</difficult>", "<ignore>1</ignore>"])
def test_objects_that_are_neither_objects_nor_background(load: Callable[..., VocDataset], flag: str):
    box = obj("ant", "1 1 5 5").replace("<difficult>0</difficult>", flag)
    assert load({"a": xml("a.png", box)}).records[0].crowd.tolist() == [True]


def test_unknown_tags_are_listed_once(load: Callable[..., VocDataset]):
    box = obj("ant", "1 1 5 5").replace("</object>", "<colour>red</colour></object>")
    findings = Findings()
    load({"a": xml("a.png", box, box), "b": xml("b.png", box)}, findings=findings)
    assert findings.count("key_unknown") == 1 and "colour" in findings.by_kind["key_unknown"].examples[0]


@pytest.mark.parametrize("box", ["5 5 5 5", "5 5 4 9", "5 5 9 5", "40 1 50 9"])
def test_boxes_without_area(load: Callable[..., VocDataset], box: str):
    files = {"a": xml("a.png", obj("ant", "1 1 5 5"), obj("bee", box))}
    with refused("a.xml", "object 2", box, remedy="data.invalid=skip"):
        load(files)
    findings = Findings("skip")
    dataset = load(files, findings=findings)
    invalid = [finding.count for kind, finding in findings.by_kind.items() if KINDS[kind].level == "invalid"]
    assert invalid == [1] and dataset.class_counts().tolist() == [1, 0]


ENTITIES = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize(
    ("content", "kind", "facts"),
    [
        ("<annotation>", "annotation_file", ["line 1"]),
        ("", "annotation_file", ["line 1"]),
        (ENTITIES + xml("&y;"), "annotation_file", ["DOCTYPE"]),
        (EXTERNAL + xml("&x;"), "annotation_file", ["DOCTYPE"]),
        (
            ('<?xml version="1.0" encoding="utf-16"?>' + ENTITIES + xml("&y;")).encode("utf-16"),
            "annotation_file",
            ["DOCTYPE"],
        ),
        ('<?xml version="1.0" encoding="martian"?>' + xml("a.png"), "annotation_file", ["martian"]),
        ("<annotations><image/></annotations>", "annotation_file", ["<annotations>"]),  # the format of CVAT
        (xml("a.png").replace("<annotation>", "<annotation xmlns='http://a'>"), "annotation_file", ["http://a"]),
        (xml("a.png", obj("ant", "1 1 5 nan")), "object_malformed", ["object 1", "<bndbox/ymax>", "'nan'"]),
        (xml("a.png", obj(" ", "1 1 5 5")), "object_malformed", ["object 1", "<name>"]),
    ],
)
def test_malformed_xml_is_refused(load: Callable[..., VocDataset], content: str | bytes, kind: str, facts: list[str]):
    with refused("a.xml", *facts, remedy=KINDS[kind].remedy):
        load({"a": content})


def test_a_data_set_without_objects(load: Callable[..., VocDataset], tmp_path: Path):
    with refused(str(tmp_path / "xml")):
        load({"a": xml("a.png")})
    assert len(load({"a": xml("a.png")}, class_names=("ant",))) == 1  # as a validation set


def test_the_other_objects_of_a_file_with_a_malformed_object_are_used(load: Callable[..., VocDataset]):
    findings = Findings("skip")
    dataset = load({"a": xml("a.png", obj("ant", "1 1 5 nan"), obj("bee", "1 1 5 5"))}, findings=findings)
    assert findings.count("object_malformed") == 1 and findings.count("annotation_file") == 0
    assert dataset.class_names == ("bee",) and dataset.class_counts().tolist() == [1]


def test_a_file_name_that_is_too_long_for_a_disk(load: Callable[..., VocDataset]):
    dataset = load({"a": xml(999 * "x" + ".png", obj("ant", "1 1 5 5"))})
    assert dataset.records[0].path.name == "a.png"


@pytest.mark.parametrize("size", ["", "<width>0</width><height>20</height>", "<width>30</width><height>tall</height>"])
def test_the_size_of_the_image_replaces_an_unusable_size(load: Callable[..., VocDataset], size: str):
    findings = Findings()
    (record,) = load({"a": xml("a.png", obj("ant", "1 1 5 5"), size=size)}, findings=findings).records
    assert (record.width, record.height) == (30, 20) and findings.count("image_size") == 1


def test_an_image_of_another_size_stops_or_is_left_out(load: Callable[..., VocDataset]):
    files = FILES | {"c": xml("other.png", obj("ant", "1 1 5 5"), size="<width>30</width><height>21</height>")}
    with pytest.raises(UserError):
        load(files)
    findings = Findings("skip")
    assert len(load(files, findings=findings)) == 2 and findings.count("image_unlike") == 1


def test_missing_and_doubled_files(load: Callable[..., VocDataset], tmp_path: Path):
    with refused(str(tmp_path / "xml"), ".xml"):
        load({})
    with refused("split.txt"):
        load(FILES, split="\n")
    with refused("split.txt", "'a'"):
        load(FILES, split="a\nb\na\n")
    with refused("c.xml", remedy=KINDS["annotation_file"].remedy):
        load(FILES, split="a\nc\n")
    with refused("images/gone.png", remedy=KINDS["image_missing"].remedy):
        load({"z": xml("gone.png")})
    (tmp_path / "xml/z.xml").unlink()
    with refused("'a.png'", remedy=KINDS["image_twice"].remedy):
        load({"a": xml("a.png", obj("ant", "1 1 5 5")), "c": xml("a.png")})
    with refused("absent"):
        VocDataset(images=tmp_path, annotations=tmp_path / "absent")
    with refused("absent.txt", "No such file"):
        VocDataset(images=tmp_path, annotations=tmp_path / "xml", split=tmp_path / "absent.txt")


def test_real_annotations(shared_data: Path):
    """The documentation of BCCD counts 205 training images and, in all splits, 4153 RBC, 372 WBC and 361 Platelets.

    The data set has two boxes of single clicks (xmin = xmax, ymin = ymax), which the documentation does not count.
    """
    bccd = shared_data / "bccd"
    folders = {"images": bccd / "JPEGImages", "annotations": bccd / "Annotations"}
    findings = Findings("skip")
    all_splits = VocDataset(None, findings, **folders)
    assert all_splits.class_names == ("Platelets", "RBC", "WBC")
    assert len(all_splits) == 364 and findings.count("box_empty") == 2
    np.testing.assert_array_equal(all_splits.class_counts(), [361, 4153, 372])
    with pytest.raises(UserError, match="BloodImage_00338"):
        VocDataset(**folders)
    findings = Findings("skip")
    train = VocDataset(None, findings, **folders, split=bccd / "ImageSets/Main/train.txt")
    assert len(train) == 205 and findings.count("box_empty") == 1
    for record in all_splits.records:
        assert (record.boxes >= 0).all() and (record.boxes <= np.tile([record.width, record.height], 2)).all()
    sample = all_splits[0]
    assert sample.image.shape == (480, 640, 3)
    np.testing.assert_array_equal(sample.boxes[0], np.float32([259, 176, 491, 376]))  # written as 260 177 491 376
