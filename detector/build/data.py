"""Data sets and loaders, from a config."""

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

log = logging.getLogger(__name__)


def read_dataset(
    config: Config, split: str, findings: Findings, class_names: tuple[str, ...] | None = None
) -> DetectionDataset:
    """What `data.train` or `data.val` names, whole; its labels follow `class_names` where given. A path in its section
    is relative to `data.root`. What is wrong or odd with it goes to `findings`. Raises UserError."""
    model = outline(config)
    priors = torch.cat(model.head.priors((model.strides[-1], model.strides[-1])))
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
        matched_iou=config.assigner.parameters.get("foreground", 0.5),
        scale=lambda r: target_size(r.height, r.width, evaluation_side(config), config.data.long_side)[0] / r.height,
    )
    return dataset


def _settle_bits(config: Config, dataset: DetectionDataset, findings: Findings) -> None:
    """How the data set's images of 16 bits are scaled: as the config says, or by the range of their values."""
    deep = [record.path for record in dataset.records if record.is_deep]
    if deep:
        dataset.bits = deep_bits(deep) if config.data.bits == "auto" else config.data.bits
        text = f"values up to {2**dataset.bits - 1} become 0 to 255 (data.bits={dataset.bits})"
        findings.add("image_deep", range(len(deep)), lambda i: f"{deep[i]}: {text}")


def facts(dataset: DetectionDataset) -> dict[str, Any]:
    """Return what parts may ask of a data set, by the names that their constructors use."""
    return {
        "num_classes": len(dataset.class_names),
        "class_names": dataset.class_names,
        "class_counts": dataset.class_counts().tolist(),
        "labels_by_image": dataset.labels_by_image(),
    }


def require_objects(train: DetectionDataset) -> None:
    """Raise UserError where a training set has no object to learn from."""
    if not train.class_counts().sum():
        raise UserError(
            f"data.train: its {len(train)} images have no object to learn from", "check where its annotations are"
        )


def with_decisions(config: Config, train: DetectionDataset) -> Config:
    """The config with what the training set decides in place of `auto`, so that the validation set and new pictures are
    read alike: the bits of 16-bit images, and the parameters of a data set of the same type."""
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
    """The `train` or `val` data set, divided and without empty images where the config says so; the log tells what is
    wrong or odd with it and what becomes of that. Raises UserError."""
    divided = config.data.split is not None
    findings = Findings(config.data.invalid)
    dataset = read_dataset(config, "train" if divided else split, findings, class_names)
    if not (divided and split == "val"):  # which is in the same files
        for line in findings.lines():
            log.info("data.%s: %s", split, line)
    if divided:
        dataset = divide(config, dataset)[split]
    if split == "train" and not config.data.keep_empty:
        kept = [i for i, record in enumerate(dataset.records) if len(record.boxes)]
        log.info("data.train: %d images without objects left out", len(dataset) - len(kept))
        dataset = dataset.subset(kept)
    if not len(dataset):
        raise UserError(
            f"data.{split}: no image is left of the data set",
            "check its paths, data.split, data.keep_empty and what data.invalid=skip left out",
        )
    return dataset


def divide(config: Config, dataset: DetectionDataset) -> dict[str, DetectionDataset]:
    """The parts `train` and `val` that `data.split` makes of it."""
    assert config.data.split is not None
    first = stratified_split(dataset.labels_by_image(), config.data.split, config.data.split_seed)
    return {"train": dataset.subset(np.flatnonzero(first)), "val": dataset.subset(np.flatnonzero(~first))}


def num_workers(config: Config) -> int:
    """`auto`: a worker for each spare core, at most 8; none on two cores, where one would fight the training step."""
    if config.data.num_workers != "auto":
        return config.data.num_workers
    cores = num_cores()
    return 0 if cores <= 2 else min(8, cores - 1)


def build_buckets(config: Config, dataset: DetectionDataset) -> Buckets:
    """Of images as they are resized for evaluation; where training draws sizes from a range, of like shape alone."""
    sizes = [target_size(r.height, r.width, evaluation_side(config), config.data.long_side) for r in dataset.records]
    return make_buckets(np.array(sizes), config.data.aspect_buckets, outline(config).size_divisor)


def cached(config: Config, dataset: DetectionDataset) -> DetectionDataset:
    """The data set with its images kept in `data.cache`, where there is one."""
    if config.data.cache is None:
        return dataset
    return CachedDataset(dataset, config.data.cache, evaluation_side(config), config.data.long_side)


def build_train_loader(config: Config, dataset: DetectionDataset) -> Loader:
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
    """Every image once, in order; a multi-scale range is evaluated at its upper end."""
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
    side = config.data.short_side
    return side if isinstance(side, int) else max(side)
