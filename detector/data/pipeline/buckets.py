"""Images of like shape in one batch: less padding, and few shapes for kernels, compilers and allocators to meet."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Buckets:
    """of_image (N,): each image's bucket; canvas: from an image's size, rounded up to the divisor, to the size of all
    images in its bucket, (height, width) both."""

    of_image: np.ndarray
    canvas: dict[tuple[int, int], tuple[int, int]]


def round_up(size: tuple[int, int] | np.ndarray, divisor: int) -> np.ndarray:
    return -(-np.asarray(size) // divisor) * divisor


def make_buckets(sizes: np.ndarray, count: int, divisor: int) -> Buckets:
    """sizes (N, 2) int, (height, width) -> at most `count` ranges of the aspect ratio, those with the fewest pixels in
    all when each image is padded to its bucket's largest height and width."""
    shapes, of_image, images = np.unique(round_up(sizes, divisor), axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(shapes[:, 1] / shapes[:, 0], kind="stable")
    shapes, images = shapes[order], images[order]
    n = len(shapes)
    pixels = np.full((n, n + 1), np.inf)  # of a bucket with the shapes from i up to j
    for i in range(n):
        largest = np.maximum.accumulate(shapes[i:], axis=0)
        pixels[i, i + 1 :] = largest.prod(axis=1) * images[i:].cumsum()
    best, cuts = pixels[0], []  # of the shapes up to j, in one bucket, in two, ...
    for _ in range(min(count, n) - 1):
        totals = best[:n, None] + pixels
        totals[0, 1:] = pixels[0, 1:]  # a bucket may stay empty
        cuts.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    ends = [n]
    for cut in reversed(cuts):
        ends.append(int(cut[ends[-1]]))
    bucket = np.searchsorted(np.array(sorted(set(ends) - {0})), np.arange(n), side="right")
    canvases = [tuple(shapes[bucket == b].max(axis=0).tolist()) for b in range(bucket.max() + 1)]
    position = np.argsort(order)  # of each unsorted shape
    canvas = {tuple(shape): canvases[b] for shape, b in zip(shapes.tolist(), bucket, strict=True)}
    return Buckets(bucket[position][of_image.ravel()], canvas)


def gather_alike(order: np.ndarray, bucket: np.ndarray, batch_size: int) -> np.ndarray:
    """The same elements, in whole batches of one bucket each as far as they go; what is left over comes last. order
    (N,) with N a multiple of batch_size; bucket (N,), of each element of it."""
    batches, rest = [], []
    for b in np.unique(bucket):
        own = np.flatnonzero(bucket == b)
        whole = len(own) // batch_size * batch_size
        batches += list(own[:whole].reshape(-1, batch_size))
        rest.append(own[whole:])
    batches.sort(key=lambda positions: positions[-1])  # as they are complete, so that the buckets alternate by chance
    return order[np.concatenate([*batches, np.sort(np.concatenate(rest))])]
