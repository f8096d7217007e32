"""Functions that build detection and evaluation from a config."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import nn

from detector.build.assigners import build_assigner
from detector.build.data import build_eval_loader, evaluation_side
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
    config: Config, dataset: DetectionDataset, observe: Callable[[Batch, Predictions, Targets], None]
) -> Callable[[Batch, Predictions], None]:
    """Return an observer of a pass over a data set that also computes the targets of each batch.

    Args:
        config: the config, whose assigner computes the targets.
        dataset: the data set.
        observe: called with each batch, its predictions and its targets.
    """
    assigner = build_assigner(config, dataset)

    def add_targets(batch: Batch, predictions: Predictions) -> None:
        observe(batch, predictions, assigner(predictions.priors, batch.truth, predictions))

    return add_targets


def build_detection(config: Config, device: torch.device, dtype: torch.dtype) -> Callable[..., list[Detections]]:
    """Return `detect_batch` with the settings of `evaluation`: a function from a model and a batch to detections.

    Args:
        config: the config.
        device: the device of the model.
        dtype: the data type to compute in.

    Raises:
        UserError: with `data.short_side` and `evaluation.scales`, a square image has more than MAX_PIXELS pixels.
    """
    settings = config.evaluation
    side, largest = min(evaluation_side(config), config.data.long_side), math.isqrt(MAX_PIXELS)
    if side * max(settings.scales) > largest:
        key, value, limit = (
            ("data.short_side", side, largest)
            if side > largest
            else ("evaluation.scales", max(settings.scales), largest / side)
        )
        raise UserError(f"{key}: {value:g} gives images of more than {MAX_PIXELS} pixels", f"set at most {limit:.5g}")
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
    """Return a function from a model to COCO's metrics and the detections on a data set.

    The metrics contain their settings. Only rank 0 gets the detections, and the other ranks get an empty list.

    Args:
        config: the config.
        dataset: the data set.
        device: the device of the model.
        dtype: the data type to compute in.
        observe: called with each batch of this process and the predictions of the model.
    """
    settings = config.evaluation
    all_settings = settings.model_dump() | {
        "short_side": evaluation_side(config),
        "long_side": config.data.long_side,
        "precision": str(dtype).removeprefix("torch."),
    }
    loader = build_eval_loader(config, dataset)
    detect_images = build_detection(config, device, dtype)
    position = {record.image_id: i for i, record in enumerate(dataset.records)}

    def evaluate(model: nn.Module) -> tuple[Metrics, list[dict]]:
        of_this_rank = detect(model, loader, detect_images, category_ids=dataset.category_ids, observe=observe)
        # the order of the images is that of the data set, also with several processes
        detections = sorted(
            chain.from_iterable(gather(of_this_rank)), key=lambda detection: position[detection["image_id"]]
        )
        if rank() > 0:
            return broadcast(None), []
        metrics = coco_metrics(
            dataset.ground_truth(), detections, backend=settings.backend, max_detections=settings.max_detections
        )
        return broadcast(replace(metrics, settings=all_settings)), detections

    return evaluate
