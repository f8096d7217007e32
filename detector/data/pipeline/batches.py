"""The batches of an epoch: which samples each batch has, and their combination to tensors."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from detector.core.errors import UserError
from detector.core.structures import IGNORED, PADDING_COLOR, Batch, Sample
from detector.data.pipeline.buckets import group_by_bucket, round_up
from detector.data.pipeline.samplers import ImageSampler
from detector.data.pipeline.transformed import SampleKey


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
