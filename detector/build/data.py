"""Functions that build data sets and loaders from a config."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from detector.build.model import outline
from detector.config import Config
from detector.core.errors import UserError
from detector.core.machine import num_cores
from detector.data.checks.findings import Findings
from detector.data.checks.records import check_records
from detector.data.dataset import DATASETS, DetectionDataset
from detector.data.headers import deep_bits
from detector.data.pipeline.buckets import Buckets, make_buckets
from detector.data.pipeline.cache import CachedDataset
from detector.data.pipeline.loader import Loader, make_loader
from detector.data.pipeline.splitting import stratified_split
from detector.data.pipeline.transforms import Resize, target_size
from detector.geometry.anchors import AnchorGrid

log = logging.getLogger(__name__)


def read_dataset(
    config: Config, split: str, findings: Findings, class_names: tuple[str, ...] | None = None
) -> DetectionDataset:
    """Return the complete data set of `data.train` or `data.val`. Its paths are relative to `data.root`.

    Args:
        config: the config.
        split: `train` or `val`.
        findings: receives the errors and notes of the data set.
        class_names: the classes in the order of the labels. The default is the order of the data set.

    Raises:
        UserError: the data set cannot be read, or has errors that stop a training.
    """
    model = outline(config)
    priors = torch.cat(model.head.priors((model.strides[-1], model.strides[-1])))
    # as in a census: the IoU of an object with the square of a point does not describe the match
    foreground = config.assigner.parameters.get("foreground", 0.5) if isinstance(model.head.grid, AnchorGrid) else 0.0
    part = getattr(config.data, split)
    types = DATASETS.parameters(part.type)
    paths = {
        key: str(config.data.root / value)
        for key, value in part.parameters.items()
        if value is not None and Path in (types[key], *get_args(types[key]))
    }
    dataset = part.with_parameters(**paths).build({"class_names": class_names, "findings": findings})
    _settle_bits(config, dataset, findings)
    check_records(
        dataset,
        findings,
        max_objects=config.evaluation.max_detections,
        anchor_sides=(priors[:, 2:] - priors[:, :2]).unique(dim=0).numpy(),
        matched_iou=foreground,
        scale=lambda r: target_size(r.height, r.width, evaluation_side(config), config.data.long_side)[0] / r.height,
    )
    return dataset


def _settle_bits(config: Config, dataset: DetectionDataset, findings: Findings) -> None:
    """Set the number of bits of 16-bit images: the value of `data.bits`, or the range of the values in the images."""
    deep = [record.path for record in dataset.records if record.is_deep]
    if deep:
        dataset.bits = deep_bits(deep) if config.data.bits == "auto" else config.data.bits
        text = f"values of 0 to {2**dataset.bits - 1} become 0 to 255 (data.bits={dataset.bits})"
        findings.add("image_deep", range(len(deep)), lambda i: f"{deep[i]}: {text}")


def facts(dataset: DetectionDataset) -> dict[str, Any]:
    """Return the properties of a data set that parts can use, by the names of the parameters of their constructors."""
    return {
        "num_classes": len(dataset.class_names),
        "class_names": dataset.class_names,
        "class_counts": dataset.class_counts().tolist(),
        "labels_by_image": dataset.labels_by_image(),
    }


def require_objects(train: DetectionDataset) -> None:
    """Raise UserError where a training set has no object."""
    if not train.class_counts().sum():
        raise UserError(
            f"data.train: none of the {len(train)} images has an object", "check the paths of the annotations"
        )


def with_decisions(config: Config, train: DetectionDataset) -> Config:
    """Return the config with the decisions of the training set in place of `auto`.

    The decisions are the bits of 16-bit images and the parameters of a data set of the same type. The validation set
    and new pictures are then read in the same way as the training set.
    """
    data, update = config.data, {}
    if data.bits == "auto" and any(record.is_deep for record in train.records):
        update["bits"] = train.bits
    for split in ("train", "val"):
        part = getattr(data, split)
        if part is not None and part.type == data.train.type:
            decided = {key: v for key, v in train.decided.items() if part.parameters.get(key) == "auto"}
            update[split] = part.with_parameters(**decided)
    return config.model_copy(update={"data": data.model_copy(update=update)})


def build_dataset(config: Config, split: str, class_names: tuple[str, ...] | None = None) -> DetectionDataset:
    """Return the data set `train` or `val`, and log its errors and notes.

    `data.split` divides the data set, and `data.keep_empty=false` removes the images without objects.

    Args:
        config: the config.
        split: `train` or `val`.
        class_names: the classes in the order of the labels. The default is the order of the data set.

    Raises:
        UserError: the data set cannot be read, has errors that stop a training, or has no images.
    """
    is_divided = config.data.split is not None
    findings = Findings(config.data.invalid)
    dataset = read_dataset(config, "train" if is_divided else split, findings, class_names)
    if not (is_divided and split == "val"):  # the findings of the same files are in the log of `train`
        for line in findings.lines():
            log.info("data.%s: %s", split, line)
    if is_divided:
        dataset = divide(config, dataset)[split]
    if split == "train" and not config.data.keep_empty:
        with_objects = [i for i, record in enumerate(dataset.records) if len(record.boxes)]
        log.info("data.train: %d images without objects are not used", len(dataset) - len(with_objects))
        dataset = dataset.subset(with_objects)
    if not len(dataset):
        raise UserError(
            f"data.{split}: the data set has no images",
            "check its paths, data.split, data.keep_empty and the entries that data.invalid=skip has removed",
        )
    return dataset


def divide(config: Config, dataset: DetectionDataset) -> dict[str, DetectionDataset]:
    """Return the parts `train` and `val` of a data set, as `data.split` divides it."""
    assert config.data.split is not None
    first = stratified_split(dataset.labels_by_image(), config.data.split, config.data.split_seed)
    return {"train": dataset.subset(np.flatnonzero(first)), "val": dataset.subset(np.flatnonzero(~first))}


def num_workers(config: Config) -> int:
    """Return the number of loader workers.

    `auto` is the number of cores minus 1, and at most 8. On one or two cores it is 0, because a worker would slow down
    the training step.
    """
    if config.data.num_workers != "auto":
        return config.data.num_workers
    cores = num_cores()
    return 0 if cores <= 2 else min(8, cores - 1)


def build_buckets(config: Config, dataset: DetectionDataset) -> Buckets:
    """Return the buckets of images with similar aspect ratios, at the size that they have in evaluation."""
    sizes = [target_size(r.height, r.width, evaluation_side(config), config.data.long_side) for r in dataset.records]
    return make_buckets(np.array(sizes), config.data.aspect_buckets, outline(config).size_divisor)


def cached(config: Config, dataset: DetectionDataset) -> DetectionDataset:
    """Return the data set with a cache of its images in `data.cache`. Without `data.cache` it is unchanged."""
    if config.data.cache is None:
        return dataset
    return CachedDataset(dataset, config.data.cache, evaluation_side(config), config.data.long_side)


def build_train_loader(config: Config, dataset: DetectionDataset) -> Loader:
    """Return the loader of the training. Where the image sizes vary, its buckets have no fixed canvas."""
    buckets = build_buckets(config, dataset)
    known = facts(dataset)
    return make_loader(
        cached(config, dataset),
        Resize(config.data.short_side, config.data.long_side),
        [part.build(known) for part in config.data.transforms],
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        sampler=config.data.sampler.build(known),
        num_workers=num_workers(config),
        size_divisor=outline(config).size_divisor,
        buckets=buckets if isinstance(config.data.short_side, int) else replace(buckets, canvas={}),
        substitute=config.faults.max_unreadable > 0,
        num_epochs=config.train.epochs,
    )


def build_eval_loader(config: Config, dataset: DetectionDataset) -> Loader:
    """Return a loader that reads each image once, in the order of the data set, at the size of evaluation."""
    return make_loader(
        cached(config, dataset),
        Resize(evaluation_side(config), config.data.long_side),
        batch_size=config.evaluation.batch_size,
        seed=0,
        sampler=None,
        num_workers=num_workers(config),
        size_divisor=outline(config).size_divisor,
        buckets=build_buckets(config, dataset),
        substitute=config.faults.max_unreadable > 0,
    )


def evaluation_side(config: Config) -> int:
    """Return the shorter image side in evaluation, in pixels: `data.short_side`, or the upper bound of its range."""
    side = config.data.short_side
    return side if isinstance(side, int) else max(side)
