"""From the key of a sample to the sample: read, resized, transformed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from detector.core.errors import UserError
from detector.core.structures import Sample
from detector.data.dataset import DetectionDataset
from detector.data.pipeline.transforms import Resize, Transform, TransformContext

MAX_SUBSTITUTES = 10  # in a row: so many unreadable images mean that the folder is gone


class SampleKey(NamedTuple):
    """What decides a sample, beside the seed of the run: the epoch; the index of the image; repeat, how often the epoch
    had the image before; progress, the part of the run that is done (see `TransformContext`)."""

    epoch: int
    index: int
    repeat: int
    progress: float


class Transformed(Dataset):
    """A data set behind its transforms. The sample of a key draws from a generator of its own, which (seed, epoch,
    index, repeat) seed.

    `substitute` says what stands in for an image that cannot be read: None, nothing, it is an error; `another`, an
    image drawn in its place; `blank`, an empty picture of its size, so that an evaluation counts its objects as missed.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        resize: Resize,
        transforms: Sequence[Transform],
        seed: int,
        substitute: Literal["another", "blank"] | None = None,
    ):
        self.dataset = dataset
        self.resize = resize
        self.transforms = transforms
        self.seed = seed
        self.substitute = substitute

    def __getitem__(self, index: SampleKey) -> Sample:
        epoch, image, repeat, progress = index
        rng = np.random.default_rng((self.seed, epoch, image, repeat))
        unreadable: list[str] = []
        sample = self._read(image, rng, unreadable)
        short_side = self.resize.draw_side(rng)

        def draw() -> Sample:
            return self.resize(self._read(int(rng.integers(len(self.dataset))), rng, unreadable), short_side)

        sample = self.resize(sample, short_side)
        context = TransformContext(rng, progress, draw)
        for transform in self.transforms:
            sample = transform(sample, context)
        return replace(sample, unreadable=tuple(unreadable))

    def _read(
        self, index: int, rng: np.random.Generator, unreadable: list[str], tries: int = MAX_SUBSTITUTES
    ) -> Sample:
        """Read an image, or what stands in for it. The errors of unreadable images go to `unreadable`."""
        try:
            return self.dataset[index]
        except UserError as error:
            if self.substitute is None or tries == 1:
                raise
            unreadable.append(str(error))
        if self.substitute == "blank":
            return self.dataset.blank(index)
        return self._read(int(rng.integers(len(self.dataset))), rng, unreadable, tries - 1)
