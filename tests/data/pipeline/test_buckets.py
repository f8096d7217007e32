import itertools

import numpy as np
import pytest
import torch

from detector.core.structures import Sample
from detector.data.pipeline.batches import EpochBatches, collate
from detector.data.pipeline.buckets import group_by_bucket, make_buckets
from detector.data.pipeline.samplers import UniformSampler


def padded_pixels(sizes: np.ndarray, groups: list[list[int]], divisor: int) -> int:
    return sum(len(g) * int((-(-sizes[g].max(axis=0) // divisor) * divisor).prod()) for g in groups)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 20])
def test_the_buckets_are_the_cheapest_ranges_of_the_aspect_ratio(count: int):
    """The reference tries all divisions of the images, sorted by aspect ratio, into at most `count` ranges."""
    rng = np.random.default_rng(count)
    for _ in range(20):
        sizes = rng.choice([64, 96, 128, 160, 192], (9, 2))
        buckets = make_buckets(sizes, count, 32)
        groups = [np.flatnonzero(buckets.of_image == b).tolist() for b in np.unique(buckets.of_image)]
        assert len(groups) <= count and sorted(sum(groups, [])) == list(range(9))
        ratios, of_image = np.unique(sizes[:, 1] / sizes[:, 0], return_inverse=True)
        ranges = [sorted({int(of_image[i]) for i in group}) for group in groups]
        shapes = sorted({tuple(s) for s in sizes.tolist()}, key=lambda s: s[1] / s[0])
        cheapest = min(
            padded_pixels(
                sizes,
                [
                    [i for i in range(9) if tuple(sizes[i].tolist()) in shapes[a:b]]
                    for a, b in itertools.pairwise((0, *cuts, len(shapes)))
                ],
                32,
            )
            for k in range(min(count, len(shapes)))
            for cuts in itertools.combinations(range(1, len(shapes)), k)
        )
        for first, second in itertools.combinations(ranges, 2):  # the ranges do not overlap
            assert first[-1] <= second[0] or second[-1] <= first[0]
        # shapes of equal ratio may have another order than in the reference, which changes the minimum
        assert padded_pixels(sizes, groups, 32) <= cheapest or len({s[1] / s[0] for s in shapes}) < len(shapes)
        for size, bucket in zip(sizes.tolist(), buckets.of_image, strict=True):
            largest = sizes[buckets.of_image == bucket].max(axis=0)
            assert buckets.canvas[tuple(size)] == tuple(largest.tolist())


def test_sizes_are_rounded_up_and_the_canvas_holds_every_image():
    sizes = np.array([[800, 1066], [800, 1067], [1066, 800], [800, 1333], [600, 1333], [800, 800]])
    buckets = make_buckets(sizes, 2, 32)
    assert set(buckets.canvas.values()) == {(800, 1344), (1088, 800)}
    assert buckets.canvas[800, 1088] == (800, 1344) and buckets.canvas[608, 1344] == (800, 1344)


def test_images_of_a_bucket_are_batched_and_none_is_lost():
    rng = np.random.default_rng(0)
    bucket_of = rng.choice(3, 60, p=[0.6, 0.35, 0.05])
    order = rng.permutation(60)
    grouped = group_by_bucket(order, bucket_of[order], 4)
    assert sorted(grouped) == list(range(60))
    num_buckets = [len(set(bucket_of[batch])) for batch in grouped.reshape(-1, 4)]
    num_remaining = sum(count % 4 for count in np.bincount(bucket_of))
    num_pure = 15 - num_remaining // 4
    assert num_remaining > 0 and num_buckets[:num_pure] == [1] * num_pure
    firsts = [bucket_of[batch[0]] for batch in grouped.reshape(-1, 4)]
    assert sum(a != b for a, b in itertools.pairwise(firsts)) > 4, "the buckets alternate"
    same = group_by_bucket(order, np.zeros(60, dtype=np.int64), 4)
    assert same.tolist() == order.tolist()


def test_all_images_are_drawn_equally_often_in_any_bucket():
    """The images after the last full batch of an epoch are left out before the images are grouped by bucket."""
    bucket = np.array([0] * 20 + [1] * 3)
    batches = EpochBatches(23, 5, seed=0, sampler=UniformSampler([np.zeros(1, np.int64)] * 23, 1), bucket=bucket)
    counts = np.zeros(23)
    for batches.epoch in range(600):
        np.add.at(counts, [index for batch in batches for _, index, *_ in batch], 1)
    assert np.abs(counts / 600 - 20 / 23).max() < 0.06


def test_an_evaluation_goes_bucket_by_bucket():
    batches = EpochBatches(6, 2, seed=0, sampler=None, bucket=np.array([1, 0, 1, 0, 0, 1]))
    assert [[index for _, index, *_ in batch] for batch in batches] == [[1, 3], [4, 0], [2, 5]]


def make_sample(height: int, width: int) -> Sample:
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    return Sample(np.zeros((height, width, 3), np.uint8), *nothing, 0, "", (height, width))


def test_a_batch_has_the_canvas_of_its_bucket_and_a_mixed_one_holds_both():
    canvas = {(64, 96): (64, 128), (96, 64): (128, 64)}
    wide, high, other = make_sample(60, 90), make_sample(90, 60), make_sample(20, 20)
    for samples, expected in (
        ([wide, wide], (64, 128)),
        ([high], (128, 64)),
        ([wide, high], (128, 128)),
        ([other], (32, 32)),
    ):
        assert collate(samples, 32, canvas).images.shape[-2:] == torch.Size(expected)
