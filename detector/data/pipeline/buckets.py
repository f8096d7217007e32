"""Aspect-ratio buckets: images of similar shape in a batch need less padding and give fewer batch shapes."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Buckets:
    """The assignment of images to buckets.

    Attributes:
        of_image: (N,), the bucket of each image.
        canvas: the padded size of the bucket, by the size of an image rounded up to the divisor. Both sizes are
            (height, width) in pixels.
    """

    of_image: np.ndarray
    canvas: dict[tuple[int, int], tuple[int, int]]


def round_up(size: tuple[int, int] | np.ndarray, divisor: int) -> np.ndarray:
    """Round sizes of any shape up to multiples of `divisor`."""
    return -(-np.asarray(size) // divisor) * divisor


def make_buckets(sizes: np.ndarray, count: int, divisor: int) -> Buckets:
    """Divide images into ranges of the aspect ratio.

    The ranges minimize the total number of pixels after each image is padded to the largest height and the largest
    width in its bucket.

    Args:
        sizes: (N, 2) int, (height, width) of each image in pixels.
        count: the maximum number of buckets.
        divisor: sizes are rounded up to multiples of this number.
    """
    shapes, of_image, images = np.unique(round_up(sizes, divisor), axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(shapes[:, 1] / shapes[:, 0], kind="stable")
    shapes, images = shapes[order], images[order]
    n = len(shapes)
    pixels = np.full((n, n + 1), np.inf)  # of a bucket with the shapes i to j - 1
    for i in range(n):
        largest = np.maximum.accumulate(shapes[i:], axis=0)
        pixels[i, i + 1 :] = largest.prod(axis=1) * images[i:].cumsum()
    best, cuts = pixels[0], []  # the minimum for the shapes up to j, with 1, 2, ... buckets
    for _ in range(min(count, n) - 1):
        totals = best[:n, None] + pixels
        totals[0, 1:] = pixels[0, 1:]  # a bucket may be empty
        cuts.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    ends = [n]
    for cut in reversed(cuts):
        ends.append(int(cut[ends[-1]]))
    bucket = np.searchsorted(np.array(sorted(set(ends) - {0})), np.arange(n), side="right")
    canvases = [tuple(shapes[bucket == b].max(axis=0).tolist()) for b in range(bucket.max() + 1)]
    position = np.argsort(order)  # the position of each unsorted shape in the sorted order
    canvas = {tuple(shape): canvases[b] for shape, b in zip(shapes.tolist(), bucket, strict=True)}
    return Buckets(bucket[position][of_image.ravel()], canvas)


def group_by_bucket(order: np.ndarray, bucket: np.ndarray, batch_size: int) -> np.ndarray:
    """Reorder elements so that each batch has elements of a single bucket. Mixed batches come last.

    Args:
        order: (N,), the elements. N is a multiple of `batch_size`.
        bucket: (N,), the bucket of each element of `order`.
        batch_size: the number of elements of a batch.
    """
    batches, remaining = [], []
    for b in np.unique(bucket):
        members = np.flatnonzero(bucket == b)
        num_batched = len(members) // batch_size * batch_size
        batches += list(members[:num_batched].reshape(-1, batch_size))
        remaining.append(members[num_batched:])
    batches.sort(key=lambda positions: positions[-1])  # by their last element, so that the buckets alternate at random
    return order[np.concatenate([*batches, np.sort(np.concatenate(remaining))])]
