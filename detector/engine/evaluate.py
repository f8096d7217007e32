"""One pass over a data set: batches to detections."""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader

from detector.engine.precision import autocast
from detector.evaluation.coco import to_coco_results
from detector.models.postprocess import postprocess
from detector.structures import Batch, Predictions, Targets


@torch.inference_mode()
def observe(
    model: nn.Module, *, loader: DataLoader, assigner: Callable[..., Targets], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Batch, Predictions, Targets]]:
    """Each batch on the device, what the model in eval mode says of it, and the targets of its anchors."""
    model.eval()
    for batch in loader:
        batch = batch.to(device)
        with autocast(device, dtype):
            predictions = model(batch.images)
        targets = assigner(predictions.anchors, batch.boxes, batch.labels, batch.ignore, predictions.level_sizes)
        yield batch, predictions, targets


@torch.inference_mode()
def detect(
    model: nn.Module,
    loader: DataLoader,
    *,
    category_ids: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    score_threshold: float,
    nms_iou: float,
    candidates_per_level: int,
    max_detections: int,
) -> list[dict]:
    """Every image's detections as COCO results, in original pixels and with the data set's category ids."""
    was_training = model.training
    model.eval()
    results = []
    for batch in loader:
        batch = batch.to(device)
        with autocast(device, dtype):
            predictions = model(batch.images)
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
    model.train(was_training)
    return results
