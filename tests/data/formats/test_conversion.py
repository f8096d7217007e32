"""Conversion of difficult names and images: each format reads them back unchanged, or the conversion refuses them."""

import json
import os
import resource
from collections.abc import Sequence
from pathlib import Path

import globox
import numpy as np
import pytest
import yaml
from conversions import FORMATS, read
from PIL import Image
from refusals import refused

from detector.data.dataset import DetectionDataset
from detector.data.formats.coco import CocoDataset
from detector.data.formats.conversion import convert, plan_conversion

SIDE = 24
DIFFICULT_NAMES = ["007", "1.50", "yes", "null", "~", "1e3", "on", "0x1F", "2024-01-31", "a: b", "#x", "nut [/m8]"]
DIFFICULT_NAMES += ["{a}", "- x", "'q'", '"', "Größe", "<b> & c", "a b", "!t", "*", "1_000", "=", "螺母"]


def dataset_of(folder: Path, files: Sequence[str], class_names: Sequence[str] = ("cat", "dog")) -> DetectionDataset:
    """Return a COCO data set of images in `folder`. Image i has a box of class i mod K that is i + 1 pixels wide."""
    images, annotations = [], []
    for i, name in enumerate(files):
        with Image.open(folder / name) as picture:
            width, height = picture.size
        images.append({"id": i + 1, "file_name": name, "width": width, "height": height})
        category = i % len(class_names) + 1
        annotations.append({"id": i + 1, "image_id": i + 1, "category_id": category, "bbox": [2, 3, i + 1, 8]})
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    return CocoDataset(images=folder, annotations=folder / "instances.json")


def save(folder: Path, name: str, image: Image.Image, **options) -> str:
    image.save(folder / name, **options)
    return name


def colors(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(SIDE, SIDE + 4, 3), dtype=np.uint8))


@pytest.mark.parametrize("target", FORMATS)
def test_class_names_stay_text(target: str, tmp_path: Path):
    (tmp_path / "in").mkdir()
    files = [save(tmp_path / "in", f"{i}.png", colors(i)) for i in range(len(DIFFICULT_NAMES))]
    source = dataset_of(tmp_path / "in", files, DIFFICULT_NAMES)
    spec = convert({"val": source}, target, tmp_path / "out", link=False)["val"]
    again = read(spec, tmp_path / "out", None)
    if target != "voc":
        assert again.class_names == source.class_names
    for ours, expected in zip(again.records, source.records, strict=False):
        name = source.class_names[source.records[int(ours.path.stem)].labels[0]]
        assert [again.class_names[k] for k in ours.labels] == [name] and len(expected.labels) == 1
    assert set(again.class_names) == set(DIFFICULT_NAMES)
    if target == "yolo":  # YAML 1.1, which most programs read
        content = yaml.safe_load((tmp_path / "out/data.yaml").read_text(encoding="utf-8"))
        assert list(content["names"].values()) == DIFFICULT_NAMES


INVALID_NAMES = ["", " lead", "trail ", "a\nb", "a\rb", "bell\x07", "a\u2028b", "a\x85b", "\t", "\ud800"]


@pytest.mark.parametrize("name", INVALID_NAMES)
def test_class_names_that_readers_change_are_refused(name: str, tmp_path: Path):
    (tmp_path / "in").mkdir()
    source = dataset_of(tmp_path / "in", [save(tmp_path / "in", "a.png", colors(0))], ["cat", name])
    for target in ("voc", "yolo"):
        with refused(f"class {name!r}"):
            convert({"val": source}, target, tmp_path / "out", link=False)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    spec = convert({"val": source}, "coco", tmp_path / "out", link=False)["val"]
    assert read(spec, tmp_path / "out", None).class_names == ("cat", name)


