"""The checks of annotated boxes: unusable boxes, and boxes that seem to have another convention than their format."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from detector.data.checks.findings import Findings
from detector.data.formats.numbers import as_number

MAX_OVERHANG = 1.0  # pixels beyond the edge of the image, from which a box is noted as clipped
MIN_BOXES = 5  # the minimum number of boxes from which another convention can be recognized


def check_boxes(
    annotations: list[dict[str, Any]],
    sizes: np.ndarray,
    findings: Findings,
    valid: np.ndarray,
    describe: Callable[[int], str],
    locations: Sequence[tuple[str, str]] | None,
) -> np.ndarray:
    """Convert boxes (x, y, w, h) to xyxy and clip them to their images.

    Args:
        annotations: N entries with `bbox`.
        sizes: (N, 2) width and height in pixels of the image of each annotation.
        findings: receives the problems of the boxes.
        valid: (N,) bool. The function sets it to false for boxes that cannot be used.
        describe: returns the location of annotation i as text.
        locations: the boxes as their file has them, for other formats than COCO (see `parse_coco`).

    Returns:
        (N, 4) float32 xyxy in pixels.
    """
    rows = [annotation.get("bbox") for annotation in annotations]
    four = [_four_numbers(row) for row in rows]
    boxes = np.array(four, dtype=np.float64).reshape(-1, 4)
    x, y, width, height = boxes.T
    with np.errstate(over="ignore", invalid="ignore"):
        boxes = np.stack((x, y, x + width, y + height), axis=1)
    clipped = np.clip(boxes, 0, np.tile(sizes, 2)).astype(np.float32)
    is_empty = ~((width > 0) & (height > 0))

    def box(i: int) -> str:
        return f"{describe(i)}: {locations[i][1] if locations else f'box {rows[i]} (x, y, w, h)'}"

    problems = {
        "box_malformed": (~np.isfinite(boxes).all(axis=1), "is not four finite numbers"),
        "box_empty": (is_empty, "has no area"),
        "box_outside": (~(clipped[:, 2:] > clipped[:, :2]).all(axis=1), "has no area inside the image"),
    }
    for kind, (is_wrong, problem) in problems.items():
        findings.add(kind, np.flatnonzero(valid & is_wrong), lambda i, problem=problem: f"{box(i)} {problem}")
        valid &= ~is_wrong

    overhang = np.abs(boxes - clipped).max(axis=1, initial=0) > MAX_OVERHANG
    if locations is None and valid.sum() >= MIN_BOXES:
        image_width, image_height = sizes.T
        fits_corners = (width > x) & (height > y) & (width <= image_width + 1) & (height <= image_height + 1)
        if fits_corners[valid].all() and overhang[valid].mean() > 0.25:
            findings.add(
                "box_corners",
                np.flatnonzero(valid & overhang),
                lambda i: f"{box(i)} fits its image only as (x1, y1, x2, y2), as all other boxes do",
            )
        if (boxes[valid] <= 1).all():
            findings.add(
                "box_fractions",
                np.flatnonzero(valid),
                lambda i: f"{box(i)} lies in the first pixel of its image, as all other boxes do",
            )
    findings.add(
        "box_clipped",
        np.flatnonzero(valid & overhang),
        lambda i: f"{box(i)} in an image of {sizes[i][0]}x{sizes[i][1]} pixels",
    )
    return clipped


def _four_numbers(row: Any) -> list[float]:
    """Return the four numbers of a row, or NaN where the row is not four numbers."""
    numbers = [as_number(value) for value in row] if isinstance(row, list) and len(row) == 4 else []
    known = [number for number in numbers if number is not None]
    return known if len(known) == 4 else [np.nan] * 4
