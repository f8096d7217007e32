"""Batches to detections or to plain predictions, and a pass over a data set of either."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import nn

from detector.core.structures import Batch, Detections, Predictions
from detector.core.validation import PositiveFloats, PositiveInt, Settings, Switch, UnitFloat
from detector.data.pipeline.loader import Loader
from detector.engine.guard import inference_within_memory
from detector.engine.precision import autocast
from detector.engine.views import PLAIN, View, join
from detector.evaluation.coco_results import to_coco_results
from detector.models.detector import DetectionModel
from detector.models.postprocess import best_candidates, suppress

Observer = Callable[[Batch, Predictions], None]


def _with_plain_view(scales: list[float]) -> list[float]:
    if 1 not in scales:
        raise ValueError("should have 1.0 among them, the images as they are")
    return scales


class EvaluationSettings(Settings):
    """flip and scales: test-time augmentation, each image seen at every scale and mirrored too (so many times the
    work), the boxes of all views suppressed together."""

    backend: Literal["hotcoco", "pycocotools"] = "hotcoco"
    score_threshold: UnitFloat = 0.05
    nms_iou: UnitFloat = 0.5
    candidates_per_level: PositiveInt = 1000
    max_detections: Annotated[PositiveInt, Field(gt=10)] = 100
    flip: Switch = False
    scales: Annotated[PositiveFloats, AfterValidator(_with_plain_view)] = [1.0]
    batch_size: PositiveInt = 16

    @property
    def postprocessing(self) -> dict[str, Any]:
        """What turns one view's predictions into detections."""
        return self.model_dump(include={"score_threshold", "nms_iou", "candidates_per_level", "max_detections"})


@torch.inference_mode()
def predict(
    model: nn.Module, loader: Loader, *, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Batch, Predictions]]:
    """Each batch of a pass, and what the model says of it in eval mode."""
    was_training = model.training
    model.eval()
    for batch in loader:
        batch = batch.to(device)
        with inference_within_memory(batch.images), autocast(device, dtype):
            predictions = model(batch.images)
        yield batch, predictions
    model.train(was_training)


@torch.inference_mode()
def detect_batch(
    model: DetectionModel,
    batch: Batch,
    *,
    device: torch.device,
    dtype: torch.dtype,
    views: Sequence[View],
    score_threshold: float,
    nms_iou: float,
    candidates_per_level: int,
    max_detections: int,
    labels: Sequence[int] | None = None,
    observe: Observer | None = None,
) -> list[Detections]:
    """The detections of each image in its original pixels, on `device`: `postprocess` of all views' candidates together
    (see `join`). With `labels`, as if the model knew no other classes. `observe` sees the batch and what the model says
    of it in the plain view. Raises UserError where the memory does not suffice."""
    with inference_within_memory(batch.images):
        batch = batch.to(device)
        of_views = []
        for view in views:
            with autocast(device, dtype):
                predictions = model(view.see(batch.images, batch.sizes, model.size_divisor))
            if observe is not None and view == PLAIN:
                observe(batch, predictions)
            if labels is not None:
                predictions = replace(predictions, logits=predictions.logits[..., list(labels)])
            found = best_candidates(predictions, score_threshold, candidates_per_level)
            of_views.append(view.bring_back(found, batch.images.shape[2:], batch.sizes))
        detections = suppress(
            join(of_views), batch.sizes, batch.original_sizes, nms_iou=nms_iou, max_detections=max_detections
        )
        if labels is not None:
            names = torch.tensor(labels, dtype=torch.int64, device=device)
            detections = [replace(found, labels=names[found.labels]) for found in detections]
        return detections


def detect(
    model: nn.Module,
    loader: Loader,
    find: Callable[..., list[Detections]],
    *,
    category_ids: tuple[int, ...],
    observe: Observer | None = None,
) -> list[dict]:
    """Every image's detections as COCO results, in original pixels and with the data set's category ids. `find` is
    `detect_batch` with its settings."""
    was_training = model.training
    model.eval()
    results = []
    for batch in loader:
        for image_id, found in zip(batch.image_ids, find(model, batch, observe=observe), strict=True):
            results += to_coco_results(image_id, found, category_ids)
    model.train(was_training)
    return results
