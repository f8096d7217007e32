"""Batches in a reproducible order: which samples, with which random numbers, is a function of (seed, epoch, index)."""

import signal
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

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
    """A batch sampler over (epoch, index) pairs, so that a loader's workers need no state of their own.

    With `shuffle`, epoch e is the permutation drawn from (seed, e), cut into whole batches (the rest of the permutation
    waits for another epoch; a data set smaller than a batch is one batch); without, the order of the data set.
    """

    def __init__(self, num_samples: int, batch_size: int, *, seed: int, shuffle: bool):
        self.num_samples = num_samples
        self.batch_size = min(batch_size, num_samples)
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.first_batch = 0  # a resumed epoch starts here

    def __len__(self) -> int:
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole if self.shuffle else whole + (rest > 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.num_samples)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_samples)
        for batch in range(self.first_batch, len(self)):
            start = batch * self.batch_size
            yield [(self.epoch, int(i)) for i in order[start : start + self.batch_size]]


class Transformed(Dataset):
    """A data set behind its transforms; item (epoch, index) draws from a generator of its own."""

    def __init__(self, dataset: Sequence[Sample], transforms: Sequence[Transform], seed: int):
        self.dataset = dataset
        self.transforms = transforms
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
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
    shuffle: bool,
    num_workers: int,
    size_divisor: int,
) -> DataLoader:
    """A loader whose `batch_sampler.epoch` chooses the epoch; neither workers nor resuming change a pixel."""
    return DataLoader(
        Transformed(dataset, transforms, seed),
        batch_sampler=EpochBatches(len(dataset), batch_size, seed=seed, shuffle=shuffle),
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
