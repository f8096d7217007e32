"""Synthetic scenes whose imbalance is set by knobs: how many objects, how rare each class, how many hard negatives."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
from pydantic import Field

from detector.core.errors import UserError
from detector.core.files import write_text
from detector.core.machine import cache_folder
from detector.core.validation import NonNegativeFloat, NonNegativeInt, PositiveInt, UnitFloat
from detector.data.checks.findings import Findings
from detector.data.dataset import DATASETS
from detector.data.formats.coco import CocoDataset

_log = logging.getLogger(__name__)

DRAWING_VERSION = 2  # part of the cache key: raise it whenever a pixel or a box changes
SPLITS = ("train", "val")
SCENE_STREAM, NOISE_STREAM = 0, 1

SUBPIXELS = 4  # masks are drawn this much finer, then averaged: smooth edges, boxes exact to a quarter pixel
MIN_VISIBLE = 0.6  # share of a shape that must show; a placement that hides more is drawn again
PLACEMENTS = 40  # tries before a shape is left out for want of room
JITTER = 0.25  # a jittered box has each edge moved by up to this share of its side
JPEG_QUALITY = 92


@dataclass(frozen=True, slots=True)
class SceneSettings:
    """What decides a scene's pixels and boxes, beside its index; the fields are those of `SyntheticDataset`."""

    image_size: int
    num_classes: int
    objects: float
    object_size: tuple[float, float]
    rotation: float
    distractors: float
    zipf: float
    seed: int
    split: str


@DATASETS.register("synthetic")
class SyntheticDataset(CocoDataset):
    """Drawn scenes of textured shapes, written once to a cache folder as JPEG files and COCO annotations.

    class_names: class names in label order, as for `CocoDataset`.
    num_images: how many. image_size: the square image's side in pixels. num_classes: the first of `CLASS_OUTLINES`.
    objects, distractors: mean number an image (Poisson); distractors differ from objects in shape alone, without a box.
    object_size: range of a shape's longer box side, before any is hidden, in fractions of image_size; log-uniform.
    rotation: greatest turn either way in degrees, uniform; 180 is any.
    zipf: the class of rank r = 1..K has probability ~ r^-zipf; 0 is balanced.
    noise_missed, noise_jittered, noise_mislabelled: fractions of the boxes whose annotation is dropped, displaced, or
    given another class, independently of each other. They leave the pictures as they are.
    seed, split: the random stream; the two splits share no scene. cache: default `synthetic` in the user's own.

    Background, objects and distractors have streams of their own, and distractors lie behind objects: the same objects
    stand at the same places however many distractors there are. A shape that finds no room is left out, so well over
    ten shapes an image fall short of their mean.

    Raises UserError when `object_size` is not a range or the cache cannot be written.
    """

    def __init__(
        self,
        class_names: Sequence[str] | None = None,
        findings: Findings | None = None,
        *,
        num_images: PositiveInt = 1000,
        image_size: PositiveInt = 128,
        num_classes: Annotated[int, Field(ge=6, le=8)] = 6,
        objects: NonNegativeFloat = 4.0,
        object_size: tuple[UnitFloat, UnitFloat] = (0.12, 0.4),
        rotation: Annotated[float, Field(strict=True, ge=0, le=180)] = 180.0,
        distractors: NonNegativeFloat = 4.0,
        zipf: NonNegativeFloat = 0.0,
        noise_missed: UnitFloat = 0.0,
        noise_jittered: UnitFloat = 0.0,
        noise_mislabelled: UnitFloat = 0.0,
        seed: NonNegativeInt = 0,
        split: Literal["train", "val"] = "train",
        cache: Path | None = None,
    ):
        if not 0 < object_size[0] <= object_size[1]:
            raise UserError(
                f"object_size: {list(object_size)} is no range of sizes", "give [smallest, largest], both above 0"
            )
        settings = SceneSettings(
            image_size, num_classes, objects, tuple(object_size), rotation, distractors, zipf, seed, split
        )
        cache = cache_folder() / "synthetic" if cache is None else cache
        try:
            folder = _cached_scenes(settings, num_images, cache)
            annotations = _cached_annotations(folder, settings, (noise_missed, noise_jittered, noise_mislabelled))
        except OSError as error:
            raise UserError(
                f"cache: synthetic scenes cannot be written to {cache} ({error.strerror})", "name a writable folder"
            ) from error
        super().__init__(class_names, findings, images=folder / "images", annotations=annotations)