def test_a_data_yaml_is_read_from_anywhere(tmp_path: Path):
    """Some readers resolve the `path` "." to the working folder."""
    (tmp_path / "in").mkdir()
    source = dataset_of(tmp_path / "in", [save(tmp_path / "in", "a.png", colors(0))])
    convert({"train": source, "val": source}, "yolo", tmp_path / "out", link=False)
    content = yaml.safe_load((tmp_path / "out/data.yaml").read_text(encoding="utf-8"))
    assert "path" not in content
    assert [os.listdir(tmp_path / "out" / content[split]) for split in ("train", "val")] == [["a.png"], ["a_2.png"]]


def pictures(folder: Path) -> dict[str, str | None]:
    """Write images that some common readers cannot read or change. Return the new suffix of each image."""
    rgb, deep = colors(1), np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 100
    frames = [colors(2).quantize(), colors(3).quantize()]
    return {
        save(folder, "moving.gif", frames[0], save_all=True, append_images=frames[1:]): ".png",
        save(folder, "still.gif", frames[0]): ".png",
        save(folder, "misnamed.jpg", frames[0], format="GIF"): ".png",
        save(folder, "print.jpg", rgb.convert("CMYK"), quality=95): ".png",
        save(folder, "print.tif", rgb.convert("CMYK")): ".png",
        save(folder, "deep.png", Image.fromarray(deep)): ".png",
        save(folder, "deep.tif", Image.fromarray(deep)): ".png",
        save(folder, "whatsapp.jfif", rgb, format="JPEG"): ".jpg",
        save(folder, "stereo.mpo", rgb, save_all=True, append_images=[colors(4)]): ".jpg",
        save(folder, "stereo2.JPG", rgb, format="MPO", save_all=True, append_images=[colors(4)]): ".JPG",
        save(folder, "none", rgb, format="PNG"): ".png",
        save(folder, "odd.jpe", rgb, format="JPEG"): ".jpg",
        save(folder, "grey.png", rgb.convert("L")): ".png",
        save(folder, "bits.png", rgb.convert("1")): ".png",
        save(folder, "alpha.png", rgb.convert("RGBA")): ".png",
        save(folder, "scan.TIFF", rgb): ".TIFF",
        save(folder, "web.webp", rgb): ".webp",
    }


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("target", FORMATS)
def test_images_are_written_in_formats_that_readers_accept(target: str, link: bool, tmp_path: Path):
    (tmp_path / "in").mkdir()
    suffixes = pictures(tmp_path / "in")
    source = dataset_of(tmp_path / "in", list(suffixes))
    plan = plan_conversion({"val": source}, target)
    assert len(plan.changed) == 2 and plan.changed[0].startswith("7 ")
    spec = plan.write(tmp_path / "out", link=link)["val"]
    again = read(spec, tmp_path / "out", source.class_names)
    assert len(again) == len(source)
    samples = {int(boxes[0, 2] - boxes[0, 0] + 0.5): i for i, boxes in enumerate(r.boxes for r in again.records)}
    for i, (name, suffix) in enumerate(suffixes.items()):
        written = again.records[samples[i + 1]]
        assert written.path.suffix == suffix
        np.testing.assert_array_equal(again[samples[i + 1]].image, source[i].image)
        with Image.open(written.path) as picture:
            assert picture.mode in ("1", "L", "P", "RGB", "RGBA") and ";16" not in str(picture.tile)
            if name.startswith(("deep", "print", "moving")):  # Pillow reads the same pixels
                np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), source[i].image)
    if target == "voc":
        assert len(globox.AnnotationSet.from_pascal_voc(tmp_path / "out/Annotations")) == len(source)


DIFFICULT_FILES = [
    *("A.png", "a.png", "a_2.png", " lead.png", "trail .png", "line\nbreak.png", "return\r.png", "\u2028.png"),
    *(".hidden.png", "images.png", "b\\c.png", "x" * 250 + ".png", "a.b.png", "é.png", "e\u0301.png", "螺.PNG"),
    *(os.fsdecode(b"\xff\xfe.png"), " .png", "#1 [x] *.png", "%20.png", "a&b<c>.png", "\x07.png"),
]


