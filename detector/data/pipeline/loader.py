"""The batches of an epoch in a reproducible order, which is a function of (seed, epoch)."""

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
from detector.data.pipeline.buckets import Buckets, group_by_bucket, round_up
from detector.data.pipeline.samplers import ImageSampler
from detector.data.pipeline.transformed import SampleKey, Transformed
from detector.data.pipeline.transforms import Resize, Transform

log = logging.getLogger(__name__)
MAX_DEATHS = 3  # the number of loader workers that may die in a run


def collate(
    samples: Sequence[Sample],
    size_divisor: int,
    canvas: Mapping[tuple[int, int], tuple[int, int]] | None = None,
) -> Batch:
    """Combine samples of any sizes to a batch.

    Images are padded at the right and the bottom to the largest height and width. Ground truths are padded to the
    largest number of boxes, and to at least one box.

    Args:
        samples: the samples.
        size_divisor: the sizes of images are rounded up to multiples of this number.
        canvas: the padded size for a rounded size (see `Buckets`). None pads only to the rounded size.
    """
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
    """A batch sampler that gives keys of samples, so that the workers of a loader need no state.

    In training, epoch e has the order that the sampler draws from (seed, e). The order is cut into full batches, and
    the images after the last full batch are left out of the epoch. An order shorter than a batch gives a single batch.
    Each process has an equal part of every batch.

    In an evaluation (`sampler` is None), an epoch has each image of the data set once, and the processes take batches
    alternately. A batch has the same images for any number of processes. The last batch may be shorter.

    Args:
        num_images: the number of images of the data set.
        batch_size: the number of images of a batch of all processes together in training, and of a single process in
            an evaluation.
        seed: the random seed.
        sampler: chooses the images of an epoch. None: see above.
        bucket: (num_images,), the bucket of each image. A batch has images of a single bucket where possible.
        rank: the number of this process.
        num_ranks: the number of processes.
        num_epochs: the number of epochs of the run, from which the progress in the keys is computed.

    Raises:
        UserError: the batch size is not a multiple of the number of processes in training.
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
        self.first_batch = 0  # the first batch of a resumed epoch
        if sampler is not None and self.batch_size % num_ranks:
            raise UserError(
                f"train.batch_size: {self.batch_size} images cannot be divided equally among {num_ranks} processes",
                "choose a multiple of the number of processes (the batch size is that of all processes together)",
            )

    def __len__(self) -> int:
        """Return the number of batches of an epoch. In an evaluation: the number of batches of this rank."""
        num_full, remainder = divmod(self.num_samples, self.batch_size)
        if self.sampler is not None:
            return num_full
        return len(range(self.rank, num_full + (remainder > 0), self.num_ranks))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = np.argsort(self.bucket, kind="stable")
        if self.sampler is not None:
            order = self.sampler.order(np.random.default_rng((self.seed, self.epoch)))
            order = order[: len(self) * self.batch_size]
            order = group_by_bucket(order, self.bucket[order], self.batch_size)
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
    """Return how many times each element occurs earlier in the order: [5, 2, 5, 5] -> [0, 0, 1, 2]."""
    by_value = np.argsort(order, kind="stable")
    values = order[by_value]
    counted = np.empty_like(order)
    counted[by_value] = np.arange(len(order)) - np.searchsorted(values, values)
    return counted


class Loader:
    """The batches of an epoch from any batch on. Neither the number of workers nor resuming changes a pixel.

    When a worker dies (usually because the machine is out of memory), new workers continue with the next batch.

    Args:
        dataset: the samples by their keys.
        batches: the keys of each batch.
        num_workers: the number of loader processes. 0 loads in the main process.
        size_divisor: as in `collate`.
        canvas: as in `collate`.

    Raises:
        UserError: during iteration, more than MAX_DEATHS workers have died.
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
            generator=torch.Generator(),  # otherwise each epoch changes the global random state that resuming restores
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
        """Yield the batches of an epoch.

        Args:
            epoch: the number of the epoch, from 0.
            first_batch: the first batch that is yielded.

        Raises:
            UserError: more than MAX_DEATHS workers have died.
        """
        while True:
            self.batches.epoch, self.batches.first_batch = epoch, first_batch
            try:
                batches = iter(self._loader)
                # When a worker dies, the signal handler of PyTorch raises at any point of the program, also in the
                # middle of a step. Without the handler, the loader raises when it waits for that worker.
                if self._loader.num_workers:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for batch in batches:
                    first_batch += 1
                    yield batch
                return
            except GeneratorExit:  # the run stops in the epoch: end the workers now, not in a garbage collection,
                del batches  # which would wait many seconds for them
                self._loader = self._make()
                raise
            except (RuntimeError, OSError, EOFError) as error:
                if not self._is_death(error):
                    raise
                self.deaths += 1
                if self.deaths > MAX_DEATHS:
                    raise UserError(
                        f"data.num_workers: loader workers died {self.deaths} times (last error: {error})",
                        "lower data.num_workers if the machine ran out of memory",
                    ) from None
                log.warning("a loader worker died (%s); new workers continue with batch %d", error, first_batch)
                self._loader = self._make()

    def _is_death(self, error: Exception) -> bool:
        """Return whether the error means that a worker died: before its batch, or while the batch was handed over."""
        text = str(error)
        was_handing_over = not isinstance(error, RuntimeError) and not text.startswith("Caught")  # in a worker's code
        return bool(self._loader.num_workers) and (text.startswith("DataLoader worker") or was_handing_over)


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
    """Return the loader of this process.

    Args:
        dataset: the data set.
        resize: the resize of each image.
        transforms: the transforms of the resized images, in their order.
        batch_size: as in `EpochBatches`.
        seed: the random seed of order and transforms.
        sampler: chooses the images of an epoch. None, for an evaluation, gives each image once, in order.
        num_workers: the number of loader processes.
        size_divisor: as in `collate`.
        buckets: the buckets of the images. None pads each batch to its largest image.
        substitute: whether an unreadable image is replaced instead of raising an error (see `Transformed`).
        num_epochs: the number of epochs of the run.

    Raises:
        UserError: as in `EpochBatches`.
    """
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
    """Kill the workers at the end of the process, which would wait for ever for workers that ignore its SIGTERM."""
    for process in multiprocessing.active_children():
        process.kill()


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # threads in the workers would compete with the training step for the cores
    for number in (signal.SIGINT, signal.SIGTERM):  # the run handles these signals, and needs batches until it is saved
        signal.signal(number, signal.SIG_IGN)
