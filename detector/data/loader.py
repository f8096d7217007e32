"""Batches in a reproducible order: which samples is a function of (seed, epoch), with which random numbers one of
(seed, epoch, index, repeat)."""

import signal
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from detector.data.samplers import ImageSampler
from detector.data.transforms import PADDING_COLOUR, Transform
from detector.structures import IGNORED, Batch, Sample


def collate(samples: Sequence[Sample], size_divisor: int) -> Batch:
    """Images of any sizes, padded at the right and the bottom to the largest, rounded up to `size_divisor`; at least
    one (padded) ground truth an image."""
    sizes = [s.image.shape[:2] for s in samples]
    height, width = (-(-max(side) // size_divisor) * size_divisor for side in zip(*sizes, strict=True))
    images = np.empty((len(samples), height, width, 3), dtype=np.uint8)
    num_boxes = max(1, *(len(s.boxes) for s in samples))
    boxes = np.zeros((len(samples), num_boxes, 4), dtype=np.float32)
    labels = np.full((len(samples), num_boxes), IGNORED, dtype=np.int64)
    ignore = np.zeros((len(samples), num_boxes), dtype=bool)
    for i, (sample, (h, w)) in enumerate(zip(samples, sizes, strict=True)):
        images[i, :h, :w] = sample.image
        images[i, h:] = PADDING_COLOUR
        images[i, :h, w:] = PADDING_COLOUR
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
    )


class EpochBatches:
    """A batch sampler over (epoch, index, repeat), so that a loader's workers need no state of their own; repeat counts
    the times that the epoch had the image before.

    With a `sampler`, epoch e is the order drawn from (seed, e), cut into whole batches (the rest of the order waits for
    another epoch; an order shorter than a batch is one batch); without, the order of the data set.
    """

    def __init__(self, num_images: int, batch_size: int, *, seed: int, sampler: ImageSampler | None):
        self.num_samples = num_images if sampler is None else len(sampler)
        self.batch_size = min(batch_size, self.num_samples)
        self.seed = seed
        self.sampler = sampler
        self.epoch = 0
        self.first_batch = 0  # a resumed epoch starts here

    def __len__(self) -> int:
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole + (rest > 0 and self.sampler is None)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order = np.arange(self.num_samples)
        if self.sampler is not None:
            order = self.sampler.order(np.random.default_rng((self.seed, self.epoch)))
        keys = [(self.epoch, *key) for key in zip(order.tolist(), repeats(order).tolist(), strict=True)]
        for batch in range(self.first_batch, len(self)):
            start = batch * self.batch_size
            yield keys[start : start + self.batch_size]


def repeats(order: np.ndarray) -> np.ndarray:
    """How often each element was there before: [5, 2, 5, 5] -> [0, 0, 1, 2]."""
    by_value = np.argsort(order, kind="stable")
    values = order[by_value]
    counted = np.empty_like(order)
    counted[by_value] = np.arange(len(order)) - np.searchsorted(values, values)
    return counted


class Transformed(Dataset):
    """A data set behind its transforms; item (epoch, index, repeat) draws from a generator of its own."""

    def __init__(self, dataset: Sequence[Sample], transforms: Sequence[Transform], seed: int):
        self.dataset = dataset
        self.transforms = transforms
        self.seed = seed

    def __getitem__(self, key: tuple[int, int, int]) -> Sample:
        epoch, index, repeat = key
        rng = np.random.default_rng((self.seed, epoch, index, repeat))
        sample = self.dataset[index]
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample


class _Collate:
    def __init__(self, size_divisor: int):
        self.size_divisor = size_divisor

    def __call__(self, samples: list[Sample]) -> Batch:
        return collate(samples, self.size_divisor)


def make_loader(
    dataset: Sequence[Sample],
    transforms: Sequence[Transform],
    *,
    batch_size: int,
    seed: int,
    sampler: ImageSampler | None,
    num_workers: int,
    size_divisor: int,
) -> DataLoader:
    """A loader whose `batch_sampler.epoch` chooses the epoch; neither workers nor resuming change a pixel.

    `sampler` chooses an epoch's images; None is every image once, in order.
    """
    return DataLoader(
        Transformed(dataset, transforms, seed),
        batch_sampler=EpochBatches(len(dataset), batch_size, seed=seed, sampler=sampler),
        collate_fn=_Collate(size_divisor),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else each pass would draw from the global stream, which resuming must restore
        pin_memory=torch.cuda.is_available(),
    )


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # a team of threads in each worker would fight the training step for the cores
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the run, which still needs its batches to save itself
        signal.signal(number, signal.SIG_IGN)
