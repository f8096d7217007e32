"""A trained detector as an object: load a checkpoint, give it images, get boxes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from detector.build import build_model, evaluation_side, place
from detector.config import Config, config_from_text, load_config
from detector.data.loader import collate
from detector.data.transforms import resize, target_size
from detector.engine.checkpoint import load_checkpoint
from detector.engine.precision import autocast
from detector.errors import UserError
from detector.models.postprocess import postprocess
from detector.models.retinanet import RetinaNet, size_divisor
from detector.structures import Detections, Sample


class Detector:
    """A model with its config, class names and category ids.

    `Detector.load(path).predict(images)`: images are (H, W, 3) uint8 RGB arrays of any sizes; the answer is one
    `Detections` an image, on the CPU, in that image's pixels, best first.
    """

    def __init__(self, model: RetinaNet, config: Config, class_names: Sequence[str], category_ids: Sequence[int]):
        self.config = config
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        model, self.device, self.dtype = place(model, config)
        self.model = model.eval()

    @classmethod
    def load(cls, path: Path | str, cfg: str | None = None, overrides: Sequence[str] = ()) -> "Detector":
        """From a checkpoint of tools/train.py, with its own config or that of `cfg`, and `key.path=value` overrides.

        Raises UserError for a missing, unreadable, foreign or unfitting file."""
        path = Path(path)
        checkpoint = load_checkpoint(path)
        config = (
            config_from_text(checkpoint["config"], f"config of {path}", overrides)
            if cfg is None
            else load_config(cfg, overrides)
        )
        model = build_model(config, len(checkpoint["class_names"]))
        try:
            model.load_state_dict(checkpoint["model"])
        except RuntimeError as error:
            line = str(error).splitlines()[-1].strip()
            raise UserError(
                f"{path} does not fit its config ({line}); leave --cfg away or mend its model section"
            ) from error
        return cls(model, config, checkpoint["class_names"], checkpoint["category_ids"])

    @torch.inference_mode()
    def predict(self, images: Sequence[np.ndarray], *, score_threshold: float | None = None) -> list[Detections]:
        """All images as one batch; `score_threshold` defaults to the config's."""
        settings = self.config.evaluation
        samples = []
        for image in images:
            sample = Sample(
                image,
                boxes=np.zeros((0, 4), np.float32),
                labels=np.zeros(0, np.int64),
                ignore=np.zeros(0, bool),
                image_id=0,
                file_name="",
                original_size=image.shape[:2],
            )
            size = target_size(*image.shape[:2], evaluation_side(self.config), self.config.data.long_side)
            samples.append(resize(sample, *size))
        batch = collate(samples, size_divisor(self.model.levels)).to(self.device)
        with autocast(self.device, self.dtype):
            predictions = self.model(batch.images)
        found = postprocess(
            predictions,
            batch.sizes,
            batch.original_sizes,
            score_threshold=settings.score_threshold if score_threshold is None else score_threshold,
            nms_iou=settings.nms_iou,
            candidates_per_level=settings.candidates_per_level,
            max_detections=settings.max_detections,
        )
        return [replace(d, boxes=d.boxes.cpu(), scores=d.scores.cpu(), labels=d.labels.cpu()) for d in found]
