"""The one place where a config becomes objects."""

import logging
import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from detector.config import Config, to_yaml
from detector.core.distributed import broadcast, gather, rank, world_size
from detector.core.errors import UserError
from detector.core.machine import num_cores
from detector.core.registry import Registry
from detector.core.structures import Batch, Detections, Predictions, Targets
from detector.data import DATASETS, IMAGE_SAMPLERS, DetectionDataset
from detector.data.checks.findings import Findings
from detector.data.checks.fingerprint import fingerprint
from detector.data.checks.records import check_records
from detector.data.headers import deep_bits
from detector.data.images import MAX_PIXELS
from detector.data.pipeline.buckets import Buckets, make_buckets
from detector.data.pipeline.cache import CachedDataset
from detector.data.pipeline.loader import Loader, make_loader
from detector.data.pipeline.splitting import stratified_split
from detector.data.pipeline.transforms import Augment, Resize, target_size
from detector.engine.evaluate import detect, detect_batch, predict
from detector.engine.guard import Faults
from detector.engine.optimization import fit_warmup, learning_rate, make_optimizer
from detector.engine.precision import choose_device, choose_dtype, choose_inference_dtype, choose_memory_format
from detector.engine.trainer import Schedule, Trainer
from detector.engine.views import make_views
from detector.evaluation.coco import coco_metrics
from detector.geometry import ASSIGNERS
from detector.geometry.anchors import AnchorGrid, default_sizes
from detector.imbalance.census import Setting, take_census
from detector.imbalance.probe import Probe
from detector.losses import ANCHOR_SAMPLERS, BOX_LOSSES, CLASSIFICATION_LOSSES
from detector.losses.base import ClassificationLoss
from detector.losses.criterion import Criterion
from detector.models.backbones.resnet import frozen_batch_norm_is_random
from detector.models.detector import RetinaNet, size_divisor
from detector.models.weights.load import load_weights

log = logging.getLogger(__name__)


