"""The loader of the batches in a reproducible order, which is a function of (seed, epoch)."""

import atexit
import logging
import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import cv2
import torch
from torch.utils.data import DataLoader

from detector.core import distributed
from detector.core.errors import UserError
from detector.core.structures import Batch
from detector.data.dataset import DetectionDataset
from detector.data.pipeline.batches import EpochBatches, collate
from detector.data.pipeline.buckets import Buckets
from detector.data.pipeline.samplers import ImageSampler
from detector.data.pipeline.transformed import Transformed
from detector.data.pipeline.transforms import Resize, Transform

log = logging.getLogger(__name__)
MAX_DEATHS = 3  # the number of loader workers that may die in a run


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
