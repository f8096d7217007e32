"""One pass over a data set: batches to predictions, and these to detections."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from detector.data.loader import Loader
from detector.engine.precision import autocast
from detector.evaluation.coco import to_coco_results
from detector.models.postprocess import postprocess
from detector.structures import Batch, Predictions


@torch.inference_mode()
def predict(
    model: nn.Module, loader: Loader, *, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Batch, Predictions]]:
    """Each batch, and what the model says of it in eval mode."""
    was_training = model.training
    model.eval()
    for batch in loader:
        batch = batch.to(device)
        with autocast(device, dtype):
            predictions = model(batch.images)
        yield batch, predictions
    model.train(was_training)


@torch.inference_mode()
def detect(
    model: nn.Module,
    loader: Loader,
    *,
    category_ids: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    score_threshold: float,
    nms_iou: float,
    candidates_per_level: int,
    max_detections: int,
    observe: Callable[[Batch, Predictions], None] | None = None,
) -> list[dict]:
    """Every image's detections as COCO results, in original pixels and with the data set's category ids. `observe` sees
    each batch and what the model says of it."""
    results = []
    for batch, predictions in predict(model, loader, device=device, dtype=dtype):
        if observe is not None:
            observe(batch, predictions)
        detections = postprocess(
            predictions,
            batch.sizes,
            batch.original_sizes,
            score_threshold=score_threshold,
            nms_iou=nms_iou,
            candidates_per_level=candidates_per_level,
            max_detections=max_detections,
        )
        for image_id, found in zip(batch.image_ids, detections, strict=True):
            results += to_coco_results(image_id, found, category_ids)
    return results
