"""The stratified split of a data set into two parts."""

from collections.abc import Sequence

import numpy as np


def stratified_split(labels_by_image: Sequence[np.ndarray], fraction: float, seed: int) -> np.ndarray:
    """Divide images into two parts in which each class has the same proportion.

    The method is iterative stratification (Sechidis et al. 2011, "On the stratification of multi-label data"). It takes
    the class with the fewest remaining objects first. Each image of this class goes to the part that still needs the
    most objects of the class. Images without objects then fill the parts. Ties are decided at random.

    Args:
        labels_by_image: the class labels of each image.
        fraction: the fraction of the images in the first part.
        seed: the random seed.

    Returns:
        (N,) bool, whether the image is in the first part.
    """
    num_classes = 1 + max((int(labels.max()) for labels in labels_by_image if len(labels)), default=-1)
    counts = np.array([np.bincount(labels, minlength=num_classes) for labels in labels_by_image], dtype=np.int64)
    counts = counts.reshape(len(labels_by_image), num_classes)
    shares = np.array([fraction, 1 - fraction])
    needed = np.outer(shares, counts.sum(axis=0)).astype(float)  # objects of each class that each part still needs
    capacity = shares * len(counts)  # images that each part still needs
    rng = np.random.default_rng(seed)
    part = np.full(len(counts), -1)
    remaining = counts.sum(axis=0)
    shuffled = rng.permutation(len(counts))

    def assign(image: int, need: np.ndarray) -> None:
        best = np.flatnonzero(need == need.max())
        best = best[capacity[best] == capacity[best].max()]
        part[image] = rng.choice(best)
        capacity[part[image]] -= 1
        needed[part[image]] -= counts[image]
        remaining[:] -= counts[image]

    while (remaining > 0).any():
        rarest = int(np.where(remaining > 0, remaining, np.iinfo(np.int64).max).argmin())
        for image in shuffled[(counts[shuffled, rarest] > 0) & (part[shuffled] < 0)]:
            assign(image, needed[:, rarest])
    for image in shuffled[part[shuffled] < 0]:
        assign(image, capacity)
    return part == 0