@pytest.mark.parametrize("target", FORMATS)
def test_images_with_difficult_file_names_keep_their_boxes(target: str, tmp_path: Path):
    """Each image has a different color and a different width of its box."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, name in enumerate(DIFFICULT_FILES):
        save(folder, name, Image.new("RGB", (SIDE + 4, SIDE), (10 * i, 0, 0)))
    source = dataset_of(folder, DIFFICULT_FILES)
    halves = {"train": source.subset(range(11)), "val": source.subset(range(11, len(source)))}
    plan = plan_conversion(halves, target)
    specs = plan.write(tmp_path / "out", link=False)
    names = []
    for split, half in halves.items():
        again = read(specs[split], tmp_path / "out", source.class_names)
        assert len(again) == len(half)
        for sample in again:
            i = sample.image[0, 0, 0] // 10
            np.testing.assert_allclose(sample.boxes, [[2, 3, 3 + i, 11]], atol=2e-3)
            names.append(sample.file_name)
    assert len({name.casefold() for name in names}) == len(DIFFICULT_FILES)
    for name in names:
        assert name.encode() and name == name.strip() and not name.startswith(".") and len(name.splitlines()) == 1
    assert {"A.png", "a_2.png", "images.png", "a.b.png", "é.png", "螺.PNG", "#1 [x] *.png"} <= set(names)
    (changed,) = plan.changed
    assert changed.startswith(f"{len(set(DIFFICULT_FILES) - set(names))} ")


# ---- an error leaves no files


def assert_refused(splits: dict[str, DetectionDataset], tmp_path: Path, fact: str) -> None:
    for target in FORMATS:
        with refused(fact):
            convert(splits, target, tmp_path / "new/out", link=False)
    assert not list(tmp_path.glob("new/*"))


def test_images_that_cannot_be_used(tmp_path: Path):
    good = save(tmp_path, "good.png", colors(0))
    moving = save(tmp_path, "moving.gif", colors(1).quantize())
    source = dataset_of(tmp_path, [good, moving])
    data = (tmp_path / moving).read_bytes()
    (tmp_path / moving).write_bytes(
        data[: len(data) // 2]
    )  # the header is intact, so that the error occurs while the images are written
    assert_refused({"train": source.subset([0]), "val": source.subset([1])}, tmp_path, "moving.gif")
    (tmp_path / moving).write_bytes(b"")
    assert_refused({"val": source}, tmp_path, "moving.gif")
    (tmp_path / moving).unlink()
    assert_refused({"val": source}, tmp_path, "moving.gif")
    save(tmp_path, moving, Image.new("L", (SIDE, 9)))
    assert_refused({"val": source}, tmp_path, "moving.gif")


def test_data_sets_that_cannot_be_written(tmp_path: Path):
    source = dataset_of(tmp_path, [save(tmp_path, "a.png", colors(0))])
    assert_refused({"train": source, "val": source.subset([])}, tmp_path, "val")
    other = DetectionDataset(source.records, ("dog", "cat"), source.category_ids)
    assert_refused({"train": source, "val": other}, tmp_path, "val")


@pytest.mark.parametrize("target", FORMATS)
def test_a_full_disk_leaves_no_files(target: str, tmp_path: Path):
    files = [save(tmp_path, "a.png", colors(0)), save(tmp_path, "b.bmp", colors(0).resize((300, 300)))]
    source = dataset_of(tmp_path, files)
    (tmp_path / "new/out").mkdir(parents=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # b.bmp does not fit
    try:
        with refused("--out", "new/out"):
            convert({"val": source}, target, tmp_path / "new/out", link=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["out"]
    convert({"val": source}, target, tmp_path / "new/out", link=False)  # the empty folder can be used


@pytest.mark.parametrize("out", ["a.png", "a.png/out", "x" * 300])
def test_a_path_at_which_no_folder_can_be_created(out: str, tmp_path: Path):
    source = dataset_of(tmp_path, [save(tmp_path, "a.png", colors(0))])
    before = (tmp_path / "a.png").read_bytes()
    with refused("--out"):
        convert({"val": source}, "coco", tmp_path / out, link=False)
    assert (tmp_path / "a.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "instances.json"]
