import numpy as np
import pytest
import torch
from refusals import refused

from detector.core.structures import PADDING_COLOR, Batch, Sample
from detector.data.pipeline.batches import EpochBatches, collate, repeats
from detector.data.pipeline.loader import make_loader
from detector.data.pipeline.samplers import ClassBalancedSampler, ImageSampler, UniformSampler
from detector.data.pipeline.transforms import Affine, Color, Flip, Resize


def make_sample(height: int, width: int, num_boxes: int, index: int = 0, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 10, (num_boxes, 2))
    return Sample(
        image=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        boxes=np.float32(np.concatenate((corners, corners + 5), axis=1)),
        labels=np.arange(num_boxes),
        ignore=np.arange(num_boxes) == 1,
        image_id=100 + index,
        file_name=f"{index}.png",
        original_size=(3 * height, 2 * width),
    )


# ---- collate


def test_images_are_padded_to_the_largest_and_rounded_up():
    samples = [make_sample(20, 50, 3, index=0), make_sample(33, 40, 0, index=1), make_sample(32, 64, 1, index=2)]
    batch = collate(samples, size_divisor=32)
    assert batch.images.shape == (3, 3, 64, 64) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for image, sample in zip(batch.images.permute(0, 2, 3, 1).numpy(), samples, strict=True):
        height, width = sample.image.shape[:2]
        np.testing.assert_array_equal(image[:height, :width], sample.image)
        padding = np.ones((64, 64), dtype=bool)
        padding[:height, :width] = False
        assert (image[padding] == PADDING_COLOR).all()
    assert batch.sizes.tolist() == [[20, 50], [33, 40], [32, 64]]
    assert batch.original_sizes.tolist() == [[60, 100], [99, 80], [96, 128]]
    assert batch.image_ids == (100, 101, 102) and batch.file_names == ("0.png", "1.png", "2.png")


@pytest.mark.parametrize(("divisor", "expected"), [(1, (33, 50)), (16, (48, 64)), (32, (64, 64)), (128, (128, 128))])
def test_size_divisor(divisor: int, expected: tuple[int, int]):
    batch = collate([make_sample(33, 20, 1), make_sample(10, 50, 1)], divisor)
    assert batch.images.shape[-2:] == expected


def test_ground_truths_are_padded():
    samples = [make_sample(20, 20, 3), make_sample(20, 20, 0), make_sample(20, 20, 1)]
    batch = collate(samples, size_divisor=1)
    assert batch.boxes.shape == (3, 3, 4) and batch.boxes.dtype == torch.float32
    np.testing.assert_array_equal(batch.boxes[0], samples[0].boxes)
    assert not batch.boxes[1].any()
    assert batch.labels.tolist() == [[0, 1, 2], [-1, -1, -1], [0, -1, -1]]
    assert batch.ignore.tolist() == [[False, True, False], [False] * 3, [False] * 3]


def test_a_batch_without_objects_has_one_padded_ground_truth():
    batch = collate([make_sample(20, 20, 0)], size_divisor=32)
    assert batch.boxes.shape == (1, 1, 4) and batch.labels.tolist() == [[-1]]


# ---- order


def uniform(num_images: int) -> UniformSampler:
    return UniformSampler([np.zeros(1, dtype=np.int64)] * num_images, 1)


def balanced() -> ClassBalancedSampler:
    """Return a sampler of eight images. Only the first image has class 0, so that half of the draws take this image."""
    return ClassBalancedSampler([np.array([i > 0], dtype=np.int64) for i in range(8)], 2)


def indices(sampler: EpochBatches) -> list[list[int]]:
    batches = list(sampler)
    assert {epoch for batch in batches for epoch, *_ in batch} == {sampler.epoch}
    return [[index for _, index, *_ in batch] for batch in batches]


def test_training_shuffles_by_seed_and_epoch_into_full_batches():
    sampler = EpochBatches(23, 5, seed=1, sampler=uniform(23))
    first = indices(sampler)
    assert [len(batch) for batch in first] == [5] * 4 and len(sampler) == 4
    flat = sum(first, [])
    assert len(set(flat)) == 20 and set(flat) < set(range(23)) and flat != sorted(flat)
    assert indices(sampler) == first == indices(EpochBatches(23, 5, seed=1, sampler=uniform(23)))
    assert indices(EpochBatches(23, 5, seed=2, sampler=uniform(23))) != first
    seen = set()
    for sampler.epoch in range(10):
        epoch = indices(sampler)
        assert (epoch == first) == (sampler.epoch == 0)
        seen |= set(sum(epoch, []))
    assert seen == set(range(23))  # each image occurs in some epoch


def test_evaluation_keeps_the_order_and_the_short_last_batch():
    sampler = EpochBatches(7, 3, seed=1, sampler=None)
    assert indices(sampler) == [[0, 1, 2], [3, 4, 5], [6]] and len(sampler) == 3
    sampler.epoch = 4
    assert indices(sampler) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(EpochBatches(6, 3, seed=0, sampler=None)) == 2


def test_a_resumed_epoch_has_the_remaining_batches():
    complete, resumed = (EpochBatches(23, 5, seed=1, sampler=uniform(23)) for _ in range(2))
    complete.epoch = resumed.epoch = 3
    resumed.first_batch = 2
    assert indices(resumed) == indices(complete)[2:]