def draw_scene(settings: SceneSettings, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scene `index`: image (S, S, 3) uint8 RGB, boxes (N, 4) float32 xyxy, labels (N,) int64 in 0..K-1.

    A box encloses what can be seen of its object: inside the image and not behind an object listed earlier.
    """
    background_rng, object_rng, distractor_rng = _generator(settings, SCENE_STREAM, index).spawn(3)
    canvas = _Canvas(make_background(settings.image_size, background_rng))
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
    """Clutter without a shape's crisp area: colour gradients, soft blobs, mottle, lines. (3, size, size) float32."""
    coarse = max(1, size // 4)  # drawn at a quarter of the size, the blobs come out soft
    gradient = rng.uniform(60, 190) + rng.normal(0, 22, 3) + rng.normal(0, 22, (3, 3, 3))
    blobs = np.clip(cv2.resize(gradient, (coarse, coarse), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)
    for x, y in rng.integers(coarse, size=(rng.integers(3, 9), 2)).tolist():
        axes = (rng.uniform(0.04, 0.25, 2) * coarse).astype(int).tolist()
        colour = (blobs[y, x] + rng.normal(0, 36, 3)).tolist()
        cv2.ellipse(blobs, (x, y), axes, rng.uniform(0, 180), 0, 360, colour, cv2.FILLED, cv2.LINE_AA)
    background = cv2.resize(blobs, (size, size), interpolation=cv2.INTER_CUBIC)
    for x1, y1, x2, y2 in rng.integers(size, size=(rng.integers(2, 9), 4)).tolist():
        thickness = max(1, round(rng.uniform(0.005, 0.02) * size))
        colour = (background[y1, x1] + rng.normal(0, 36, 3)).tolist()
        cv2.line(background, (x1, y1), (x2, y2), colour, thickness, cv2.LINE_AA)
    mottle = rng.normal(0, rng.uniform(4, 16), (16, 16)).astype(np.float32)
    return background.transpose(2, 0, 1) + cv2.resize(mottle, (size, size), interpolation=cv2.INTER_CUBIC)


class _Canvas:
    """A picture painted from front to back: what a shape may still show, and thereby its box, is known at once."""

    def __init__(self, background: np.ndarray):
        self.background = background
        self.image = background.copy()
        self.taken = np.zeros([SUBPIXELS * side for side in background.shape[1:]], np.uint8)

    def draw_behind(self, outline: np.ndarray, settings: SceneSettings, rng: np.random.Generator) -> np.ndarray | None:
        """Draw a shape at random behind all drawn so far; the box (4,) xyxy of its visible part, None without room."""
        side = self.image.shape[-1]
        low, high = np.log(settings.object_size)
        mask = _rasterise(outline, np.exp(rng.uniform(low, high)) * side, settings.rotation, rng)
        height, width = (extent // SUBPIXELS for extent in mask.shape)
        needed = MIN_VISIBLE * cv2.countNonZero(mask)
        for _ in range(PLACEMENTS):
            left, top = int(rng.integers(side)) - width // 2, int(rng.integers(side)) - height // 2
            x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, side), min(top + height, side)
            taken = _subpixels(self.taken, x1, y1, x2, y2)
            inside = _subpixels(mask, x1 - left, y1 - top, x2 - left, y2 - top)
            visible = inside & ~taken
            if cv2.countNonZero(visible) >= needed:
                break
        else:
            return None
        taken |= inside

        # Shapes cover disjoint parts of a pixel, so each replaces its own share of the background alone.
        coverage = cv2.resize(visible, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA) / np.float32(255)
        ground, patch = self.background[:, y1:y2, x1:x2], self.image[:, y1:y2, x1:x2]
        patch += coverage * (_make_fill(patch, rng) - ground)
        x, y, w, h = cv2.boundingRect(visible)
        return np.array([x1, y1, x1, y1]) + np.array([x, y, x + w, y + h]) / SUBPIXELS


def _subpixels(mask: np.ndarray, x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    return mask[SUBPIXELS * y1 : SUBPIXELS * y2, SUBPIXELS * x1 : SUBPIXELS * x2]


def _rasterise(outline: np.ndarray, size: float, rotation: float, rng: np.random.Generator) -> np.ndarray:
    """The outline, turned by up to `rotation` degrees and `size` pixels at its longer side, as a mask of 0 and 255 in
    subpixels."""
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
    """Textured colour of the surroundings' shape (3, H, W), plain-shaded, striped or chequered.

    The colour is the farthest from the surroundings' mean of a few drawn, so that no shape melts into its ground.
    """
    height, width = surroundings.shape[1:]
    colours = rng.uniform(10, 245, (5, 3))
    colour = colours[np.argmax(((colours - surroundings.mean((1, 2))) ** 2).sum(1))]
    kind = ("shaded", "striped", "chequered")[rng.integers(3)]
    extent, angle = max(height, width), rng.uniform(0, np.pi)
    period = 3 * extent if kind == "shaded" else rng.uniform(0.2, 0.4) * extent
    across, along = (2 * np.pi / period * np.array([np.cos(angle), np.sin(angle)])).astype(np.float32)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    pattern = np.cos(across * x + along * y + np.float32(rng.uniform(0, 2 * np.pi)))
    if kind == "chequered":
        pattern *= np.cos(across * y - along * x)
    return colour.astype(np.float32)[:, None, None] + np.float32(rng.uniform(10, 35)) * pattern


def _generator(settings: SceneSettings, *stream: int) -> np.random.Generator:
    entropy = [settings.seed, SPLITS.index(settings.split)]
    return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=stream))


def _cached_scenes(settings: SceneSettings, num_images: int, cache: Path) -> Path:
    """The folder of the drawn scenes. It appears by one rename when complete, so an interrupted one is never found."""
    key = json.dumps({"version": DRAWING_VERSION, "num_images": num_images, **asdict(settings)}, sort_keys=True)
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    _log.info("drawing %d %s scenes into %s", num_images, settings.split, folder)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{folder.name}-") as unfinished:
        scenes = Path(unfinished) / "scenes"
        _write_scenes(settings, num_images, scenes)
        try:
            scenes.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process has drawn the same scenes meanwhile
                raise
    return folder


def _write_scenes(settings: SceneSettings, num_images: int, folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index in range(num_images):
        image, boxes, labels = draw_scene(settings, index)
        height, width = image.shape[:2]
        file_name = f"{index:06d}.jpg"
        _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        (folder / "images" / file_name).write_bytes(encoded)
        images.append({"id": index + 1, "file_name": file_name, "width": width, "height": height})
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1} | _coco_box(box, label))
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(list(CLASS_OUTLINES)[: settings.num_classes])]
    contents = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(contents), encoding="utf-8")