def read_dataset(
    config: Config, split: str, findings: Findings, class_names: tuple[str, ...] | None = None
) -> DetectionDataset:
    """What `data.train` or `data.val` names, whole; its labels follow `class_names` where given. A path in its section
    is relative to `data.root`. What is wrong or odd with it goes to `findings`. Raises UserError."""
    spec = dict(getattr(config.data, split))
    name = spec.pop("type")
    annotations = DATASETS.parameters(name)
    for key, value in spec.items():
        if value is not None and Path in (annotations[key], *get_args(annotations[key])):
            spec[key] = str(config.data.root / value)
    dataset = DATASETS.build(name, class_names, findings, **spec)
    _settle_bits(config, dataset, findings)
    base = torch.cat(build_anchor_grid(config).base())
    check_records(
        dataset,
        findings,
        max_objects=config.evaluation.max_detections,
        anchor_sides=(base[:, 2:] - base[:, :2]).numpy(),
        matched_iou=config.assigner.get("foreground", 0.5),
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
        spec = getattr(data, split)
        if spec is not None and spec["type"] == data.train["type"]:
            update[split] = spec | {key: v for key, v in train.decided.items() if spec.get(key) == "auto"}
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
    first = stratified_split(dataset.labels_by_image(), config.data.split, config.data.split_seed)
    return {"train": dataset.subset(np.flatnonzero(first)), "val": dataset.subset(np.flatnonzero(~first))}


def build_anchor_grid(config: Config) -> AnchorGrid:
    model = config.model
    sizes = model.anchor_sizes or default_sizes(model.levels, model.exact_anchors)
    return AnchorGrid(model.levels, sizes, model.anchor_ratios, model.exact_anchors)


def build_model(config: Config, num_classes: int) -> RetinaNet:
    """The network as it is initialised, without `model.weights`, on the CPU."""
    sections = config.model.model_dump(exclude={"weights"})
    return RetinaNet(num_classes, **sections)


def build_trained_model(config: Config, dataset: DetectionDataset) -> RetinaNet:
    """The network with `model.weights`, the rest drawn from `train.seed`, for `dataset`'s classes."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(config.train.seed % 2**32)
    model = build_model(config, len(dataset.class_names))
    load_weights(model, config.model.backbone, config.model.weights, dataset.class_names)
    if config.model.norm == "frozen" and frozen_batch_norm_is_random(model.backbone.state_dict()):
        raise UserError(
            "model.norm: frozen batch norm normalises nothing without pretrained weights",
            "set model.weights (e.g. IMAGENET1K_V1), or model.norm=group or batch to train from scratch",
        )
    return model


def build_part(registry: Registry, spec: dict[str, Any], *injected: Any) -> Any:
    """The part of a resolved spec `{type: NAME, ...}`."""
    parameters = {key: value for key, value in spec.items() if key != "type"}
    return registry.build(spec["type"], *injected, **parameters)


def build_criterion(config: Config, dataset: DetectionDataset) -> Criterion:
    """The losses for a training set; `num_classes` and `class_counts`, where a loss has them and the config does not
    say, are the set's own. Raises UserError where the config says otherwise."""
    num_classes = len(dataset.class_names)
    return Criterion(
        build_classification_loss(config.loss.classification, dataset),
        build_part(BOX_LOSSES, config.loss.box),
        build_part(ANCHOR_SAMPLERS, config.anchor_sampler, num_classes),
        num_classes=num_classes,
        box_weight=config.loss.box_weight,
        normaliser=config.loss.normaliser,
    )


def build_classification_loss(spec: dict[str, Any], dataset: DetectionDataset) -> ClassificationLoss:
    """The loss of a resolved spec, with what it needs to know of the training set; see `build_criterion`."""
    num_classes = len(dataset.class_names)
    spec = dict(spec)
    for key in ("alpha", "class_weights", "class_counts"):
        if isinstance(spec.get(key), list) and len(spec[key]) != num_classes:
            raise UserError(f"loss.classification.{key}: {len(spec[key])} values for {num_classes} classes")
    if spec.get("num_classes", num_classes) not in (None, num_classes):
        raise UserError(f"loss.classification.num_classes: {spec['num_classes']}, but the data set has {num_classes}")
    if "num_classes" in spec:
        spec["num_classes"] = num_classes
    if "class_counts" in spec and spec["class_counts"] is None:
        spec["class_counts"] = dataset.class_counts().tolist()
    return build_part(CLASSIFICATION_LOSSES, spec)


def build_census(config: Config, dataset: DetectionDataset) -> dict:
    """The census of a data set with the config's anchors and assigner, at evaluation's image size."""
    setting = Setting(
        grid=build_anchor_grid(config),
        assigner=build_part(ASSIGNERS, config.assigner, len(dataset.class_names)),
        target_size=partial(target_size, short_side=evaluation_side(config), long_side=config.data.long_side),
        divisor=size_divisor(config.model.levels),
        prior=0.5 if config.model.prior is None else config.model.prior,
        num_classes=len(dataset.class_names),
    )
    return take_census(dataset.records, dataset.class_names, setting)


def build_probe(
    config: Config, dataset: DetectionDataset, device: torch.device, dtype: torch.dtype
) -> Callable[[nn.Module], Probe]:
    """A function from a model to what a pass over `dataset` shows, with every registered loss: the config's own as it
    is set there, the others by their defaults."""
    own = config.loss.classification
    specs = {name: CLASSIFICATION_LOSSES.resolve(name) for name in CLASSIFICATION_LOSSES.names()} | {own["type"]: own}
    loader = build_eval_loader(config, dataset)

    def run(model: nn.Module) -> Probe:
        probe = Probe({name: build_classification_loss(spec, dataset) for name, spec in specs.items()})
        observe = with_targets(config, len(dataset.class_names), lambda _, *seen: probe.update(*seen))
        for seen in predict(model, loader, device=device, dtype=dtype):
            observe(*seen)
        return probe

    return run


def with_targets(
    config: Config, num_classes: int, see: Callable[[Batch, Predictions, Targets], None]
) -> Callable[[Batch, Predictions], None]:
    """`see` as an observer of a pass: beside what the model says, what its anchors should be."""
    assigner = build_part(ASSIGNERS, config.assigner, num_classes)

    def observe(batch: Batch, predictions: Predictions) -> None:
        see(
            batch,
            predictions,
            assigner(predictions.priors, batch.boxes, batch.labels, batch.ignore, predictions.level_sizes),
        )

    return observe


def num_workers(config: Config) -> int:
    """`auto`: a worker for each spare core, at most 8; none on two cores, where one would fight the training step."""
    if config.data.num_workers != "auto":
        return config.data.num_workers
    cores = num_cores()
    return 0 if cores <= 2 else min(8, cores - 1)


def build_buckets(config: Config, dataset: DetectionDataset) -> Buckets:
    """Of images as they are resized for evaluation; where training draws sizes from a range, of like shape alone."""
    sizes = [target_size(r.height, r.width, evaluation_side(config), config.data.long_side) for r in dataset.records]
    return make_buckets(np.array(sizes), config.data.aspect_buckets, size_divisor(config.model.levels))


def cached(config: Config, dataset: DetectionDataset) -> DetectionDataset:
    """The data set with its images kept in `data.cache`, where there is one."""
    if config.data.cache is None:
        return dataset
    return CachedDataset(dataset, config.data.cache, evaluation_side(config), config.data.long_side)


def build_train_loader(config: Config, dataset: DetectionDataset) -> Loader:
    buckets = build_buckets(config, dataset)
    return make_loader(
        cached(config, dataset),
        [
            Resize(config.data.short_side, config.data.long_side),
            Augment(**config.data.augment.model_dump()),
        ],
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        sampler=build_part(IMAGE_SAMPLERS, config.data.sampler, dataset.labels_by_image(), len(dataset.class_names)),
        num_workers=num_workers(config),
        size_divisor=size_divisor(config.model.levels),
        buckets=buckets if isinstance(config.data.short_side, int) else replace(buckets, canvas={}),
        substitute=config.faults.max_unreadable > 0,
    )


def build_eval_loader(config: Config, dataset: DetectionDataset) -> Loader:
    """Every image once, in order; a multi-scale range is evaluated at its upper end."""
    return make_loader(
        cached(config, dataset),
        [Resize(evaluation_side(config), config.data.long_side)],
        batch_size=config.evaluation.batch_size,
        seed=0,
        sampler=None,
        num_workers=num_workers(config),
        size_divisor=size_divisor(config.model.levels),
        buckets=build_buckets(config, dataset),
        substitute=config.faults.max_unreadable > 0,
    )


def evaluation_side(config: Config) -> int:
    side = config.data.short_side
    return side if isinstance(side, int) else max(side)


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
        size_divisor=size_divisor(config.model.levels),
        **settings.postprocessing,
    )


