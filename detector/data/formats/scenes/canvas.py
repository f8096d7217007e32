"""The drawing of shapes on an image, and the visible part of each shape."""

import cv2
import numpy as np

from detector.data.formats.scenes.settings import SceneSettings

SUBPIXELS = 4  # subpixels per pixel side of a mask, for smooth edges and boxes that are exact to a quarter pixel
MIN_VISIBLE = 0.6  # the visible fraction that a shape needs; otherwise its position is drawn again
PLACEMENTS = 40  # the number of positions that are tried before a shape is left out


class Canvas:
    """An image on which front shapes are drawn first, so that the visible part of each new shape is known immediately.

    Args:
        background: (3, S, S) float32.
    """

    def __init__(self, background: np.ndarray):
        self.background = background
        self.image = background.copy()
        self.occupied = np.zeros([SUBPIXELS * side for side in background.shape[1:]], np.uint8)

    def draw_behind(self, outline: np.ndarray, settings: SceneSettings, rng: np.random.Generator) -> np.ndarray | None:
        """Draw a shape of random size, angle, position and fill behind all earlier shapes.

        Args:
            outline: (N, 2), a closed polygon of any scale.
            settings: the settings of the scene.
            rng: the generator of all random numbers.

        Returns:
            The box (4,) xyxy of the visible part in pixels, or None where the shape does not fit.
        """
        side = self.image.shape[-1]
        low, high = np.log(settings.object_size)
        mask = _rasterize(outline, np.exp(rng.uniform(low, high)) * side, settings.rotation, rng)
        height, width = (extent // SUBPIXELS for extent in mask.shape)
        needed = MIN_VISIBLE * cv2.countNonZero(mask)
        for _ in range(PLACEMENTS):
            left, top = int(rng.integers(side)) - width // 2, int(rng.integers(side)) - height // 2
            x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, side), min(top + height, side)
            occupied = _subpixels(self.occupied, x1, y1, x2, y2)
            inside = _subpixels(mask, x1 - left, y1 - top, x2 - left, y2 - top)
            visible = inside & ~occupied
            if cv2.countNonZero(visible) >= needed:
                break
        else:
            return None
        occupied |= inside

        # Shapes cover disjoint parts of a pixel, so that each shape replaces only its part of the background.
        coverage = cv2.resize(visible, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA) / np.float32(255)
        ground, patch = self.background[:, y1:y2, x1:x2], self.image[:, y1:y2, x1:x2]
        patch += coverage * (_make_fill(patch, rng) - ground)
        x, y, w, h = cv2.boundingRect(visible)
        return np.array([x1, y1, x1, y1]) + np.array([x, y, x + w, y + h]) / SUBPIXELS


def _subpixels(mask: np.ndarray, x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    return mask[SUBPIXELS * y1 : SUBPIXELS * y2, SUBPIXELS * x1 : SUBPIXELS * x2]


def _rasterize(outline: np.ndarray, size: float, rotation: float, rng: np.random.Generator) -> np.ndarray:
    """Return the mask of an outline, in subpixels with the values 0 and 255.

    The outline is rotated by at most `rotation` degrees, and its longer side has `size` pixels.
    """
    angle = np.radians(rotation) * rng.uniform(-1, 1)
    cos, sin = np.cos(angle), np.sin(angle)
    turned = outline @ np.array([[cos, sin], [-sin, cos]])
    first, extent = turned.min(0), turned.max(0) - turned.min(0)
    scale = size / extent.max()
    offset = rng.random(2)
    width, height = np.ceil(offset + scale * extent).astype(int).tolist()
    mask = np.zeros((SUBPIXELS * height, SUBPIXELS * width), np.uint8)
    corners = ((turned - first) * scale + offset) * SUBPIXELS - 0.5
    fraction_bits = 4
    cv2.fillPoly(mask, [np.rint(corners * (1 << fraction_bits)).astype(np.int32)], 255, shift=fraction_bits)
    return mask


def _make_fill(surroundings: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a fill (3, H, W) of the shape of `surroundings`, with a shaded, striped or checkered color.

    Of five random colors, the function takes the color that differs most from the mean of the surroundings, so that
    the shape is visible.
    """
    height, width = surroundings.shape[1:]
    colors = rng.uniform(10, 245, (5, 3))
    color = colors[np.argmax(((colors - surroundings.mean((1, 2))) ** 2).sum(1))]
    kind = ("shaded", "striped", "checkered")[rng.integers(3)]
    extent, angle = max(height, width), rng.uniform(0, np.pi)
    period = 3 * extent if kind == "shaded" else rng.uniform(0.2, 0.4) * extent
    across, along = (2 * np.pi / period * np.array([np.cos(angle), np.sin(angle)])).astype(np.float32)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    pattern = np.cos(across * x + along * y + np.float32(rng.uniform(0, 2 * np.pi)))
    if kind == "checkered":
        pattern *= np.cos(across * y - along * x)
    return color.astype(np.float32)[:, None, None] + np.float32(rng.uniform(10, 35)) * pattern
