"""Batches in a reproducible order: the samples of an epoch are a function of (seed, epoch)."""

import atexit
import logging
import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from detector.core import distributed
from detector.core.errors import UserError
from detector.core.structures import IGNORED, PADDING_COLOR, Batch, Sample
from detector.data.dataset import DetectionDataset
from detector.data.pipeline.buckets import Buckets, gather_alike, round_up
from detector.data.pipeline.samplers import ImageSampler
from detector.data.pipeline.transformed import SampleKey, Transformed
from detector.data.pipeline.transforms import Resize, Transform

log = logging.getLogger(__name__)
MAX_DEATHS = 3  # of loader workers, in a run


def collate(
    samples: Sequence[Sample],
    size_divisor: int,
    canvas: Mapping[tuple[int, int], tuple[int, int]] | None = None,
) -> Batch:
    """Images of any sizes, padded at the right and the bottom to the largest, rounded up to `size_divisor`; at least
    one (padded) ground truth an image. `canvas`: rounded sizes that count as larger ones (see `Buckets`)."""
    sizes = [s.image.shape[:2] for s in samples]
    rounded = [tuple(round_up(size, size_divisor).tolist()) for size in sizes]
    height, width = (max(side) for side in zip(*((canvas or {}).get(size, size) for size in rounded), strict=True))
    images = np.empty((len(samples), height, width, 3), dtype=np.uint8)
    num_boxes = max(1, *(len(s.boxes) for s in samples))
    boxes = np.zeros((len(samples), num_boxes, 4), dtype=np.float32)
    labels = np.full((len(samples), num_boxes), IGNORED, dtype=np.int64)
    ignore = np.zeros((len(samples), num_boxes), dtype=bool)
    for i, (sample, (h, w)) in enumerate(zip(samples, sizes, strict=True)):
        images[i, :h, :w] = sample.image
        images[i, h:] = PADDING_COLOR
        images[i, :h, w:] = PADDING_COLOR
        n = len(sample.boxes)
        boxes[i, :n], labels[i, :n], ignore[i, :n] = sample.boxes, sample.labels, sample.ignore
    return Batch(
        images=torch.from_numpy(images).permute(0, 3, 1, 2),
        sizes=torch.tensor(sizes),
        original_sizes=torch.tensor([s.original_size for s in samples]),
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(labels),
        ignore=torch.from_numpy(ignore),
        image_ids=tuple(s.image_id for s in samples),
        file_names=tuple(s.file_name for s in samples),
        unreadable=tuple(error for s in samples for error in s.unreadable),
    )


