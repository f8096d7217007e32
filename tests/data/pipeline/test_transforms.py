from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.core.structures import IGNORED, Sample
from detector.data.pipeline.batches import collate
from detector.data.pipeline.transforms import (
    Affine,
    Color,
    Flip,
    Resize,
    Transform,
    TransformContext,
    resize,
    target_size,
)

COLOR = (250, 20, 90)


def painted(height: int, width: int, *boxes: tuple[int, int, int, int]) -> Sample:
    """Return a black image in which the pixels of each box are painted."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = COLOR
    return sample(image, boxes)


def sample(image: np.ndarray, boxes: Any) -> Sample:
    return Sample(
        image=image,
        boxes=np.float32(boxes).reshape(-1, 4),
        labels=np.arange(len(boxes)),
        ignore=np.arange(len(boxes)) % 2 == 1,
        image_id=5,
        file_name="a.png",
        original_size=image.shape[:2],
    )


def painted_box(image: np.ndarray) -> list[int]:
    """Return x1, y1, x2, y2 of the pixels that are closer to the paint than to black."""
    ys, xs = np.nonzero(image[..., 0] >= COLOR[0] / 2)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def noise(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def apply(before: Sample, *transforms: Transform, seed: int = 0) -> Sample:
    """Apply transforms in their order, with one generator."""
    context = TransformContext(rng(seed), 0.0, lambda: before)
    after = before
    for transform in transforms:
        after = transform(after, context)
    return after


@pytest.mark.parametrize(
    ("size", "sides", "expected"),
    [
        ((480, 640), (320, 1000), (320, 427)),
        ((640, 480), (320, 1000), (427, 320)),
        ((480, 640), (320, 400), (300, 400)),  # the longer side limits the size
        ((30, 3000), (100, 500), (5, 500)),
        ((2, 3000), (100, 500), (1, 500)),  # never empty
    ],
)
def test_target_size(size: tuple[int, int], sides: tuple[int, int], expected: tuple[int, int]):
    assert target_size(*size, *sides) == expected


@pytest.mark.parametrize("new", [(80, 120), (20, 30), (100, 60), (40, 180)])
def test_resize_moves_boxes_with_their_pixels(new: tuple[int, int]):
    before = painted(40, 60, (10, 8, 24, 32))
    after = resize(before, *new)
    assert after.image.shape == (*new, 3) and after.image.dtype == np.uint8
    expected = [[10 * new[1] / 60, 8 * new[0] / 40, 24 * new[1] / 60, 32 * new[0] / 40]]
    np.testing.assert_allclose(after.boxes, expected, rtol=1e-6)
    assert after.boxes.dtype == np.float32
    np.testing.assert_allclose(painted_box(after.image), after.boxes[0], atol=0.5)
    assert after.original_size == (40, 60)
    np.testing.assert_array_equal(before.boxes, [[10, 8, 24, 32]])


def test_resize_scales_each_axis_by_its_rounded_size():
    after = Resize(50, 1000)(sample(noise(75, 101), [(0, 0, 101, 75)]), 50)
    assert after.image.shape == (50, 67, 3)  # 67.33 rounded
    np.testing.assert_allclose(after.boxes, [[0, 0, 67, 50]], rtol=1e-6)


def test_resize_to_the_same_size_changes_nothing():
    before = sample(noise(), [(1, 2, 3, 4)])
    assert resize(before, 40, 60) is before


def test_multi_scale_draws_the_whole_range():
    transform, generator = Resize((24, 28), 1000), rng()
    assert {transform.draw_side(generator) for _ in range(100)} == {24, 25, 26, 27, 28}


@pytest.mark.parametrize(
    ("flips", "expected"),
    [
        ({"horizontal": 1.0}, [36, 8, 50, 32]),
        ({"horizontal": 0.0, "vertical": 1.0}, [10, 8, 24, 32]),
        ({"horizontal": 1.0, "vertical": 1.0}, [36, 8, 50, 32]),
    ],
)
def test_flips_move_boxes_with_their_pixels(flips: dict[str, float], expected: list[int]):
    before = painted(40, 60, (10, 8, 24, 32))
    after = apply(before, Flip(**flips))
    np.testing.assert_allclose(after.boxes, [expected], atol=1e-4)
    assert painted_box(after.image) == expected


@pytest.mark.parametrize("flip", [Flip(horizontal=1.0), Flip(horizontal=0.0, vertical=1.0)])
def test_a_flip_twice_is_the_identity(flip: Flip):
    before = sample(noise(), [(0, 0, 60, 40), (3.25, 7.5, 20.125, 30), (50, 1, 58, 39)])
    once = apply(before, flip)
    assert not np.array_equal(once.image, before.image)
    twice = apply(once, flip)
    np.testing.assert_array_equal(twice.image, before.image)
    np.testing.assert_allclose(twice.boxes, before.boxes, atol=1e-4)
    np.testing.assert_array_equal(twice.labels, before.labels)
    np.testing.assert_array_equal(twice.ignore, before.ignore)


def test_flips_have_their_probability():
    before, flip = sample(noise(4, 4), []), Flip(horizontal=0.25)
    flipped = sum(not np.array_equal(apply(before, flip, seed=seed).image, before.image) for seed in range(400))
    assert 70 < flipped < 130  # 100 expected, deviation 9


@pytest.mark.parametrize("strength", ["brightness", "contrast", "saturation", "hue"])
def test_color_leaves_boxes_and_shape(strength: str):
    before = sample(noise(), [(3.25, 7.5, 20.125, 30), (50, 1, 58, 39)])
    after = apply(before, Color(**{strength: 0.4}))
    assert after.image.shape == before.image.shape and after.image.dtype == np.uint8
    assert not np.array_equal(after.image, before.image)
    np.testing.assert_allclose(after.boxes, before.boxes, atol=1e-4)
    np.testing.assert_array_equal(after.labels, before.labels)


def test_transforms_without_parameters_change_nothing():
    before = sample(noise(), [(3.25, 7.5, 20.125, 30)])
    after = apply(before, Flip(horizontal=0.0), Affine(), Color())
    np.testing.assert_array_equal(after.image, before.image)
    np.testing.assert_allclose(after.boxes, before.boxes, atol=1e-4)


def test_no_boxes():
    after = apply(sample(noise(), []), Flip(horizontal=1.0), Affine(scale=(0.5, 2.0)), Color(hue=0.1))
    assert after.boxes.shape == (0, 4) and after.boxes.dtype == np.float32
    assert after.labels.shape == (0,) and after.labels.dtype == np.int64
    assert after.ignore.shape == (0,) and after.ignore.dtype == bool


def test_boxes_are_clipped_and_boxes_outside_are_dropped_with_their_labels():
    before = sample(noise(), [(70, 5, 80, 9), (-5, 10, 20, 50), (1, 1, 5, 5)])
    after = apply(before, Flip(horizontal=0.0))
    np.testing.assert_allclose(after.boxes, [[0, 10, 20, 40], [1, 1, 5, 5]], atol=1e-4)
    assert after.labels.tolist() == [1, 2] and after.ignore.tolist() == [True, False]


def test_the_result_depends_only_on_the_generator():
    jitter = Flip(horizontal=0.5), Color(brightness=0.4, hue=0.1)
    before = sample(noise(), [(1, 2, 30, 35)])
    images = [apply(before, *jitter, seed=seed).image for seed in (1, 2, 1)]
    assert np.array_equal(images[0], images[2]) and not np.array_equal(images[0], images[1])
    np.random.seed(0)  # noqa: NPY002  (a global seed must change nothing)
    assert np.array_equal(apply(replace(before), *jitter, seed=1).image, images[0])


sides = st.integers(30, 90)
fractions = st.floats(0, 1)
strengths = st.floats(0, 0.4)


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(
    size=st.tuples(sides, sides),
    corners=st.lists(st.tuples(fractions, fractions, st.floats(0.02, 1), st.floats(0.02, 1)), max_size=12),
    short_side=st.tuples(sides, sides).map(sorted),
    scale=st.tuples(st.floats(0.5, 1.5), st.floats(0.5, 1.5)).map(sorted),
    options=st.fixed_dictionaries(
        {
            "horizontal": st.sampled_from((0.0, 0.5, 1.0)),
            "vertical": st.sampled_from((0.0, 0.5, 1.0)),
            "translate": st.floats(0, 0.3),
            "min_visibility": st.sampled_from((0.1, 0.7)),
            "brightness": strengths,
            "hue": strengths,
        }
    ),
    seed=st.integers(0, 2**32),
)
def test_boxes_are_inside_the_image_and_only_boxes_outside_are_dropped(size, corners, short_side, scale, options, seed):
    """The reference computes each box from a box at the center of the image, which is never outside."""
    height, width = size
    x, y, w, h = np.float32(corners).reshape(-1, 4).T
    boxes = np.stack((x * (1 - w), y * (1 - h), x * (1 - w) + w, y * (1 - h) + h), axis=1) * np.tile([width, height], 2)
    boxes = np.concatenate([[[0.475 * width, 0.475 * height, 0.525 * width, 0.525 * height]], boxes])
    change = Resize(tuple(short_side), 1000)
    before = change(sample(noise(height, width), boxes), change.draw_side(rng(seed)))
    new = np.array(before.image.shape[1::-1])
    assert len(before.boxes) == len(boxes)
    np.testing.assert_allclose(
        before.boxes / np.tile(new, 2), boxes / np.tile([width, height], 2), rtol=1e-5, atol=1e-6
    )

    flip, affine, color = (
        {key: options[key] for key in keys}
        for keys in (("horizontal", "vertical"), ("translate", "min_visibility"), ("brightness", "hue"))
    )
    after = apply(before, Flip(**flip), Affine(scale=tuple(scale), **affine), Color(**color), seed=seed)
    assert after.image.shape == before.image.shape
    assert (after.boxes >= 0).all() and (after.boxes <= np.tile(new, 2)).all()
    assert (after.boxes[:, 2:] > after.boxes[:, :2]).all()

    assert after.labels[0] == 0
    center, start = (after.boxes[0, 2:] + after.boxes[0, :2]) / 2, (before.boxes[0, 2:] + before.boxes[0, :2]) / 2
    zoom = (after.boxes[0, 2:] - after.boxes[0, :2]) / (before.boxes[0, 2:] - before.boxes[0, :2])
    offsets = (before.boxes.reshape(-1, 2, 2) - start) * zoom
    signs = (1, -1)
    best = min(
        (_misfit(after, center + offsets * (sx, sy), new, options["min_visibility"]), sx, sy)
        for sx in signs
        if sx == 1 or options["horizontal"]
        for sy in signs
        if sy == 1 or options["vertical"]
    )
    assert best[0] < 0.05  # pixels

    batch = collate([after, sample(noise(20, 30), [])], 32)
    n = len(after.boxes)
    np.testing.assert_array_equal(batch.boxes[0, :n].numpy(), after.boxes)
    assert (batch.labels[1] == IGNORED).all() and batch.labels[0, :n].tolist() == after.labels.tolist()


def _misfit(after: Sample, corners: np.ndarray, size: np.ndarray, visibility: float) -> float:
    """Return the maximum distance in pixels of the boxes from the clipped corners (N, 2, 2).

    The result is infinite if other boxes are dropped than those with a visible fraction below `visibility`, +- 0.01.
    For the boxes with odd labels, which are ignored regions, the fraction is 0.
    """
    moved = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)
    clipped = np.clip(moved, 0, np.tile(size, 2))
    visible = (clipped[:, 2:] - clipped[:, :2]).prod(axis=1) / (moved[:, 2:] - moved[:, :2]).prod(axis=1)
    rows = np.arange(len(moved))
    limit, is_present = np.where(rows % 2 == 1, 0, visibility), np.isin(rows, after.labels)
    if is_present[visible < limit - 0.01].any() or not is_present[visible > limit + 0.01].all():
        return np.inf
    return float(np.abs(clipped[is_present] - after.boxes).max())
