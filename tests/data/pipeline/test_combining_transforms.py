"""The transforms that combine several samples: mosaic, mixup and copy_paste."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.core.errors import UserError
from detector.core.structures import PADDING_COLOR, Sample
from detector.data.pipeline.transforms import CopyPaste, Mixup, Mosaic, Transform, TransformContext, resize

COLORS = np.array(list(product((0, 255), repeat=3)), dtype=np.uint8)  # the color of label 0 is black, the background
IMAGE_IDS = count()
Box = tuple[float, float, float, float]


def make_sample(size: tuple[int, int], boxes: Sequence[Box], labels: Sequence[int], ignore: bool = False) -> Sample:
    """Return a black image with a rectangle in the color of its label for each box. All arrays are read-only.

    Each sample has a new image id.
    """
    image = np.zeros((*size, 3), dtype=np.uint8)
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
        image[int(y1) : int(y2), int(x1) : int(x2)] = COLORS[label]
    arrays = (
        image,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.full(len(boxes), ignore),
    )
    for array in arrays:
        array.flags.writeable = False
    return Sample(*arrays, next(IMAGE_IDS), "a.png", size)


def apply(transform: Transform, samples: Sequence[Sample], seed: int = 0, progress: float = 0.0) -> Sample:
    """Apply a transform to the first sample. The later samples are drawn in their order."""
    others = iter(samples[1:])
    context = TransformContext(np.random.default_rng(seed), progress, lambda index=None: next(others))
    return transform(samples[0], context)


def box_of_color(image: np.ndarray, label: int, level: float = 127.5) -> list[int] | None:
    """Return the box of the pixels whose channels, rounded at `level`, are the color of the label."""
    ys, xs = np.nonzero(((image > level) == (COLORS[label] > 0)).all(axis=2))
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else None


def assert_boxes_enclose_their_colors(after: Sample, level: float = 127.5) -> None:
    """Check that each box of at least 3 pixels a side encloses exactly the pixels of its color, within 1 pixel."""
    for box, label in zip(after.boxes, after.labels, strict=True):
        if (box[2:] - box[:2]).min() >= 3:
            np.testing.assert_allclose(box_of_color(after.image, label, level), box, atol=1)


@st.composite
def colored(draw: st.DrawFn, labels: Sequence[int]) -> Sample:
    """Draw a sample whose objects are in separate vertical stripes."""
    height, width = draw(st.integers(12, 60)), draw(st.integers(16, 60))
    labels = labels[: draw(st.integers(0, len(labels)))]
    stripe, boxes = width // 2, []
    for i in range(len(labels)):
        x1, y1 = i * stripe + draw(st.integers(1, stripe - 2)), draw(st.integers(0, height - 1))
        boxes.append((x1, y1, draw(st.integers(x1 + 1, (i + 1) * stripe)), draw(st.integers(y1 + 1, height))))
    return make_sample((height, width), boxes, labels)


few_examples = settings(max_examples=40, derandomize=True, database=None, deadline=None)
four_samples = st.tuples(colored((1, 2)), colored((3, 4)), colored((5, 6)), colored((7,)))


@few_examples
@given(four_samples, st.floats(0.4, 1.2), st.sampled_from((0.0, 0.3, 0.7)), st.integers(0, 2**32))
def test_a_mosaic_has_four_images_around_its_center(samples, zoom: float, min_visibility: float, seed: int):
    """The reference repeats the random numbers: the decision, the center and the zoom factor."""
    after = apply(Mosaic(scale=(zoom, zoom), min_visibility=min_visibility), samples, seed)
    assert after.image.shape == samples[0].image.shape and after.image_id == samples[0].image_id
    assert_boxes_enclose_their_colors(after)

    height, width = after.image.shape[:2]
    rng = np.random.default_rng(seed)
    rng.random()
    x, y = (round(side * fraction) for side, fraction in zip((width, height), rng.uniform(0.25, 0.75, 2), strict=True))
    has_image, corners = np.zeros((height, width), dtype=bool), ((0, 0), (1, 0), (0, 1), (1, 1))
    for sample, (is_right, is_low) in zip(samples, corners, strict=True):
        h, w = (round(side * zoom) for side in sample.image.shape[:2])
        left, top = x - w * (not is_right), y - h * (not is_low)
        low = np.maximum((left, top), 0)
        high = np.minimum((left + w, top + h), (width, height))
        has_image[low[1] : high[1], low[0] : high[0]] = True
        moved = sample.boxes.astype(np.float64) * np.tile([w / sample.image.shape[1], h / sample.image.shape[0]], 2)
        moved += np.tile([left, top], 2)
        clipped = moved.clip(np.tile(low, 2), np.tile(high, 2))
        visible = (clipped[:, 2:] - clipped[:, :2]).prod(axis=1) / (moved[:, 2:] - moved[:, :2]).prod(axis=1)
        for box, label, fraction in zip(clipped, sample.labels, visible, strict=True):
            if abs(fraction - min_visibility) > 1e-3:
                assert (label in after.labels) == (fraction > min_visibility)
            if label in after.labels:
                np.testing.assert_allclose(after.boxes[after.labels == label], [box], atol=1e-3)
    assert (after.image[~has_image] == PADDING_COLOR).all()


@few_examples
@given(four_samples, st.integers(0, 2**32))
def test_a_mosaic_keeps_ignored_regions_that_are_partly_visible(samples, seed: int):
    samples = [replace(sample, ignore=sample.labels % 2 == 1) for sample in samples]
    strict, tolerant = (apply(Mosaic(min_visibility=limit), samples, seed) for limit in (1.0, 0.0))
    np.testing.assert_array_equal(strict.boxes[strict.ignore], tolerant.boxes[tolerant.ignore])
    assert (~strict.ignore).sum() <= (~tolerant.ignore).sum()


def test_a_mosaic_without_zoom_copies_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (4, 40, 60, 3), dtype=np.uint8)
    empty = (np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool), 5, "a.png", (40, 60))
    after = apply(Mosaic(scale=(1.0, 1.0)), [Sample(image, *empty) for image in noise]).image
    rng = np.random.default_rng(0)
    rng.random()
    x, y = (round(side * fraction) for side, fraction in zip((60, 40), rng.uniform(0.25, 0.75, 2), strict=True))
    np.testing.assert_array_equal(after[:y, :x], noise[0, 40 - y :, 60 - x :])
    np.testing.assert_array_equal(after[:y, x:], noise[1, 40 - y :, : 60 - x])
    np.testing.assert_array_equal(after[y:, :x], noise[2, : 40 - y, 60 - x :])
    np.testing.assert_array_equal(after[y:, x:], noise[3, : 40 - y, : 60 - x])


@few_examples
@given(colored((1, 2)), colored((3, 4)), st.sampled_from((0.5, 8.0)), st.integers(0, 2**32))
def test_a_mixture_is_the_weighted_mean_of_two_images(first: Sample, second: Sample, alpha: float, seed: int):
    after = apply(Mixup(probability=1.0, alpha=alpha), (first, second), seed)
    rng = np.random.default_rng(seed)
    rng.random()
    weight = rng.beta(alpha, alpha)
    (height, width), (h, w) = first.image.shape[:2], second.image.shape[:2]
    zoom = min(height / h, width / w)
    inner = resize(second, round(h * zoom), round(w * zoom))
    h, w = inner.image.shape[:2]
    assert (h == height or w == width) and h <= height and w <= width
    x, y = rng.integers((width - w + 1, height - h + 1))
    expected = first.image.astype(np.float64)
    region = expected[y : y + h, x : x + w]
    region += (1 - weight) * (inner.image - region)
    np.testing.assert_allclose(after.image, expected, atol=0.51)

    assert after.labels.tolist() == [*first.labels, *second.labels]
    np.testing.assert_array_equal(after.boxes[: len(first.boxes)], first.boxes)
    np.testing.assert_allclose(after.boxes[len(first.boxes) :], inner.boxes + np.array([x, y, x, y]), atol=1e-4)


def test_an_image_is_not_mixed_with_itself():
    sample = make_sample((20, 30), [(1, 2, 10, 12)], [1])
    assert apply(Mixup(probability=1.0), [sample, sample]) is sample


@few_examples
@given(colored((1, 2)), colored((3, 4)), st.floats(0.6, 1.6), st.integers(0, 2**32))
def test_copies_are_on_the_background(first: Sample, second: Sample, zoom: float, seed: int):
    transform = CopyPaste([[3, 4]], probability=1.0, scale=(zoom, zoom), max_overlap=0.0, feather=0.0)
    after = apply(transform, (first, second), seed)
    n = len(first.boxes)
    np.testing.assert_array_equal(after.boxes[:n], first.boxes)
    assert after.labels[:n].tolist() == first.labels.tolist()
    assert set(after.labels[n:]) <= {3, 4} and len(after.labels) <= n + 2
    assert_boxes_enclose_their_colors(after)
    size = np.tile(after.image.shape[1::-1], 2)
    assert (after.boxes >= 0).all() and (after.boxes <= size).all()
    for i, box in enumerate(after.boxes[n:].astype(np.float64), start=n):
        low, high = np.maximum(box[:2], after.boxes[:i, :2]), np.minimum(box[2:], after.boxes[:i, 2:])
        assert (high - low).clip(0).prod(axis=1).max(initial=0) < 1e-3
        original = second.boxes[second.labels == after.labels[i]][0]
        np.testing.assert_allclose(box[2:] - box[:2], (original[2:] - original[:2]) * zoom, atol=1)

    unchanged = np.ones(after.image.shape[:2], dtype=bool)
    for x1, y1, x2, y2 in after.boxes[n:]:
        unchanged[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = False
    np.testing.assert_array_equal(after.image[unchanged], first.image[unchanged])


@few_examples
@given(colored((1, 2)), colored((3, 4)), st.floats(0.3, 1.2), st.integers(0, 2**32))
def test_the_margins_of_copies_cover_no_object(first: Sample, second: Sample, zoom: float, seed: int):
    transform = CopyPaste([[3, 4]], probability=1.0, scale=(zoom, zoom), max_overlap=0.0, feather=0.5)
    after = apply(transform, (first, second), seed)
    for x1, y1, x2, y2 in first.boxes.astype(int):
        np.testing.assert_array_equal(after.image[y1:y2, x1:x2], first.image[y1:y2, x1:x2])


def test_a_copy_has_the_other_objects_of_its_pixels():
    """The drawn object has label 1. Parts of the objects with the labels 4 and 5 are in the object or in its margin."""
    boxes = [(41, 22, 60, 38), (24, 24, 30, 30), (20, 20, 40, 40), (32, 32, 36, 36), (30, 10, 39, 22), (60, 60, 70, 70)]
    source = make_sample((80, 80), boxes, [4, 2, 1, 3, 5, 6])
    other = replace(source, ignore=source.labels == 3)
    empty, labels = make_sample((80, 80), [], []), [source.labels]
    transform = CopyPaste(labels, probability=1.0, scale=(1.0, 1.0), max_objects=1)
    results = (apply(transform, (empty, other), seed) for seed in range(1000))
    after = next(result for result in results if result.labels[:1] == 1 and _is_central(result))
    assert after.labels.tolist() == [1, 4, 2, 3, 5] and after.ignore.tolist() == [False, True, False, True, True]
    position = after.boxes[0, :2] - (20, 20)
    expected = np.array([(20, 20, 40, 40), (41, 22, 42, 38), (24, 24, 30, 30), (32, 32, 36, 36), (30, 18, 39, 22)])
    np.testing.assert_array_equal(after.boxes, expected + np.tile(position, 2))


@pytest.mark.parametrize(
    ("existing", "copied", "right"), [((0, 0, 20, 40), (10, 10, 20, 20), 30), ((10, 10, 20, 20), (10, 10, 30, 50), 20)]
)
def test_a_copy_overlaps_by_at_most_the_given_fraction_of_the_smaller_box(existing: Box, copied: Box, right: int):
    """The smaller box has 10 x 10 pixels. Copies at x = 17, 18 and 19 overlap it by 0.3, 0.2 and 0.1 of its area."""
    first, second = make_sample((40, 40), [existing], [1]), make_sample((60, 60), [copied], [2])
    transform = CopyPaste([[2]], probability=1.0, scale=(1.0, 1.0), max_overlap=0.3, feather=0.0)
    results = [apply(transform, (first, second), seed) for seed in range(100)]
    lefts = np.array([after.boxes[1, 0] for after in results if len(after.boxes) == 2])
    assert len(lefts) > 90 and set(lefts[lefts < 20]) == {17, 18, 19} and lefts.max() == right


def test_the_edge_of_a_copy_fades_out():
    """The object is red on white, and the image is black."""
    source = make_sample((60, 60), [(20, 20, 40, 40)], [4])
    white = np.where(source.image.any(axis=2, keepdims=True), source.image, 255).astype(np.uint8)
    other = Sample(white, source.boxes, source.labels, source.ignore, 5, "a.png", (60, 60))
    transform = CopyPaste([[4]], probability=1.0, scale=(1.0, 1.0), feather=0.2)
    seed = next(s for s in range(100) if _is_central(apply(transform, (make_sample((60, 60), [], []), other), s)))
    after = apply(transform, (make_sample((60, 60), [], []), other), seed)
    x1, y1, x2, y2 = after.boxes[0].astype(int)
    assert (after.image[y1:y2, x1:x2] == COLORS[4]).all()
    row = after.image[(y1 + y2) // 2, :, 1].astype(int)  # the green channel, which is 0 in the object
    left, right = row[x1 - 6 : x1], row[x2 : x2 + 6][::-1]
    np.testing.assert_array_equal(left, right)
    np.testing.assert_allclose(left, [0, 0, 51, 102, 153, 204], atol=1)


def _is_central(after: Sample) -> bool:
    return bool((after.boxes[0] >= 8).all() and (after.boxes[0] <= 52).all())


@pytest.mark.parametrize(
    ("box", "ignore"), [((0, 5, 9, 9), False), ((5, 5, 40, 9), False), ((5, 5, 9, 30), False), ((5, 5, 9, 9), True)]
)
def test_cut_objects_and_ignored_regions_are_not_copied(box: Box, ignore: bool):
    empty, other = make_sample((30, 40), [], []), make_sample((30, 40), [box], [1], ignore)
    after = apply(CopyPaste([[1]], probability=1.0), (empty, other))
    np.testing.assert_array_equal(after.image, empty.image)
    assert len(after.boxes) == 0


@pytest.mark.parametrize(("balance", "share"), [(0.0, 0.1), (0.5, 0.25), (1.0, 0.5)])
def test_balance_copies_rare_classes_more_often(balance: float, share: float):
    """Image 1 has the only object of class 2, and 9 objects of class 1 are in images 0, 1 and 3."""
    labels = [[1, 1, 1], [1, 2, 1], [], [1, 1, 1, 1]]
    columns = [[(4 * i + 1, 2, 4 * i + 3, 6) for i in range(len(row))] for row in labels]
    samples = [make_sample((20, 40), boxes, row) for boxes, row in zip(columns, labels, strict=True)]
    transform = CopyPaste([np.array(row, np.int64) for row in labels], probability=1.0, balance=balance, max_objects=1)
    rng = np.random.default_rng(0)
    context = TransformContext(rng, 0.0, lambda index: samples[index])
    copied = [transform(samples[2], context).labels for _ in range(600)]
    assert all(len(row) == 1 for row in copied)
    assert abs(np.mean(np.concatenate(copied) == 2) - share) < 0.06  # 3 standard deviations of share 0.5


def test_copies_need_an_object():
    with pytest.raises(UserError):
        CopyPaste([np.empty(0, np.int64)])


MAKERS: dict[str, Callable[..., Transform]] = {
    "mosaic": Mosaic,
    "mixup": Mixup,
    "copy_paste": lambda **switch: CopyPaste([np.arange(8)], **switch),
}
fractions = st.tuples(*[st.floats(0, 1)] * 4)


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(
    st.sampled_from(sorted(MAKERS)),
    st.lists(
        st.tuples(st.integers(1, 50), st.integers(1, 50), st.lists(fractions, max_size=5), st.booleans()),
        min_size=4,
        max_size=4,
    ),
    st.integers(0, 2**32),
)
def test_any_images_and_boxes_give_a_valid_sample(name: str, shapes, seed: int):
    samples = []
    for height, width, boxes, ignore in shapes:
        corners = np.sort(np.array(boxes, np.float32).reshape(-1, 2, 2), axis=1)
        corners[:, 1] = np.maximum(corners[:, 1], corners[:, 0] + 1e-3)
        boxes = (corners / corners.max(initial=1) * (width, height)).reshape(-1, 4)
        samples.append(make_sample((height, width), boxes, range(len(boxes)), ignore))
    after = apply(MAKERS[name](probability=1.0), samples, seed)
    height, width = samples[0].image.shape[:2]
    assert after.image.shape == (height, width, 3) and after.image.dtype == np.uint8
    assert after.boxes.dtype == np.float32 and after.labels.dtype == np.int64 and after.ignore.dtype == bool
    assert after.boxes.shape == (len(after.labels), 4) and len(after.ignore) == len(after.labels)
    assert (after.boxes > -1e-3).all() and (after.boxes < np.array([width, height] * 2) + 1e-3).all()
    assert (after.boxes[:, 2:] > after.boxes[:, :2]).all()
    again = apply(MAKERS[name](probability=1.0), samples, seed)
    np.testing.assert_array_equal(again.image, after.image)
    np.testing.assert_array_equal(again.boxes, after.boxes)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_transform_is_off_after_its_part_of_the_run(name: str):
    """The sample is returned, no random number is used, and no sample is drawn: there is none to draw."""
    sample, rng = make_sample((20, 30), [(1, 2, 10, 12)], [1]), np.random.default_rng(0)
    transform = MAKERS[name](probability=1.0, until=0.75)
    for progress in (0.75, 0.99):
        assert transform(sample, TransformContext(rng, progress, lambda index=None: next(iter([])))) is sample
    assert rng.random() == np.random.default_rng(0).random()
    assert apply(transform, [sample, *(make_sample((20, 30), [], []) for _ in range(3))], progress=0.74) is not sample


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_transform_has_its_probability(name: str):
    samples = [make_sample((20, 30), [(1, 2, 10, 12)], [1]) for _ in range(4)]
    transform = MAKERS[name](probability=0.25)
    changed = sum(apply(transform, samples, seed) is not samples[0] for seed in range(400))
    assert 70 < changed < 130  # 100 expected, deviation 9
