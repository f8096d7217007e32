import os
import pickle
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_config

from detector.build import build_dataset, build_train_loader
from detector.core.errors import UserError
from detector.core.structures import Sample
from detector.data.dataset import DetectionDataset
from detector.data.formats.voc import VocDataset
from detector.data.images import write_image
from detector.data.pipeline.cache import CachedDataset
from detector.data.pipeline.transforms import resize, target_size


@pytest.fixture
def bccd(shared_data: Path) -> VocDataset:
    folder = shared_data / "bccd"
    folders = {"images": folder / "JPEGImages", "annotations": folder / "Annotations"}
    return VocDataset(None, None, **folders, split=folder / "ImageSets/Main/test.txt").evenly(5)


def assert_same_sample(a: Sample, b: Sample) -> None:
    for name in ("image", "boxes", "labels", "ignore"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.image_id, a.file_name, a.original_size) == (b.image_id, b.file_name, b.original_size)


def test_real_images_are_as_without_it(bccd: VocDataset, tmp_path: Path):
    cached = CachedDataset(bccd, tmp_path / "kept", 301, 1000)
    for _ in range(2):  # the second time from the files
        for index in range(5):
            expected = bccd[index]
            assert_same_sample(cached[index], resize(expected, *target_size(*expected.image.shape[:2], 301, 1000)))
    assert len(list((tmp_path / "kept").glob("*.npy"))) == len(list((tmp_path / "kept").iterdir())) == 5
    assert_same_sample(pickle.loads(pickle.dumps(cached))[3], cached[3])  # workers may be spawned


def test_batches_are_as_without_it(tmp_path: Path):
    batches = [
        next(iter(build_train_loader(config, build_dataset(config, "train"))))
        for config in (tiny_config(tmp_path), *[tiny_config(tmp_path, f"data.cache={tmp_path / 'kept'}")] * 2)
    ]
    for batch in batches[1:]:
        assert torch.equal(batch.images, batches[0].images) and torch.equal(batch.boxes, batches[0].boxes)


@pytest.fixture
def one(tmp_path: Path) -> CachedDataset:
    write_image(tmp_path / "a.png", np.full((40, 60, 3), 50, np.uint8))
    (tmp_path / "a.xml").write_text(
        "<annotation><filename>a.png</filename><size><width>60</width><height>40</height></size><object><name>x</name>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )
    return CachedDataset(VocDataset(images=tmp_path, annotations=tmp_path), tmp_path / "kept", 20, 1000)


def test_a_changed_image_is_decoded_anew(one: CachedDataset):
    assert one[0].image.mean() == 50
    path = one.records[0].path
    write_image(path, np.full((40, 60, 3), 200, np.uint8))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    assert one[0].image.mean() == 200


def test_a_file_cut_short_is_made_again(one: CachedDataset):
    expected = one[0].image
    (file,) = one.folder.glob("*.npy")
    for content in (b"", file.read_bytes()[:200], b"text"):
        file.write_bytes(content)
        np.testing.assert_array_equal(one[0].image, expected)
    assert np.load(file).shape == (20, 30, 3)


def test_an_image_that_is_gone_is_an_error_still(one: CachedDataset):
    assert one[0].image.shape == (20, 30, 3)
    one.records[0].path.unlink()
    with pytest.raises(UserError, match=r"a\.png: cannot read the image"):
        one[0]


def test_sizes_that_are_wrong_are_not_hidden_by_images_kept_under_right_ones(one: CachedDataset):
    assert one[0].image.shape == (20, 30, 3)
    wrong = [replace(record, width=61) for record in one.records]  # resized alike
    with pytest.raises(UserError, match="60x40 pixels, its annotations say 61x40"):
        CachedDataset(DetectionDataset(wrong, one.class_names, one.category_ids), one.folder, 20, 1000)[0]


def test_a_disk_without_space_is_one_line_and_leaves_nothing(one: CachedDataset):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"^data\.cache: .*kept: .*; free space there or set data\.cache=null$"):
            one[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(one.folder.iterdir()) == []
    assert one[0].image.shape == (20, 30, 3)


def test_it_needs_one_size(tmp_path: Path):
    with pytest.raises(UserError, match=r"data\.cache: images are kept at one size; set data\.short_side"):
        tiny_config(tmp_path, "data.cache=kept", "data.short_side=[40, 64]")
