"""Boxes as annotations give them: which can be used, and which look like another convention than their format's."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from detector.data.checks.findings import Findings
from detector.data.formats.numbers import as_number

MAX_OVERHANG = 1.0  # pixels that a box may reach over its image's edge before that is worth a note
MIN_BOXES = 5  # that must agree before they are taken for another convention


def check_boxes(
    annotations: list[dict[str, Any]],
    sizes: np.ndarray,
    findings: Findings,
    valid: np.ndarray,
    describe: Callable[[int], str],
    places: Sequence[tuple[str, str]] | None,
) -> np.ndarray:
    """Turn boxes (x, y, w, h) into (N, 4) float32 xyxy that are clipped to their images.

    Args:
        annotations: N entries with `bbox`.
        sizes: (N, 2) width and height of each one's image.
        findings: takes what is wrong or odd.
        valid: (N,) bool, which becomes false for boxes that cannot be used.
        describe: says where annotation i stands.
        places: what the boxes read in a file of another format than COCO (see `parse_coco`).
    """
    rows = [annotation.get("bbox") for annotation in annotations]
    four = [_four_numbers(row) for row in rows]
    boxes = np.array(four, dtype=np.float64).reshape(-1, 4)
    x, y, width, height = boxes.T
    with np.errstate(over="ignore", invalid="ignore"):
        boxes = np.stack((x, y, x + width, y + height), axis=1)
    clipped = np.clip(boxes, 0, np.tile(sizes, 2)).astype(np.float32)
    empty = ~((width > 0) & (height > 0))

    def box(i: int) -> str:
        return f"{describe(i)}: {places[i][1] if places else f'box {rows[i]} (x, y, w, h)'}"

    problems = {
        "box_malformed": (~np.isfinite(boxes).all(axis=1), "is not four finite numbers"),
        "box_empty": (empty, "has no area"),
        "box_outside": (~(clipped[:, 2:] > clipped[:, :2]).all(axis=1), "has no area inside the image"),
    }
    for kind, (wrong, what) in problems.items():
        findings.add(kind, np.flatnonzero(valid & wrong), lambda i, what=what: f"{box(i)} {what}")
        valid &= ~wrong

    overhang = np.abs(boxes - clipped).max(axis=1, initial=0) > MAX_OVERHANG
    if places is None and valid.sum() >= MIN_BOXES:
        image_width, image_height = sizes.T
        as_corners = (width > x) & (height > y) & (width <= image_width + 1) & (height <= image_height + 1)
        if as_corners[valid].all() and overhang[valid].mean() > 0.25:
            findings.add(
                "box_corners",
                np.flatnonzero(valid & overhang),
                lambda i: f"{box(i)} fits its image as (x1, y1, x2, y2) alone, and so do all the others",
            )
        if (boxes[valid] <= 1).all():
            findings.add(
                "box_fractions",
                np.flatnonzero(valid),
                lambda i: f"{box(i)} lies in the first pixel of its image, and so do all the others",
            )
    findings.add(
        "box_clipped", np.flatnonzero(valid & overhang), lambda i: f"{box(i)} in {sizes[i][0]}x{sizes[i][1]} pixels"
    )
    return clipped


def _four_numbers(row: Any) -> list[float]:
    """NaN where a row is not four numbers."""
    numbers = [as_number(value) for value in row] if isinstance(row, list) and len(row) == 4 else []
    known = [number for number in numbers if number is not None]
    return known if len(known) == 4 else [np.nan] * 4
