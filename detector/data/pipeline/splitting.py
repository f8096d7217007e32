"""A data set divided in two, each class in proportion."""

from collections.abc import Sequence

import numpy as np


def stratified_split(labels_by_image: Sequence[np.ndarray], fraction: float, seed: int) -> np.ndarray:
    """(N,) bool: the images of the first part, `fraction` of them all.

    Iterative stratification (Sechidis et al. 2011, "On the stratification of multi-label data"): image by image, those
    of the class with the fewest objects left go first, each to the part that still lacks most of that class; images
    without objects fill up the parts' sizes. What is equal is decided by chance, by `seed`.
    """
    num_classes = 1 + max((int(labels.max()) for labels in labels_by_image if len(labels)), default=-1)
    counts = np.array([np.bincount(labels, minlength=num_classes) for labels in labels_by_image], dtype=np.int64)
    counts = counts.reshape(len(labels_by_image), num_classes)
    shares = np.array([fraction, 1 - fraction])
    lacking = np.outer(shares, counts.sum(axis=0)).astype(float)  # objects of each class that each part still needs
    room = shares * len(counts)
    rng = np.random.default_rng(seed)
    part = np.full(len(counts), -1)
    remaining = counts.sum(axis=0)
    shuffled = rng.permutation(len(counts))

    def give(image: int, wanting: np.ndarray) -> None:
        best = np.flatnonzero(wanting == wanting.max())
        best = best[room[best] == room[best].max()]
        part[image] = rng.choice(best)
        room[part[image]] -= 1
        lacking[part[image]] -= counts[image]
        remaining[:] -= counts[image]

    while (remaining > 0).any():
        rarest = int(np.where(remaining > 0, remaining, np.iinfo(np.int64).max).argmin())
        for image in shuffled[(counts[shuffled, rarest] > 0) & (part[shuffled] < 0)]:
            give(image, lacking[:, rarest])
    for image in shuffled[part[shuffled] < 0]:
        give(image, room)
    return part == 0
