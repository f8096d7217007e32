"""A cache folder of drawn scenes: JPEG images and COCO annotations."""

import hashlib
import json
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path

import cv2

from detector.core.files import write_text
from detector.data.formats.scenes.drawing import draw_scene
from detector.data.formats.scenes.noise import add_noise, coco_box
from detector.data.formats.scenes.outlines import CLASS_OUTLINES
from detector.data.formats.scenes.settings import NOISE_STREAM, SceneSettings, generator

log = logging.getLogger(__name__)

DRAWING_VERSION = 2  # part of the cache key; increase it whenever a pixel or a box changes
JPEG_QUALITY = 92


def cached_scenes(settings: SceneSettings, num_images: int, cache: Path) -> Path:
    """Return the folder of the drawn scenes, and draw the scenes where it does not exist.

    A single rename creates the folder when it is complete, so that no process uses an incomplete folder.

    Args:
        settings: the settings of the scenes.
        num_images: the number of scenes.
        cache: the cache folder.

    Raises:
        OSError: the cache cannot be written.
    """
    key = json.dumps({"version": DRAWING_VERSION, "num_images": num_images, **asdict(settings)}, sort_keys=True)
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    log.info("drawing %d scenes of the split %s into %s", num_images, settings.split, folder)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{folder.name}-") as unfinished:
        scenes = Path(unfinished) / "scenes"
        _write_scenes(settings, num_images, scenes)
        try:
            scenes.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process has drawn the same scenes
                raise
    return folder


def cached_annotations(folder: Path, settings: SceneSettings, noise: tuple[float, float, float]) -> Path:
    """Return the annotation file of the scenes with noise, and write the file where it does not exist.

    Args:
        folder: the folder of the scenes.
        settings: the settings of the scenes.
        noise: the fractions of (missed, jittered, mislabelled) boxes.
    """
    clean = folder / "annotations.json"
    if not any(noise):
        return clean
    noisy = folder / "annotations-missed-{}-jittered-{}-mislabelled-{}.json".format(*noise)
    if not noisy.is_file():
        contents = json.loads(clean.read_text(encoding="utf-8"))
        rng = generator(settings, NOISE_STREAM)
        contents["annotations"] = add_noise(contents["annotations"], settings, noise, rng)
        write_text(noisy, json.dumps(contents))
    return noisy


def _write_scenes(settings: SceneSettings, num_images: int, folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index in range(num_images):
        image, boxes, labels = draw_scene(settings, index)
        height, width = image.shape[:2]
        file_name = f"{index:06d}.jpg"
        _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        (folder / "images" / file_name).write_bytes(encoded.tobytes())
        images.append({"id": index + 1, "file_name": file_name, "width": width, "height": height})
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1} | coco_box(box, label))
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(list(CLASS_OUTLINES)[: settings.num_classes])]
    contents = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(contents), encoding="utf-8")
