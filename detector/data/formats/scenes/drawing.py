"""The drawing of a scene: background, objects and distractors."""

import cv2
import numpy as np

from detector.data.formats.scenes.canvas import Canvas
from detector.data.formats.scenes.outlines import CLASS_OUTLINES, DISTRACTOR_OUTLINES
from detector.data.formats.scenes.settings import SCENE_STREAM, SceneSettings, generator


def draw_scene(settings: SceneSettings, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a scene. A box encloses the visible part of its object: inside the image and not behind an earlier object.

    Args:
        settings: the settings of the scenes.
        index: the index of the scene.

    Returns:
        The image (S, S, 3) uint8 RGB, the boxes (N, 4) float32 xyxy in pixels, and the labels (N,) int64 in 0..K-1.
    """
    background_rng, object_rng, distractor_rng = generator(settings, SCENE_STREAM, index).spawn(3)
    canvas = Canvas(make_background(settings.image_size, background_rng))
    frequencies = np.arange(1.0, settings.num_classes + 1) ** -settings.zipf
    class_outlines, distractor_outlines = list(CLASS_OUTLINES.values()), list(DISTRACTOR_OUTLINES.values())

    boxes, labels = [], []
    for _ in range(object_rng.poisson(settings.objects)):
        label = object_rng.choice(settings.num_classes, p=frequencies / frequencies.sum())
        box = canvas.draw_behind(class_outlines[label], settings, object_rng)
        if box is not None:
            boxes.append(box)
            labels.append(label)
    for _ in range(distractor_rng.poisson(settings.distractors)):
        outline = distractor_outlines[distractor_rng.integers(len(distractor_outlines))]
        canvas.draw_behind(outline, settings, distractor_rng)

    strength = np.float32(background_rng.uniform(6, 28))
    grain = strength * (background_rng.random(canvas.image.shape[1:], dtype=np.float32) - np.float32(0.5))
    image = np.clip(canvas.image + grain, 0, 255).astype(np.uint8)
    return cv2.merge(list(image)), np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)


def make_background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a background without shapes that have sharp edges: gradients, soft blobs, lines and low-frequency noise.

    Args:
        size: the side of the image in pixels.
        rng: the generator of all random numbers.

    Returns:
        The image (3, size, size) float32.
    """
    coarse = max(1, size // 4)  # blobs have soft edges, since they are drawn at a quarter of the size
    gradient = rng.uniform(60, 190) + rng.normal(0, 22, 3) + rng.normal(0, 22, (3, 3, 3))
    blobs = np.clip(cv2.resize(gradient, (coarse, coarse), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)
    for x, y in rng.integers(coarse, size=(rng.integers(3, 9), 2)).tolist():
        axes = (rng.uniform(0.04, 0.25, 2) * coarse).astype(int).tolist()
        color = (blobs[y, x] + rng.normal(0, 36, 3)).tolist()
        cv2.ellipse(blobs, (x, y), axes, rng.uniform(0, 180), 0, 360, color, cv2.FILLED, cv2.LINE_AA)
    background = cv2.resize(blobs, (size, size), interpolation=cv2.INTER_CUBIC)
    for x1, y1, x2, y2 in rng.integers(size, size=(rng.integers(2, 9), 4)).tolist():
        thickness = max(1, round(rng.uniform(0.005, 0.02) * size))
        color = (background[y1, x1] + rng.normal(0, 36, 3)).tolist()
        cv2.line(background, (x1, y1), (x2, y2), color, thickness, cv2.LINE_AA)
    mottle = rng.normal(0, rng.uniform(4, 16), (16, 16)).astype(np.float32)
    return background.transpose(2, 0, 1) + cv2.resize(mottle, (size, size), interpolation=cv2.INTER_CUBIC)
