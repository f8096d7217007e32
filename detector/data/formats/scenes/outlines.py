"""The outlines of the shapes."""

import numpy as np


def _arc(radius: float, start: float, end: float) -> np.ndarray:
    """Return 48 points on a circle around the origin. Angles are in degrees."""
    angles = np.radians(np.linspace(start, end, 48))
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star(points: int, inner_radius: float) -> np.ndarray:
    radii = np.tile([1, inner_radius], points)[:, None]
    angles = np.pi / points * np.arange(2 * points)
    return radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _plus(arm: float) -> np.ndarray:
    quarter = np.array([[1, -arm], [1, arm], [arm, arm]])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1)


# Closed polygons (N, 2) of any scale. A seam from the outer to the inner edge makes a hole.
# Distractors share edges, holes and proportions with the classes.
CLASS_OUTLINES: dict[str, np.ndarray] = {
    "disc": _arc(1, 0, 360),
    "square": _star(4, 0.5**0.5),
    "triangle": _star(3, 0.5),
    "star": _star(5, 0.4),
    "cross": _plus(0.34),
    "ring": np.concatenate([_arc(1, 0, 360), _arc(0.55, 360, 0)]),
    "heart": _heart(),
    "crescent": np.concatenate([_arc(1, 40, 320), _arc(0.716, 296, 64) + [0.45, 0]]),
}
DISTRACTOR_OUTLINES: dict[str, np.ndarray] = {
    "half-disc": _arc(1, 0, 180),
    "bar": np.array([[0, 0], [4, 0], [4, 1], [0, 1]]),
    "angle": np.array([[0, 0], [3, 0], [3, 1], [1, 1], [1, 3], [0, 3]]),
    "zigzag": np.array([[0, 0], [1, 2], [2, 0], [3, 2], [4, 0], [4, 1.2], [3, 3.2], [2, 1.2], [1, 3.2], [0, 1.2]]),
    "oval ring": np.concatenate([_arc(1, 0, 360) * [1, 0.5], _arc(0.65, 360, 0) * [1, 0.4]]),
    "arrow": np.array([[0, 1], [2, 1], [2, 0], [4, 1.75], [2, 3.5], [2, 2.5], [0, 2.5]]),
}
