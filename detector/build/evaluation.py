"""Detection and evaluation, from a config."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import nn

from detector.build.data import build_eval_loader, evaluation_side, facts
from detector.config import Config
from detector.core.distributed import broadcast, gather, rank
from detector.core.errors import UserError
from detector.core.structures import Batch, Detections, Predictions, Targets
from detector.data.dataset import DetectionDataset
from detector.data.images import MAX_PIXELS
from detector.engine.evaluate import detect, detect_batch
from detector.engine.views import make_views
from detector.evaluation.coco import coco_metrics
from detector.evaluation.metrics import Metrics


def with_targets(
    config: Config, dataset: DetectionDataset, see: Callable[[Batch, Predictions, Targets], None]
) -> Callable[[Batch, Predictions], None]:
    """Return an observer of a pass over `dataset`. It gives `see` the targets of each batch too."""
    assigner = config.assigner.build(facts(dataset))

    def observe(batch: Batch, predictions: Predictions) -> None:
        see(batch, predictions, assigner(predictions.priors, batch.truth, predictions))

    return observe


def build_detection(config: Config, device: torch.device, dtype: torch.dtype) -> Callable[..., list[Detections]]:
    """`detect_batch` with all of `config.evaluation`: a function from a model and a batch to detections.

    Raises UserError where the sizes of the config make even a square image larger than any that can be read."""
    settings = config.evaluation
    side, largest = min(evaluation_side(config), config.data.long_side), math.isqrt(MAX_PIXELS)
    if side * max(settings.scales) > largest:
        key, value, limit = (
            ("data.short_side", side, largest)
            if side > largest
            else ("evaluation.scales", max(settings.scales), largest / side)
        )
        raise UserError(f"{key}: {value:g} makes images of over {MAX_PIXELS} pixels", f"give at most {limit:.5g}")
    return partial(
        detect_batch,
        device=device,
        dtype=dtype,
        views=make_views(settings.flip, settings.scales),
        **settings.postprocessing,
    )


def build_evaluation(
    config: Config,
    dataset: DetectionDataset,
    device: torch.device,
    dtype: torch.dtype,
    observe: Callable[[Batch, Predictions], None] | None = None,
) -> Callable[[nn.Module], tuple[Metrics, list[dict]]]:
    """A function from a model to COCO's numbers on `dataset`, with the settings that they hold for, and the detections
    behind them (these on rank 0 alone); `observe` sees each batch of this process and what the model says of it."""
    settings = config.evaluation
    recorded = settings.model_dump() | {
        "short_side": evaluation_side(config),
        "long_side": config.data.long_side,
        "precision": str(dtype).removeprefix("torch."),
    }
    loader = build_eval_loader(config, dataset)
    find = build_detection(config, device, dtype)
    position = {record.image_id: i for i, record in enumerate(dataset.records)}

    def evaluate(model: nn.Module) -> tuple[Metrics, list[dict]]:
        found = detect(model, loader, find, category_ids=dataset.category_ids, observe=observe)
        # by image, in the data set's order, whichever process had it
        detections = sorted(chain.from_iterable(gather(found)), key=lambda one: position[one["image_id"]])
        if rank() > 0:
            return broadcast(None), []
        metrics = coco_metrics(
            dataset.ground_truth(), detections, backend=settings.backend, max_detections=settings.max_detections
        )
        return broadcast(replace(metrics, settings=recorded)), detections

    return evaluate
