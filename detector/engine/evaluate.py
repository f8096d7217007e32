"""Run a model on batches and data sets: raw predictions, and detections after post-processing."""

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
        raise ValueError("should contain 1.0, the scale of the images without augmentation")
    return scales


class EvaluationSettings(Settings):
    """The `evaluation` section of a config.

    With test-time augmentation (`flip`, `scales`), the boxes of all views of an image are suppressed together. The cost
    grows with the number of views.

    Attributes:
        backend: the library that computes COCO's metrics.
        score_threshold: only scores above this value are detections.
        nms_iou: the IoU above which non-maximum suppression removes the box with the lower score. A model with
            `model.head.one_to_one` uses it only with `flip` or several `scales`.
        candidates_per_level: the number of boxes of each pyramid level before non-maximum suppression.
        max_detections: the number of detections of an image.
        flip: whether each image is also evaluated as its mirror image.
        scales: the factors by which each image is resized.
        batch_size: the number of images of a batch.
    """

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
        """The settings that turn the predictions of a view into detections."""
        return self.model_dump(include={"score_threshold", "nms_iou", "candidates_per_level", "max_detections"})


@torch.inference_mode()
def predict(
    model: nn.Module, loader: Loader, *, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Batch, Predictions]]:
    """Yield each batch of a loader with the predictions of the model in evaluation mode.

    Args:
        model: the model. Its mode is restored at the end.
        loader: the batches.
        device: where the model computes.
        dtype: the number format in which the model computes.

    Raises:
        UserError: the memory is too small for a batch.
    """
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
    """Return the detections of each image in its original pixels, on `device`.

    The candidates of all views compete in one non-maximum suppression (see `join`).

    Args:
        model: the model, in evaluation mode.
        batch: the images.
        device: where the model computes.
        dtype: the number format in which the model computes.
        views: the views of each image.
        score_threshold: see `EvaluationSettings`.
        nms_iou: see `EvaluationSettings`.
        candidates_per_level: see `EvaluationSettings`.
        max_detections: see `EvaluationSettings`.
        labels: if given, the other classes are removed before post-processing.
        observe: called with the batch and the predictions of the plain view.

    Raises:
        UserError: the memory is too small for the batch.
    """
    with inference_within_memory(batch.images):
        batch = batch.to(device)
        candidates = []
        for view in views:
            with autocast(device, dtype):
                predictions = model(view.apply(batch.images, batch.sizes, model.size_divisor))
            if observe is not None and view == PLAIN:
                observe(batch, predictions)
            if labels is not None:
                predictions = replace(predictions, logits=predictions.logits[..., list(labels)])
            best = best_candidates(predictions, score_threshold, candidates_per_level)
            candidates.append(view.map_back(best, batch.images.shape[2:], batch.sizes))
        detections = suppress(
            join(candidates), batch.sizes, batch.original_sizes, nms_iou=nms_iou, max_detections=max_detections
        )
        if labels is not None:
            original_labels = torch.tensor(labels, dtype=torch.int64, device=device)
            detections = [replace(of_image, labels=original_labels[of_image.labels]) for of_image in detections]
        return detections


def detect(
    model: nn.Module,
    loader: Loader,
    detections_of: Callable[..., list[Detections]],
    *,
    category_ids: tuple[int, ...],
    observe: Observer | None = None,
) -> list[dict]:
    """Return the detections of a data set as COCO results, in original pixels.

    Args:
        model: the model. Its mode is restored at the end.
        loader: the batches of the data set.
        detections_of: returns the detections of a model on a batch: `detect_batch` with its settings.
        category_ids: the category id of each label.
        observe: see `detect_batch`.
    """
    was_training = model.training
    model.eval()
    results = []
    for batch in loader:
        for image_id, detections in zip(batch.image_ids, detections_of(model, batch, observe=observe), strict=True):
            results += to_coco_results(image_id, detections, category_ids)
    model.train(was_training)
    return results