class EpochBatches:
    """A batch sampler over keys of samples, so that a loader's workers need no state of their own.

    With a `sampler`, epoch e is the order drawn from (seed, e), cut into whole batches (the rest of the order waits for
    another epoch; an order shorter than a batch is one batch), and each of the `num_ranks` processes has an equal part
    of every batch. Without, it is the order of the data set, and the processes take whole batches in turn: every image
    is there once, in the same batch however many they are. Batches are of one `bucket` (of each image) where possible.
    `num_epochs` is the length of the run, by which the progress in the keys counts.
    Raises UserError where a batch cannot be dealt out equally.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        seed: int,
        sampler: ImageSampler | None,
        bucket: np.ndarray | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        num_epochs: int = 1,
    ):
        self.num_samples = num_images if sampler is None else len(sampler)
        self.batch_size = min(batch_size, self.num_samples)
        self.seed = seed
        self.sampler = sampler
        self.bucket = np.zeros(num_images, dtype=np.int64) if bucket is None else bucket
        self.rank = rank
        self.num_ranks = num_ranks
        self.num_epochs = num_epochs
        self.epoch = 0
        self.first_batch = 0  # a resumed epoch starts here
        if sampler is not None and self.batch_size % num_ranks:
            raise UserError(
                f"train.batch_size: {self.batch_size} images cannot be dealt out equally to {num_ranks} processes",
                "choose a multiple of their number (it is the batch of all of them together)",
            )

    def __len__(self) -> int:
        """Training: an epoch's batches, the same on every rank; evaluation: this rank's."""
        whole, rest = divmod(self.num_samples, self.batch_size)
        if self.sampler is not None:
            return whole
        return len(range(self.rank, whole + (rest > 0), self.num_ranks))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = np.argsort(self.bucket, kind="stable")
        if self.sampler is not None:
            order = self.sampler.order(np.random.default_rng((self.seed, self.epoch)))
            order = order[: len(self) * self.batch_size]
            order = gather_alike(order, self.bucket[order], self.batch_size)
        images = list(zip(order.tolist(), repeats(order).tolist(), strict=True))
        for batch in range(self.first_batch, len(self)):
            if self.sampler is None:
                start, size = (batch * self.num_ranks + self.rank) * self.batch_size, self.batch_size
            else:
                size = self.batch_size // self.num_ranks
                start = batch * self.batch_size + self.rank * size
            progress = (self.epoch + batch / len(self)) / self.num_epochs
            yield [SampleKey(self.epoch, *image, progress) for image in images[start : start + size]]


def repeats(order: np.ndarray) -> np.ndarray:
    """How often each element was there before: [5, 2, 5, 5] -> [0, 0, 1, 2]."""
    by_value = np.argsort(order, kind="stable")
    values = order[by_value]
    counted = np.empty_like(order)
    counted[by_value] = np.arange(len(order)) - np.searchsorted(values, values)
    return counted


class Loader:
    """The batches of any epoch, from any of them on; neither workers nor resuming change a pixel.

    Where a worker dies (killed for its memory, mostly) new ones continue with the batch that was due, up to
    MAX_DEATHS times; then UserError.
    """

    def __init__(
        self,
        dataset: Transformed,
        batches: EpochBatches,
        *,
        num_workers: int,
        size_divisor: int,
        canvas: Mapping[tuple[int, int], tuple[int, int]],
    ):
        self.dataset = dataset
        self.batches = batches
        self.deaths = 0
        self._collate = partial(collate, size_divisor=size_divisor, canvas=canvas)
        self._make = partial(
            DataLoader,
            dataset,
            batch_sampler=batches,
            collate_fn=self._collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # else each pass would draw from the global stream, which resuming restores
            pin_memory=torch.cuda.is_available(),
        )
        self._loader = self._make()
        if num_workers:
            atexit.register(_kill_workers)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def first_batch(self) -> Batch:
        """Return this process's first batch of the first epoch, read without loader workers."""
        self.batches.epoch = self.batches.first_batch = 0
        return self._collate([self.dataset[key] for key in next(iter(self.batches))])

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        while True:
            self.batches.epoch, self.batches.first_batch = epoch, first_batch
            try:
                batches = iter(self._loader)
                # PyTorch would raise wherever the program stands when a worker dies, in the middle of a step too; the
                # loader notices by itself as soon as it waits for that worker
                if self._loader.num_workers:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for batch in batches:
                    first_batch += 1
                    yield batch
                return
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker"):
                    raise
                self.deaths += 1
                if self.deaths > MAX_DEATHS:
                    raise UserError(
                        f"data.num_workers: loader workers died {self.deaths} times (the last: {error})",
                        "where the machine ran out of memory, use fewer",
                    ) from None
                log.warning("a loader worker died (%s); others continue with batch %d", error, first_batch)
                self._loader = self._make()


def make_loader(
    dataset: DetectionDataset,
    resize: Resize,
    transforms: Sequence[Transform] = (),
    *,
    batch_size: int,
    seed: int,
    sampler: ImageSampler | None,
    num_workers: int,
    size_divisor: int,
    buckets: Buckets | None = None,
    substitute: bool = False,
    num_epochs: int = 1,
) -> Loader:
    """This process's part of the batches. `sampler` chooses an epoch's images; None, for evaluation, is every image
    once, in order (of their `buckets`). Where `substitute`, an image that cannot be read is no error (see
    `Transformed`). `num_epochs`: the length of the run."""
    kind = None if not substitute else "blank" if sampler is None else "another"
    run = {"rank": distributed.rank(), "num_ranks": distributed.world_size(), "num_epochs": num_epochs}
    bucket, canvas = (None, {}) if buckets is None else (buckets.of_image, buckets.canvas)
    batches = EpochBatches(len(dataset), batch_size, seed=seed, sampler=sampler, bucket=bucket, **run)
    return Loader(
        Transformed(dataset, resize, transforms, seed, kind),
        batches,
        num_workers=num_workers,
        size_divisor=size_divisor,
        canvas=canvas,
    )


def _kill_workers() -> None:
    """At the process's end, which would wait for ever for workers that ignore its SIGTERM."""
    for process in multiprocessing.active_children():
        process.kill()


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # a team of threads in each worker would fight the training step for the cores
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the run, which still needs its batches to save itself
        signal.signal(number, signal.SIG_IGN)
