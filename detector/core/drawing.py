"""Functions that draw labeled boxes on a picture."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detector.core.errors import one_line

Color = tuple[int, int, int]

_GOLDEN_RATIO = 0.618034


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    scores: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """Return a copy of an image with its boxes, and with the class name and the score of each box.

    Boxes are clipped to the image. The size of lines and text is proportional to the image. The first box, the best,
    is drawn over the others, and text is drawn over all lines.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4) xyxy in pixels.
        labels: N indices into `class_names`.
        class_names: the name of each class.
        scores: N scores, or None for text without scores.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    picture = Image.fromarray(image)
    canvas = ImageDraw.Draw(picture)
    thickness = max(1, round(min(picture.size) / 250))
    font = ImageFont.truetype(_font_file(), max(10, round(min(picture.size) / 34)))
    limits = np.tile(np.array(picture.size) - 1, 2)
    corners = np.clip(np.round(boxes), 0, limits).astype(int).tolist()
    colors = [class_color(int(label)) for label in labels]
    best_last = range(len(corners))[::-1]
    for index in best_last:
        canvas.rectangle(corners[index], outline=colors[index], width=thickness)
    for index in best_last:
        text = one_line(class_names[labels[index]]) + ("" if scores is None else f" {scores[index]:.2f}")
        _draw_label(canvas, corners[index][:2], picture.width, text, colors[index], font)
    return np.array(picture)


def class_color(label: int) -> Color:
    """Return the color (R, G, B) of a class, the same in every picture.

    The hues of successive labels differ by the golden ratio. The brightness changes after every six labels.
    """
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN_RATIO % 1, 0.9, (1.0, 0.65)[label // 6 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    corner: Sequence[int],
    image_width: int,
    text: str,
    color: Color,
    font: ImageFont.FreeTypeFont,
) -> None:
    """Draw text on a filled background, above the corner of a box, and inside the image."""
    padding = max(1, round(font.size / 8))
    width = round(font.getlength(text)) + 2 * padding
    height = sum(font.getmetrics()) + padding
    x = max(0, min(corner[0], image_width - width))
    y = max(0, corner[1] - height)
    canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    red, green, blue = color
    is_bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140  # BT.601 luma
    canvas.text((x + padding, y), text, fill=(0, 0, 0) if is_bright else (255, 255, 255), font=font)


def _font_file() -> Path:
    """Return a font that has more than ASCII, unlike the fonts of OpenCV."""
    import matplotlib  # its import is slow

    return Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
