import os
import pickle
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused
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


def test_real_images_are_as_without_the_cache(bccd: VocDataset, tmp_path: Path):
    cached = CachedDataset(bccd, tmp_path / "kept", 301, 1000)
    for _ in range(2):  # the second pass reads the files
        for index in range(5):
            expected = bccd[index]
            assert_same_sample(cached[index], resize(expected, *target_size(*expected.image.shape[:2], 301, 1000)))
    assert len(list((tmp_path / "kept").glob("*.npy"))) == len(list((tmp_path / "kept").iterdir())) == 5
    assert_same_sample(pickle.loads(pickle.dumps(cached))[3], cached[3])  # workers may be spawned


def test_batches_are_as_without_the_cache(tmp_path: Path):
    batches = [
        next(iter(build_train_loader(config, build_dataset(config, "train"))))
        for config in (tiny_config(tmp_path), *[tiny_config(tmp_path, f"data.cache={tmp_path / 'kept'}")] * 2)
    ]
    for batch in batches[1:]:
        assert torch.equal(batch.images, batches[0].images) and torch.equal(batch.boxes, batches[0].boxes)


@pytest.fixture
def single(tmp_path: Path) -> CachedDataset:
    write_image(tmp_path / "a.png", np.full((40, 60, 3), 50, np.uint8))
    (tmp_path / "a.xml").write_text(
        "<annotation><filename>a.png</filename><size><width>60</width><height>40</height></size><object><name>x</name>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )
    return CachedDataset(VocDataset(images=tmp_path, annotations=tmp_path), tmp_path / "kept", 20, 1000)


def test_a_changed_image_is_decoded_anew(single: CachedDataset):
    assert single[0].image.mean() == 50
    path = single.records[0].path
    write_image(path, np.full((40, 60, 3), 200, np.uint8))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    assert single[0].image.mean() == 200


def test_a_truncated_file_is_written_again(single: CachedDataset):
    expected = single[0].image
    (file,) = single.folder.glob("*.npy")
    for content in (b"", file.read_bytes()[:200], b"text"):
        file.write_bytes(content)
        np.testing.assert_array_equal(single[0].image, expected)
    assert np.load(file).shape == (20, 30, 3)


def test_a_missing_image_is_an_error_in_spite_of_the_cache(single: CachedDataset):
    assert single[0].image.shape == (20, 30, 3)
    single.records[0].path.unlink()
    with refused("a.png"):
        single[0]


def test_the_cache_does_not_hide_a_wrong_size(single: CachedDataset):
    assert single[0].image.shape == (20, 30, 3)
    wrong = [replace(record, width=61) for record in single.records]  # the resized images have the same size
    with refused("a.png", "60x40", "61x40"):
        CachedDataset(DetectionDataset(wrong, single.class_names, single.category_ids), single.folder, 20, 1000)[0]


def test_a_full_disk_is_an_error_of_one_line_and_leaves_no_file(single: CachedDataset, tmp_path: Path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with refused("data.cache", str(tmp_path / "kept"), remedy="data.cache=null"):
            single[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(single.folder.iterdir()) == []
    assert single[0].image.shape == (20, 30, 3)


def test_the_cache_needs_a_single_size(tmp_path: Path):
    with pytest.raises(UserError, match=r"^data\.cache: .*data\.short_side"):
        tiny_config(tmp_path, "data.cache=kept", "data.short_side=[40, 64]")
