"""A trained detector as an object: load a checkpoint, give it images, get boxes."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from detector.build import build_detection, build_model, evaluation_side, place
from detector.config import Config, config_from_text, load_config, with_parts
from detector.core.errors import UserError
from detector.core.structures import Detections, Sample
from detector.core.validation import did_you_mean
from detector.data.images import ImageInput, as_rgb
from detector.data.pipeline.buckets import make_buckets
from detector.data.pipeline.loader import collate
from detector.data.pipeline.transforms import resize, target_size
from detector.engine.checkpoint import load_checkpoint
from detector.engine.precision import choose_device
from detector.models.detector import DetectionModel

WINDOW = 4  # batches whose (resized) images are in memory at once, for those of like shape to find each other


class Detector:
    """A model with its config, class names and category ids (of the data set it was trained on): label k is
    `class_names[k]`."""

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
        model, self.device, self.dtype = place(model, config, device)
        self.model = model.eval()
        self._find = build_detection(config, self.device, self.dtype)

    @classmethod
    def load(
        cls, path: Path | str, cfg: Path | str | None = None, overrides: Sequence[str] = (), device: str = "auto"
    ) -> "Detector":
        """Load a checkpoint of `detector train`.

        Nothing that only training needs has to be there: not its GPU, nor the modules of its `imports`.

        Args:
            path: the checkpoint's file.
            cfg: another config than the checkpoint's own.
            overrides: `key.path=value` each, `evaluation.flip=true` and `evaluation.scales=[1.0, 1.25]` (test-time
                augmentation) among them.
            device: auto (a GPU where there is one), cpu or cuda.

        Raises:
            UserError: the file is missing, unreadable, foreign or does not fit; an argument is of the wrong kind; there
                is no GPU for `device="cuda"`.
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
                f"{path} does not fit its config ({line})", "omit --cfg, or correct its model section"
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
        """One `Detections` an image, in the order of the images: on the CPU, in the image's own pixels, best first.

        images: any number of any sizes, each a path, an array (H, W, 3) or tensor (3, H, W) of uint8 RGB, or a PIL
        image; an iterator is read bit by bit. Only detections of `classes` (all) above `score_threshold` (the config's)
        are given. Images of like shape share a batch of at most `batch_size` (the config's); as a neighbour's size
        decides the padding, and padding the last digits, only a batch_size of 1 makes them independent.

        Raises UserError for what is no image, an unreadable file and an unknown class, and for a score or a batch size
        out of range, these before any image is read.
        """
        if isinstance(images, str | Path) or getattr(images, "ndim", 4) < 4 or not isinstance(images, Iterable):
            raise UserError("images: should be several, of any kind", "put a single one into a list")
        settings = self.config.evaluation
        size = settings.batch_size if batch_size is None else _checked_batch_size(batch_size)
        score = settings.score_threshold if score_threshold is None else _checked_score(score_threshold)
        labels = None if classes is None else self.labels_of(classes)

        samples = (self._sample(image, f"images[{i}]") for i, image in enumerate(images))
        found: list[Detections] = []
        while window := list(islice(samples, WINDOW * size)):
            of_window = {}
            for batch in self._alike(window, size):
                collated = collate([window[i] for i in batch], self.model.size_divisor)
                detections = self._find(self.model, collated, labels=labels, score_threshold=score)
                of_window |= zip(batch, detections, strict=True)
            found += [of_window[i].cpu() for i in range(len(window))]
            window.clear()  # before the next one is read
        return found

    @property
    def bits(self) -> int | None:
        """How many bits the values of 16-bit images use, as the training set has it; None: each image by its own."""
        return None if self.config.data.bits == "auto" else self.config.data.bits

    def labels_of(self, classes: Iterable[str]) -> list[int]:
        """The labels of these class names, ascending. Raises UserError for an unknown one."""
        if isinstance(classes, str) or not isinstance(classes, Iterable):
            raise UserError(f"classes: {classes!r} should be several class names", "put a single one into a list")
        classes = list(classes)
        for name in classes:
            if not isinstance(name, str):
                raise UserError(f"classes: {name!r} is not a class's name", "detector.class_names has the names")
            if name not in self.class_names:
                known = ", ".join(self.class_names)
                raise UserError(f"no class {name!r}{did_you_mean(name, self.class_names) or ';'} known: {known}")
        return [label for label, name in enumerate(self.class_names) if name in classes]

    def _sample(self, image: ImageInput, name: str) -> Sample:
        """The image as evaluation would have it."""
        pixels = as_rgb(image, name, self.bits)
        nothing = np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool)
        sample = Sample(pixels, *nothing, image_id=0, file_name="", original_size=pixels.shape[:2])
        size = target_size(*pixels.shape[:2], evaluation_side(self.config), self.config.data.long_side)
        return resize(sample, *size)

    def _alike(self, samples: Sequence[Sample], batch_size: int) -> Iterator[list[int]]:
        """Each sample's place in one batch, of samples of like shape."""
        sizes = np.array([sample.image.shape[:2] for sample in samples])
        buckets = make_buckets(sizes, self.config.data.aspect_buckets, self.model.size_divisor).of_image
        for bucket in np.unique(buckets):
            own = np.flatnonzero(buckets == bucket).tolist()
            yield from (own[start : start + batch_size] for start in range(0, len(own), batch_size))


def _check_arguments(path: Any, cfg: Any, overrides: Any, device: Any) -> None:
    """Raises UserError where an argument of `Detector.load` is of the wrong kind."""
    if not isinstance(path, str | Path):
        raise UserError(f"path: {path!r} should be the path of a checkpoint")
    if cfg is not None and not isinstance(cfg, str | Path):
        raise UserError(f"cfg: {cfg!r} should be a config's name or path")
    if isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise UserError(f"overrides: {overrides!r} should be several texts", "put a single one into a list")
    for override in overrides:
        if not isinstance(override, str):
            raise UserError(f"overrides: {override!r} should be a text, key.path=value")
    choose_device(device, "device")  # a wrong one is refused before anything is loaded


def _checked_batch_size(value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise UserError(f"batch_size: {value!r} images at once", "give a whole number of 1 or more")
    return int(value)


def _checked_score(value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:
        raise UserError(f"score_threshold: {value!r} is wrong", "give a number from 0 to 1")
    return float(value)
