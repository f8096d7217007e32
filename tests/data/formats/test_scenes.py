import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product

import cv2
import numpy as np
import pytest
from refusals import refused

from detector.core.errors import UserError
from detector.data.dataset import DATASETS
from detector.data.formats.scenes import CLASS_OUTLINES, SceneSettings, SyntheticDataset, draw_scene

SETTINGS = SceneSettings(
    image_size=96,
    num_classes=8,
    objects=3.0,
    object_size=(0.15, 0.4),
    rotation=180.0,
    distractors=0.0,
    zipf=0.0,
    seed=3,
    split="train",
)
build = partial(SyntheticDataset, num_images=6, image_size=48)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def scene_folder(dataset):
    return dataset.records[0].path.parents[1]


def drawn_pixels(settings, index):
    """Return where a scene differs from the same scene without shapes, (S, S) bool."""
    empty = draw_scene(replace(settings, objects=0.0, distractors=0.0), index)[0]
    return (draw_scene(settings, index)[0] != empty).any(axis=2)


def extent(pixels):
    y, x = np.nonzero(pixels)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


def test_boxes_are_tight_around_the_drawn_pixels():
    num_alone = num_cut = 0
    for index in range(80):
        _, boxes, _ = draw_scene(SETTINGS, index)
        pixels = drawn_pixels(SETTINGS, index)
        outside = pixels.copy()
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            assert 0 <= x1 < x2 <= 96 and 0 <= y1 < y2 <= 96
            outside[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = False
            x1, y1, x2, y2 = np.array([x1, y1, x2, y2]) + [-3, -3, 3, 3]
            others = np.delete(boxes, i, axis=0)
            if ((others[:, 0] > x2) | (others[:, 2] < x1) | (others[:, 1] > y2) | (others[:, 3] < y1)).all():
                near = np.zeros_like(pixels)
                near[max(0, int(y1)) : int(y2), max(0, int(x1)) : int(x2)] = True
                assert np.abs(extent(pixels & near) - boxes[i]).max() <= 1
                num_alone += 1
                num_cut += boxes[i].min() == 0 or boxes[i].max() == 96
        assert not outside.any()
    assert num_alone > 50 and num_cut > 10


def test_a_box_encloses_the_visible_part_of_an_object_behind_another():
    num_overlapping = 0
    for index in range(40):
        settings = replace(SETTINGS, objects=6.0)
        _, boxes, _ = draw_scene(settings, index)
        pixels = drawn_pixels(settings, index)
        if not len(boxes):
            continue
        union = [*boxes[:, :2].min(0), *boxes[:, 2:].max(0)]
        assert np.abs(extent(pixels) - union).max() <= 1
        for x1, y1, x2, y2 in boxes:
            left, top, right, bottom = int(x1), int(y1), int(np.ceil(x2)), int(np.ceil(y2))
            assert np.abs(extent(pixels[top:bottom, left:right]) + [left, top, left, top] - [x1, y1, x2, y2]).max() <= 1
        inner = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        num_overlapping += np.triu((inner[1] > inner[0]).all(axis=2), 1).sum()
    assert num_overlapping > 50


def test_boxes_shrink_to_what_is_visible_and_no_object_is_mostly_hidden():
    side = 0.25 * 96
    settings = replace(SETTINGS, object_size=(0.25, 0.25), objects=16.0)
    boxes = np.concatenate([draw_scene(settings, index)[1] for index in range(40)])
    longer = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert longer.max() <= side + 0.5  # rasterizing may add two quarters of a pixel
    assert longer.min() >= 0.5 * side
    uncut = (boxes.min(1) > 0) & (boxes.max(1) < 96)
    assert 0.02 < (longer[uncut] < 0.9 * side).mean() < 0.3  # behind others


def test_object_size_is_log_uniform():
    settings = replace(SETTINGS, object_size=(0.1, 0.4), objects=2.0)
    boxes = np.concatenate([draw_scene(settings, index)[1] for index in range(150)])
    longer = (boxes[:, 2:] - boxes[:, :2]).max(1) / 96
    assert np.quantile(longer, [0.02, 0.5, 0.98]) == pytest.approx([0.1, 0.2, 0.4], rel=0.12)


@pytest.mark.parametrize("objects", [0.0, 1.5, 4.0])
def test_objects_is_the_mean_number_of_boxes(objects):
    settings = replace(SETTINGS, objects=objects, object_size=(0.1, 0.2))
    counts = [len(draw_scene(settings, index)[1]) for index in range(200)]
    assert np.mean(counts) == pytest.approx(objects, abs=3 * np.sqrt(objects / 200))
    assert 0 in counts


@pytest.mark.parametrize("zipf", [0.0, 2.0])
def test_class_frequencies_follow_zipf(zipf):
    settings = replace(SETTINGS, zipf=zipf, num_classes=6, object_size=(0.1, 0.2), image_size=64)
    labels = np.concatenate([draw_scene(settings, index)[2] for index in range(200)])
    shares = np.arange(1.0, 7) ** -zipf
    expected = len(labels) * shares / shares.sum()
    assert (np.abs(np.bincount(labels, minlength=6) - expected) < 4 * np.sqrt(expected)).all()


def test_distractors_lie_behind_objects_and_neither_add_nor_move_boxes():
    settings, more = replace(SETTINGS, objects=1.0), []
    for index in range(60):
        clean, cluttered = (draw_scene(replace(settings, distractors=d), index) for d in (0.0, 8.0))
        assert np.array_equal(clean[1], cluttered[1]) and np.array_equal(clean[2], cluttered[2])
        changed = (clean[0] != cluttered[0]).any(axis=2)
        if len(clean[1]) == 1:  # two objects may have a gap between them; the inside of an object has no gap
            inside = cv2.erode(drawn_pixels(settings, index).astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
            assert not changed[inside].any()
        more.append(changed.mean())
    assert np.mean(more) > 0.1


def test_every_class_differs_from_its_background():
    for index in range(40):
        image, boxes, _ = draw_scene(replace(SETTINGS, objects=1.0), index)
        empty = draw_scene(replace(SETTINGS, objects=0.0), index)[0]
        pixels = drawn_pixels(replace(SETTINGS, objects=1.0), index)
        if len(boxes):
            assert np.abs(image[pixels].mean(0) - empty[pixels].mean(0)).max() > 30


def test_scenes_differ_between_seeds_splits_and_indices():
    choices = product((0, 1), ("train", "val"), (0, 1))
    scenes = [draw_scene(replace(SETTINGS, seed=s, split=split), i)[0].tobytes() for s, split, i in choices]
    assert len(set(scenes)) == 8


def test_two_caches_hold_the_same_bytes(tmp_path):
    noisy = partial(build, noise_missed=0.1, noise_jittered=0.2)
    first, second = (scene_folder(noisy(cache=tmp_path / name)) for name in "ab")
    assert files(first) == files(second)
    assert len(files(first)) == 6 + 2


def test_reads_back_what_was_drawn(tmp_path):
    dataset = build(num_classes=7, seed=5, split="val", cache=tmp_path)
    settings = SceneSettings(48, 7, 4.0, (0.12, 0.4), 180.0, 4.0, 0.0, 5, "val")
    assert len(dataset) == 6
    assert dataset.class_names == tuple(CLASS_OUTLINES)[:7] and dataset.category_ids == (1, 2, 3, 4, 5, 6, 7)
    for index, sample in enumerate(dataset):
        image, boxes, labels = draw_scene(settings, index)
        assert np.array_equal(sample.boxes, boxes) and np.array_equal(sample.labels, labels)
        assert np.abs(sample.image.astype(int) - image).mean() < 12  # JPEG; swapped channels give about 50
        assert not sample.ignore.any()


def test_a_data_set_without_objects_reads_back(tmp_path):
    dataset = build(objects=0.0, cache=tmp_path)
    assert [len(sample.boxes) for sample in dataset] == [0] * 6


def test_a_complete_cache_is_reused(tmp_path):
    folder = scene_folder(build(cache=tmp_path))
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert scene_folder(build(cache=tmp_path)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


@pytest.mark.parametrize("other", [{"seed": 1}, {"split": "val"}, {"distractors": 1.0}, {"num_images": 5}])
def test_other_scenes_have_another_folder(tmp_path, other):
    assert scene_folder(build(cache=tmp_path)) != scene_folder(build(cache=tmp_path, **other))


def test_an_interrupted_cache_is_drawn_anew(tmp_path):
    complete, killed = tmp_path / "complete", tmp_path / "killed"
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(build, num_images=200, cache=complete)
        while not list(complete.rglob("*.jpg")):
            assert not drawing.done()
        shutil.copytree(complete, killed)  # the files of a process that is killed at this moment
        expected = files(scene_folder(drawing.result()))
    assert 0 < len(list(killed.rglob("*.jpg"))) < 200
    assert files(scene_folder(build(num_images=200, cache=killed))) == expected


def test_concurrent_drawing_leaves_one_complete_folder(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        datasets = list(pool.map(lambda _: build(num_images=40, cache=tmp_path), range(3)))
    assert len({scene_folder(dataset) for dataset in datasets}) == 1
    assert list(tmp_path.iterdir()) == [scene_folder(datasets[0])]
    assert all(len(dataset[39].image) == 48 for dataset in datasets)


@pytest.fixture(scope="module")
def noise_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("noise")


@pytest.fixture(scope="module")
def annotations(noise_cache):
    """Return a function from fractions of noise to {annotation id: annotation}, for fixed scenes."""

    def read(**noise):
        dataset = SyntheticDataset(num_images=250, image_size=48, distractors=0.0, cache=noise_cache, **noise)
        newest = max(scene_folder(dataset).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        entries = {entry["id"]: entry for entry in json.loads(newest.read_text())["annotations"]}
        assert len(entries) == sum(len(record.boxes) for record in dataset.records)
        return entries

    return read


def test_noise_changes_the_given_fractions_independently_and_no_image(annotations, noise_cache):
    clean = annotations()
    pictures = {path: path.stat().st_mtime_ns for path in noise_cache.rglob("*.jpg")}
    noisy = annotations(noise_missed=0.2, noise_jittered=0.3, noise_mislabelled=0.4)
    assert {path: path.stat().st_mtime_ns for path in noise_cache.rglob("*.jpg")} == pictures

    assert noisy.keys() < clean.keys()
    moved = np.array([noisy[i]["bbox"] != clean[i]["bbox"] for i in noisy])
    relabelled = np.array([noisy[i]["category_id"] != clean[i]["category_id"] for i in noisy])
    for fraction, expected, total in (
        (1 - len(noisy) / len(clean), 0.2, len(clean)),
        (moved.mean(), 0.3, len(noisy)),
        (relabelled.mean(), 0.4, len(noisy)),
        ((moved & relabelled).mean(), 0.12, len(noisy)),
    ):
        assert fraction == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / total))
    assert {entry["category_id"] for entry in noisy.values()} == set(range(1, 7))
    for i in noisy:
        (x, y, w, h), (u, v, s, t) = clean[i]["bbox"], noisy[i]["bbox"]
        assert np.abs([u - x, u + s - x - w]).max() <= 0.25 * w + 0.01
        assert np.abs([v - y, v + t - y - h]).max() <= 0.25 * h + 0.01
        assert u >= 0 and u + s <= 48.01 and v >= 0 and v + t <= 48.01
        assert noisy[i]["image_id"] == clean[i]["image_id"]


def test_more_noise_changes_the_same_boxes_and_others(annotations):
    some = annotations(noise_missed=0.1).keys()
    assert annotations(noise_missed=0.5).keys() < some
    assert annotations(noise_missed=0.1, noise_mislabelled=0.5).keys() == some


def test_registered_with_its_signature_as_schema(tmp_path):
    knobs = {"num_images": 2, "image_size": 32, "cache": str(tmp_path)}
    classes = tuple(CLASS_OUTLINES)[:6]
    dataset = DATASETS.build("synthetic", classes, object_size=[0.2, 0.5], split="val", **knobs)
    assert len(dataset) == 2 and dataset.class_names == classes
    for wrong in ({"num_classes": 5}, {"num_classes": 9}, {"split": "test"}, {"noise_missed": 1.5}, {"zipf": -1.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            DATASETS.build("synthetic", classes, **knobs, **wrong)


@pytest.mark.parametrize("sizes", [(0.4, 0.2), (0.0, 0.2)])
def test_object_sizes_that_are_no_range_are_refused(tmp_path, sizes):
    with refused("object_size", str(list(sizes))):
        build(object_size=sizes, cache=tmp_path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with refused("file/cache", "Not a directory", remedy="cache"):
        build(cache=tmp_path / "file" / "cache")


def test_the_default_cache_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert scene_folder(build()).parent == tmp_path / "imbalance-detector" / "synthetic"