def build_evaluation(
    config: Config,
    dataset: DetectionDataset,
    device: torch.device,
    dtype: torch.dtype,
    observe: Callable[[Batch, Predictions], None] | None = None,
) -> Callable[[nn.Module], tuple[dict, list[dict]]]:
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

    def evaluate(model: nn.Module) -> tuple[dict, list[dict]]:
        found = detect(model, loader, find, category_ids=dataset.category_ids, observe=observe)
        # by image, in the data set's order, whichever process had it
        detections = sorted(chain.from_iterable(gather(found)), key=lambda one: position[one["image_id"]])
        if rank() > 0:
            return broadcast(None), []
        metrics = coco_metrics(
            dataset.ground_truth(), detections, backend=settings.backend, max_detections=settings.max_detections
        )
        return broadcast(metrics | {"settings": recorded}), detections

    return evaluate


def place(
    model: nn.Module, config: Config, inference_device: str | None = None
) -> tuple[nn.Module, torch.device, torch.dtype]:
    """The model on its device and in its memory format; the device; the format to compute in.

    They are those of the config's training. With `inference_device` (auto, cpu or cuda), a training on another machine
    decides neither the device nor a format that the device does not multiply. Raises UserError for cuda without a GPU.
    """
    if inference_device is None:
        device = choose_device(config.train.device)
        dtype = choose_dtype(config.train.precision, device)
    else:
        device = choose_device(inference_device, "device")
        dtype = choose_inference_dtype(config.train.precision, device)
        if config.train.device not in ("auto", device.type):
            log.info("running on %s; train.device=%s is for training alone", device, config.train.device)
    layout = choose_memory_format(config.train.channels_last, device, dtype)
    return model.to(device, memory_format=layout), device, dtype


