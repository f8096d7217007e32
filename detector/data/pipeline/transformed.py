"""The samples of a data set by their keys: read, resized and transformed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from detector.core.errors import UserError
from detector.core.structures import Sample
from detector.data.dataset import DetectionDataset
from detector.data.pipeline.transforms import Resize, Transform, TransformContext

MAX_SUBSTITUTES = 10  # unreadable images in succession, from which the error is raised: the folder may be missing


class SampleKey(NamedTuple):
    """The key that determines a sample together with the seed of the run.

    Attributes:
        epoch: the number of the epoch.
        index: the index of the image.
        repeat: the number of earlier samples of the image in the epoch.
        progress: the completed fraction of the run (see `TransformContext`).
    """

    epoch: int
    index: int
    repeat: int
    progress: float


class Transformed(Dataset):
    """A data set with transforms. Each sample has a separate generator with the seed (seed, epoch, index, repeat).

    Args:
        dataset: the data set.
        resize: the resize of each image.
        transforms: the transforms of the resized images, in their order.
        seed: the random seed.
        substitute: the replacement of an unreadable image. None raises the error. "another" draws another image.
            "blank" gives an empty image of the annotated size, so that an evaluation counts its objects as missed.
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

        def draw(index: int | None = None) -> Sample:
            if index is None:
                index = int(rng.integers(len(self.dataset)))
            return self.resize(self._read(index, rng, unreadable), short_side)

        sample = self.resize(sample, short_side)
        context = TransformContext(rng, progress, draw)
        for transform in self.transforms:
            sample = transform(sample, context)
        return replace(sample, unreadable=tuple(unreadable))

    def _read(
        self, index: int, rng: np.random.Generator, unreadable: list[str], tries: int = MAX_SUBSTITUTES
    ) -> Sample:
        """Read an image or its replacement. The function appends the errors of unreadable images to `unreadable`."""
        try:
            return self.dataset[index]
        except UserError as error:
            if self.substitute is None or tries == 1:
                raise
            unreadable.append(str(error))
        if self.substitute == "blank":
            return self.dataset.blank(index)
        return self._read(int(rng.integers(len(self.dataset))), rng, unreadable, tries - 1)
