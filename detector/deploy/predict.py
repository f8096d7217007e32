"""The Python interface of a trained detector: load a checkpoint, and detect objects in images."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from detector.build import build_detection, build_model, evaluation_side, move_model
from detector.config import Config, config_from_text, load_config, with_parts
from detector.core.errors import UserError
from detector.core.structures import Detections, Sample
from detector.core.validation import did_you_mean
from detector.data.images import ImageInput, as_rgb
from detector.data.pipeline.batches import collate
from detector.data.pipeline.buckets import make_buckets
from detector.data.pipeline.transforms import resize, target_size
from detector.engine.checkpoint import load_checkpoint
from detector.engine.precision import choose_device
from detector.models.detector import DetectionModel

WINDOW = 4  # in batches: images of similar shapes share a batch if they are in the same window


class Detector:
    """A model with its config and its classes. Label k has the name `class_names[k]`.

    Args:
        model: the model.
        config: the config of the model.
        class_names: the class names of the training set.
        category_ids: the category ids of the training set.
        device: auto (a GPU if there is one, else the CPU), cpu or cuda.
    """

    def __init__(
        self,
        model: DetectionModel,
        config: Config,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        device: str = "auto",
    ):
        self.config = config
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        model, self.device, self.dtype = move_model(model, config, device)
        self.model = model.eval()
        self._detect_batch = build_detection(config, self.device, self.dtype)

    @classmethod
    def load(
        cls, path: Path | str, cfg: Path | str | None = None, overrides: Sequence[str] = (), device: str = "auto"
    ) -> "Detector":
        """Load a checkpoint of `detector train`.

        The GPU of the training and the modules of its `imports` are not necessary.

        Args:
            path: the path of the checkpoint.
            cfg: a config that replaces the config in the checkpoint.
            overrides: texts `key.path=value`, for example `evaluation.flip=true` and `evaluation.scales=[1.0, 1.25]`
                for test-time augmentation.
            device: auto (a GPU if there is one, else the CPU), cpu or cuda.

        Raises:
            UserError: the file is missing or unreadable, is not a checkpoint, or does not fit the config. An argument
                has a wrong type or value. There is no GPU for `device="cuda"`.
        """
        _check_arguments(path, cfg, overrides, device)
        path = Path(path).expanduser()
        checkpoint = load_checkpoint(path)
        config = (
            config_from_text(checkpoint["config"], f"config of {path}", overrides, for_inference=True)
            if cfg is None
            else load_config(str(cfg), overrides, for_inference=True)
        )
        config = with_parts(config, config.model.backbone, config.model.head)
        model = build_model(config, len(checkpoint["class_names"]))
        try:
            model.load_state_dict(checkpoint["model"])
        except RuntimeError as error:
            line = str(error).splitlines()[-1].strip()
            raise UserError(
                f"{path}: the weights do not fit the config ({line})", "omit --cfg, or correct the section model"
            ) from error
        return cls(model, config, checkpoint["class_names"], checkpoint["category_ids"], device)

    def predict(
        self,
        images: Iterable[ImageInput],
        *,
        classes: Sequence[str] | None = None,
        score_threshold: float | None = None,
        batch_size: int | None = None,
    ) -> list[Detections]:
        """Detect objects in images.

        Images of similar shapes share a batch. The sizes of the images of a batch determine its padding, which changes
        the last digits of the results. With a `batch_size` of 1, the results of an image do not depend on other images.

        Args:
            images: paths, arrays (H, W, 3) uint8 RGB, tensors (3, H, W) uint8 RGB or PIL images, of any sizes. An
                iterator is read in parts, so that few images are in memory.
            classes: the names of the classes to detect. The default is all classes.
            score_threshold: only detections with higher scores are returned. The default is the value of the config.
            batch_size: the largest number of images of a batch. The default is the value of the config.

        Returns:
            The `Detections` of each image, in the order of the images, on the CPU, in pixels of the image, sorted by
            descending score.

        Raises:
            UserError: an image is unreadable or has a wrong type, a class is unknown, or a number is out of range.
                Errors of arguments other than `images` are raised before an image is read.
        """
        if isinstance(images, str | Path) or getattr(images, "ndim", 4) < 4 or not isinstance(images, Iterable):
            raise UserError("images: not a sequence or iterator of images", "put a single image into a list")
        settings = self.config.evaluation
        max_images = settings.batch_size if batch_size is None else _checked_batch_size(batch_size)
        score = settings.score_threshold if score_threshold is None else _checked_score(score_threshold)
        labels = None if classes is None else self.labels_of(classes)

        samples = (self._sample(image, f"images[{i}]") for i, image in enumerate(images))
        detections: list[Detections] = []
        while window := list(islice(samples, WINDOW * max_images)):
            of_window = {}
            for indices in self._group(window, max_images):
                batch = collate([window[i] for i in indices], self.model.size_divisor)
                of_batch = self._detect_batch(self.model, batch, labels=labels, score_threshold=score)
                of_window |= zip(indices, of_batch, strict=True)
            detections += [of_window[i].cpu() for i in range(len(window))]
            window.clear()  # frees the images before the next window is read
        return detections

    @property
    def bits(self) -> int | None:
        """The number of used bits of 16-bit images, as in the training; None derives it from each image."""
        return None if self.config.data.bits == "auto" else self.config.data.bits

    def labels_of(self, classes: Iterable[str]) -> list[int]:
        """Return the labels of these class names, in ascending order.

        Raises:
            UserError: a class name is unknown or has a wrong type.
        """
        if isinstance(classes, str) or not isinstance(classes, Iterable):
            raise UserError(f"classes: {classes!r} is not a list of class names", "put a single class name into a list")
        classes = list(classes)
        for name in classes:
            if not isinstance(name, str):
                raise UserError(f"classes: {name!r} is not a class name", "choose from detector.class_names")
            if name not in self.class_names:
                hint = did_you_mean(name, self.class_names).removeprefix("; ")
                raise UserError(
                    f"classes: there is no class {name!r}", f"{hint} known: {', '.join(self.class_names)}".strip()
                )
        return [label for label, name in enumerate(self.class_names) if name in classes]

    def _sample(self, image: ImageInput, name: str) -> Sample:
        """Return the image as 8-bit RGB, resized as in an evaluation."""
        pixels = as_rgb(image, name, self.bits)
        no_objects = np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool)
        sample = Sample(pixels, *no_objects, image_id=0, file_name="", original_size=pixels.shape[:2])
        size = target_size(*pixels.shape[:2], evaluation_side(self.config), self.config.data.long_side)
        return resize(sample, *size)

    def _group(self, samples: Sequence[Sample], max_images: int) -> Iterator[list[int]]:
        """Yield the indices of the samples of each batch. The samples of a batch have similar shapes."""
        sizes = np.array([sample.image.shape[:2] for sample in samples])
        buckets = make_buckets(sizes, self.config.data.aspect_buckets, self.model.size_divisor).of_image
        for bucket in np.unique(buckets):
            indices = np.flatnonzero(buckets == bucket).tolist()
            yield from (indices[start : start + max_images] for start in range(0, len(indices), max_images))


def _check_arguments(path: Any, cfg: Any, overrides: Any, device: Any) -> None:
    """Raise UserError if an argument of `Detector.load` has a wrong type or value."""
    if not isinstance(path, str | Path):
        raise UserError(f"path: {path!r} is not a path", "give the path of a checkpoint, as text or Path")
    if cfg is not None and not isinstance(cfg, str | Path):
        raise UserError(f"cfg: {cfg!r} is not a path", "give the name or path of a config, as text or Path")
    if isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise UserError(f"overrides: {overrides!r} is not a list of texts", "put a single override into a list")
    for override in overrides:
        if not isinstance(override, str):
            raise UserError(f"overrides: {override!r} is not a text", "give texts of the form key.path=value")
    choose_device(device, "device")  # raises UserError for a wrong device before the checkpoint is loaded


def _checked_batch_size(value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise UserError(f"batch_size: {value!r} is not a positive integer", "give an integer of at least 1")
    return int(value)


def _checked_score(value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:
        raise UserError(f"score_threshold: {value!r} is not a number from 0 to 1", "give a number from 0 to 1")
    return float(value)
