"""Labeled boxes on a picture."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from detector.core.drawing import class_color, draw_boxes
from detector.data.images import find_images, read_image

NAMES = ["person", "vélo", "dog"]


def changed(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """Return the smallest box (x1, y1, x2, y2) around the pixels that differ. It includes the pixel (x2, y2)."""
    ys, xs = np.nonzero((before != after).any(axis=-1))
    return xs.min(), ys.min(), xs.max(), ys.max()


def test_the_input_image_is_not_changed():
    image = np.full((200, 300, 3), 90, dtype=np.uint8)
    drawn = draw_boxes(image, np.array([[100.0, 100, 200, 150]]), [0], NAMES)
    assert (image == 90).all() and drawn.shape == image.shape and drawn.dtype == np.uint8
    drawn[:] = 0  # the result is writable
    empty = draw_boxes(image, np.zeros((0, 4)), [], NAMES)
    np.testing.assert_array_equal(empty, image)


def test_lines_run_along_the_box_in_the_color_of_the_class():
    image = np.full((200, 300, 3), 90, dtype=np.uint8)
    drawn = draw_boxes(image, np.array([[100.2, 99.8, 200.0, 150.0]]), [2], NAMES)
    x1, y1, x2, y2 = changed(image, drawn)
    assert (x1, x2, y2) == (100, 200, 150) and 70 < y1 < 100  # the label is above the box
    color = np.array(class_color(2))
    for line in (drawn[150, 100:201], drawn[100, 100:201], drawn[100:151, 100], drawn[100:151, 200]):
        assert (line == color).all()
    assert (drawn[105:145, 105:195] == 90).all()


@pytest.mark.parametrize(
    "box",
    [[1150, 5, 1199, 90], [-90, -90, 60, 60], [1190, 790, 1900, 1900], [0, 0, 1200, 800], [1199, 799, 1199, 799]],
    ids=str,
)
def test_text_is_complete_at_each_edge(box: list[float]):
    """The text has the same number of black or white pixels at each position of the box, so no part is cut off."""
    image = np.full((800, 1200, 3), 90, dtype=np.uint8)

    def count_ink(corners: list[float]) -> int:
        drawn = draw_boxes(image, np.array([corners], dtype=float), [1], NAMES, [0.87])
        return int(((drawn == 0).all(axis=-1) | (drawn == 255).all(axis=-1)).sum())

    inside = count_ink([400, 400, 800, 600])
    assert inside > 200
    assert count_ink(box) == inside


def test_score_and_name_change_the_text():
    image = np.full((200, 300, 3), 90, dtype=np.uint8)
    box = np.array([[50.0, 100, 60, 150]])
    plain = draw_boxes(image, box, [0], NAMES)
    scored = draw_boxes(image, box, [0], NAMES, [0.5])
    assert changed(image, scored)[2] > changed(image, plain)[2]
    assert (scored != draw_boxes(image, box, [0], NAMES, [0.6])).any()
    assert (plain != draw_boxes(image, box, [0], ["parson"])).any()
    assert (draw_boxes(image, box, [0], ["vélo"]) != draw_boxes(image, box, [0], ["vølo"])).any()


def test_the_first_box_is_on_top():
    image = np.zeros((200, 300, 3), dtype=np.uint8)
    drawn = draw_boxes(image, np.array([[50.0, 100, 150, 150]] * 2), [0, 2], NAMES)
    np.testing.assert_array_equal(drawn[150, 100], class_color(0))


def test_lines_and_text_grow_with_the_image():
    heights = []
    for scale in (1, 4):
        image = np.full((400 * scale, 600 * scale, 3), 90, dtype=np.uint8)
        box = scale * np.array([[100.0, 200, 300, 300]])
        drawn = draw_boxes(image, box, [0], NAMES)
        column = (drawn[:, 200 * scale] != 90).any(axis=-1)
        heights.append((int(column[250 * scale :].sum()), 200 * scale - changed(image, drawn)[1]))
    (thin, low), (thick, high) = heights
    assert 3 <= thick / thin <= 5 and 3 <= high / low <= 5


def test_class_colors_are_distinct():
    colors = [np.array(class_color(label), dtype=float) for label in range(20)]
    assert min(np.abs(a - b).max() for a, b in combinations(colors, 2)) >= 20
    assert all(max(color) > 150 for color in colors)


def test_on_a_real_picture(shared_data: Path):
    image = read_image(find_images([str(shared_data / "coco_tiny/val2017")])[0])
    height, width = image.shape[:2]
    box = np.array([[width / 4, height / 4, width / 2, height / 2]])
    drawn = draw_boxes(image, box, np.array([1]), NAMES, np.array([0.9], dtype=np.float32))
    different = (drawn != image).any(axis=-1)
    assert 0.001 < different.mean() < 0.05