def build_trainer(
    config: Config, model: RetinaNet, train: DetectionDataset, val: DetectionDataset, folder: Path
) -> Trainer:
    """Everything a run needs, on its device, before the first step."""
    settings = config.train
    shared = {record.path.resolve() for record in train.records} & {record.path.resolve() for record in val.records}
    if shared:
        log.warning(
            "data.val: %d of its %d images are in data.train as well (first: %s), so its scores will be too good; "
            "validate on other images",
            *(len(shared), len(val), min(shared)),
        )
    model, device, dtype = place(model, config)
    if config.model.norm == "sync" and device.type == "cpu" and world_size() > 1:
        raise UserError(
            f"model.norm: sync shares statistics between GPUs, and these {world_size()} processes are on a CPU",
            "set model.norm=group, or batch for statistics of each process's own",
        )
    loader = build_train_loader(config, train)
    steps_per_epoch = len(loader) // settings.accumulation
    if steps_per_epoch == 0:
        raise UserError(
            f"train.accumulation: {settings.accumulation} batches a step, but an epoch has only {len(loader)}",
            "lower it or train.batch_size",
        )
    schedule = Schedule(
        settings.epochs,
        steps_per_epoch,
        settings.accumulation,
        settings.evaluate_every,
        settings.log_every,
        settings.meter_every,
        settings.save_every,
    )
    warmup_steps = fit_warmup(settings.warmup_steps, schedule.num_steps)
    if warmup_steps < settings.warmup_steps:
        log.info(
            "train.warmup_steps: %d steps are more than a tenth of this run's %d; the warm-up takes %d steps",
            settings.warmup_steps,
            schedule.num_steps,
            warmup_steps,
        )
    return Trainer(
        model,
        build_criterion(config, train).to(device),
        build_part(ASSIGNERS, config.assigner, len(train.class_names)),
        make_optimizer(
            model,
            name=settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        ),
        loader,
        schedule=schedule,
        rate=partial(
            learning_rate,
            num_steps=schedule.num_steps,
            peak=settings.lr,
            schedule=settings.schedule,
            milestones=settings.milestones,
            step_factor=settings.step_factor,
            warmup_steps=warmup_steps,
            warmup_factor=settings.warmup_factor,
        ),
        evaluate=build_evaluation(config, val, device, dtype),
        description={
            "config": to_yaml(config),
            "class_names": list(train.class_names),
            "category_ids": list(train.category_ids),
            "data": {"train": fingerprint(train), "val": fingerprint(val)},
        },
        folder=folder,
        device=device,
        dtype=dtype,
        clip_norm=settings.clip_norm,
        ema_decay=settings.ema_decay,
        prior=0.5 if config.model.prior is None else config.model.prior,
        faults=Faults(**config.faults.model_dump()),
        keep_checkpoints=settings.keep_checkpoints,
        compiled=settings.compile,
    )