def test_a_data_set_smaller_than_a_batch_is_one_batch():
    for images in (uniform(3), None):
        sampler = EpochBatches(3, 16, seed=0, sampler=images)
        assert [sorted(batch) for batch in indices(sampler)] == [[0, 1, 2]] and len(sampler) == 1


def test_an_epoch_is_the_samplers_order_drawn_from_seed_and_epoch():
    for images in (uniform(8), balanced()):
        sampler = EpochBatches(8, 2, seed=7, sampler=images)
        for sampler.epoch in range(3):
            order = images.order(np.random.default_rng((7, sampler.epoch)))
            assert sum(indices(sampler), []) == order.tolist()
    assert uniform(8).order(np.random.default_rng(3)).tolist() == np.random.default_rng(3).permutation(8).tolist()


def test_repeats_are_counted():
    assert repeats(np.array([5, 2, 5, 5, 0, 2])).tolist() == [0, 0, 1, 2, 0, 1]
    keys = sum(EpochBatches(8, 2, seed=0, sampler=balanced()), [])
    assert len({key[:3] for key in keys}) == 8 and [key.repeat for key in keys if key.index == 0] == [0, 1, 2, 3]
    assert [key[2] for key in sum(EpochBatches(8, 2, seed=0, sampler=uniform(8)), [])] == [0] * 8


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_in_training_each_rank_has_an_equal_part_of_every_batch(num_ranks: int):
    single = EpochBatches(23, 8, seed=1, sampler=uniform(23))
    ranks = [EpochBatches(23, 8, seed=1, sampler=uniform(23), rank=r, num_ranks=num_ranks) for r in range(num_ranks)]
    single.first_batch = 1
    for rank in ranks:
        rank.first_batch = 1
        assert len(rank) == len(single) == 2
    for expected, *parts in zip(indices(single), *map(indices, ranks), strict=True):
        assert sum(parts, []) == expected and {len(part) for part in parts} == {8 // num_ranks}


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_in_evaluation_the_ranks_take_full_batches_alternately(num_ranks: int):
    """The ranks together have each image once. A rank may have no batch."""
    expected = indices(EpochBatches(7, 2, seed=0, sampler=None))
    ranks = [EpochBatches(7, 2, seed=0, sampler=None, rank=r, num_ranks=num_ranks) for r in range(num_ranks)]
    for r, rank in enumerate(ranks):
        batches = [[index for _, index, *_ in batch] for batch in rank]
        assert batches == expected[r::num_ranks] and len(rank) == len(batches)


def test_a_batch_size_that_is_not_divisible_by_the_ranks_is_refused():
    with refused("train.batch_size", "5 images", "2 processes"):
        EpochBatches(23, 5, seed=0, sampler=uniform(23), num_ranks=2)


# ---- pixels


class SameImage:
    """A data set with the same image for each sample, so that only the transforms make a difference."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        return make_sample(30, 40, 2, index)


def epochs(
    num_workers: int, *, seed: int = 0, first_batch: int = 0, sampler: ImageSampler | None = None
) -> list[list[Batch]]:
    """Return the batches of two epochs. The default sampler is uniform."""
    loader = make_loader(
        SameImage(),
        Resize((24, 40), 100),
        [Flip(vertical=0.5), Affine(scale=(0.7, 1.4), translate=0.2), Color(brightness=0.4, contrast=0.4)],
        batch_size=2,
        seed=seed,
        sampler=sampler or uniform(8),
        num_workers=num_workers,
        size_divisor=32,
    )
    return [list(loader.epoch(epoch, first_batch)) for epoch in (0, 1)]


def assert_equal(a: Batch, b: Batch) -> None:
    assert a.image_ids == b.image_ids
    for name in ("images", "sizes", "original_sizes", "boxes", "labels", "ignore"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def pixels(batches: list[Batch]) -> list[bytes]:
    """Return the bytes of each image."""
    return [
        bytes(image[:, :height, :width].contiguous().numpy().data)
        for batch in batches
        for image, (height, width) in zip(batch.images, batch.sizes.tolist(), strict=True)
    ]


def test_workers_change_no_pixel():
    for expected, batches in zip(epochs(0), epochs(2), strict=True):
        for a, b in zip(expected, batches, strict=True):
            assert_equal(a, b)


@pytest.mark.parametrize("sampler", [uniform(8), balanced()])
def test_resuming_changes_no_pixel(sampler: ImageSampler):
    for complete, resumed in zip(epochs(0, sampler=sampler), epochs(0, first_batch=2, sampler=sampler), strict=True):
        for a, b in zip(complete[2:], resumed, strict=True):
            assert_equal(a, b)


def test_samples_epochs_and_seeds_draw_different_numbers():
    drawn = [*epochs(0), epochs(0, seed=1)[0]]
    for batches in drawn:
        assert {image_id for batch in batches for image_id in batch.image_ids} == set(range(100, 108))
    assert len(set(sum(map(pixels, drawn), []))) == 24


def test_samples_of_a_worker_draw_different_numbers():
    assert all(len(set(pixels(batches))) == 8 for batches in epochs(1))


def test_a_repeated_image_draws_different_numbers():
    for batches in epochs(0, sampler=balanced()):
        assert sum((batch.image_ids for batch in batches), ()).count(100) == 4
        assert len(set(pixels(batches))) == 8