def _cached_annotations(folder: Path, settings: SceneSettings, noise: tuple[float, float, float]) -> Path:
    """The annotation file with this noise (missed, jittered, mislabelled) of the scenes in `folder`."""
    clean = folder / "annotations.json"
    if not any(noise):
        return clean
    noisy = folder / "annotations-missed-{}-jittered-{}-mislabelled-{}.json".format(*noise)
    if not noisy.is_file():
        contents = json.loads(clean.read_text(encoding="utf-8"))
        rng = _generator(settings, NOISE_STREAM)
        contents["annotations"] = add_noise(contents["annotations"], settings, noise, rng)
        write_text(noisy, json.dumps(contents))
    return noisy


def add_noise(
    annotations: list[dict], settings: SceneSettings, noise: tuple[float, float, float], rng: np.random.Generator
) -> list[dict]:
    """COCO annotations with the fractions (missed, jittered, mislabelled) of them spoilt; ids stay.

    Each box draws the same numbers whatever the fractions, so more noise spoils the same boxes and then others.
    """
    spoilt = []
    for annotation in annotations:
        missed, jittered, mislabelled = rng.uniform(size=3) < noise
        shifts = rng.uniform(-JITTER, JITTER, 4)
        other_class = rng.integers(1, settings.num_classes)
        if missed:
            continue
        x, y, w, h = annotation["bbox"]
        box, label = np.array([x, y, x + w, y + h]), annotation["category_id"] - 1
        if jittered:
            box = np.clip(box + shifts * [w, h, w, h], 0, settings.image_size).round(2)
        if mislabelled:
            label = (label + int(other_class)) % settings.num_classes
        spoilt.append(annotation | _coco_box(box.tolist(), label))
    return spoilt


def _coco_box(box_xyxy: list[float], label: int) -> dict:
    x1, y1, x2, y2 = box_xyxy
    width, height = round(x2 - x1, 2), round(y2 - y1, 2)
    area = round(width * height, 4)
    return {"category_id": label + 1, "bbox": [x1, y1, width, height], "area": area, "iscrowd": 0}


def _arc(radius: float, start: float, end: float) -> np.ndarray:
    """48 points on a circle round the origin, angles in degrees."""
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


# Closed polygons (N, 2) of any scale; a seam from the outer to the inner edge makes a hole.
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
