"""The context of a transform: the progress of the run, and other samples of the training set."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_config
from user_transforms import Beside, Early  # noqa: F401  (registers them)

from detector.build import build_dataset, build_train_loader
from detector.core.errors import UserError
from detector.core.structures import Batch, Sample
from detector.data.dataset import DetectionDataset
from detector.data.pipeline.loader import make_loader
from detector.data.pipeline.samplers import UniformSampler
from detector.data.pipeline.transformed import SampleKey, Transformed
from detector.data.pipeline.transforms import Resize, TransformContext


def batches(folder: Path, transforms: str, *overrides: str, first_batch: int = 0) -> list[list[Batch]]:
    """Return the batches of two epochs; the first epoch begins with `first_batch`."""
    config = tiny_config(folder, "train.epochs=2", f"data.transforms={transforms}", *overrides)
    loader = build_train_loader(config, build_dataset(config, "train"))
    return [list(loader.epoch(0, first_batch)), list(loader.epoch(1))]


def same(a: Batch, b: Batch) -> bool:
    return a.image_ids == b.image_ids and torch.equal(a.images, b.images) and torch.equal(a.boxes, b.boxes)


@pytest.mark.parametrize("until", [0.25, 0.5, 0.75])
def test_a_transform_knows_the_progress_of_the_run(until: float, tmp_path: Path):
    """The run has 2 epochs of 6 batches, so that batch i of the run has the progress i / 12."""
    plain = sum(batches(tmp_path, "[]"), [])
    early = sum(batches(tmp_path, f"[{{type: test_early, until: {until}}}]"), [])
    is_inverted = [torch.equal(a.images, 255 - b.images) for a, b in zip(early, plain, strict=True)]
    assert is_inverted == [i / 12 < until for i in range(12)]


def test_a_drawn_sample_is_an_image_of_the_training_set_at_the_same_size(tmp_path: Path):
    sizes = "data.short_side=[40, 64]"
    plain, beside = (sum(batches(tmp_path, spec, sizes), []) for spec in ("[]", "[test_beside]"))
    samples, drawn = list(build_dataset(tiny_config(tmp_path), "train")), []
    for before, after in zip(plain, beside, strict=True):
        for i, (height, width) in enumerate(before.sizes.tolist()):
            assert after.sizes[i].tolist() == [height, 2 * width]
            assert torch.equal(after.images[i, :, :height, :width], before.images[i, :, :height, :width])
            right = after.images[i, :, :height, width : 2 * width].permute(1, 2, 0).numpy()
            resized = [Resize(64, 64)(sample, height) for sample in samples]
            (index,) = (k for k, sample in enumerate(resized) if np.array_equal(sample.image, right))
            boxes = after.boxes[i][after.labels[i] >= 0].numpy() - np.float32([width, 0] * 2)
            np.testing.assert_allclose(boxes[(before.labels[i] >= 0).sum() :], resized[index].boxes, atol=1e-4)
            drawn.append(index)
    assert len(drawn) == 24 and len(set(drawn)) > 6


def test_a_sample_can_be_drawn_by_its_index(tmp_path: Path):
    dataset = build_dataset(tiny_config(tmp_path), "train")

    def fifth(sample: Sample, context: TransformContext) -> Sample:
        return context.draw(5)

    sample = Transformed(dataset, Resize(40, 40), [fifth], seed=0)[SampleKey(0, 2, 0, 0.0)]
    assert sample.image_id == dataset.records[5].image_id
    np.testing.assert_array_equal(sample.image, Resize(40, 40)(dataset[5], 40).image)


def test_workers_and_resuming_change_neither_draws_nor_progress(tmp_path: Path):
    spec = "[mosaic, {type: mixup, probability: 0.5}, copy_paste, flip, test_beside, {type: test_early, until: 0.25}]"
    complete = batches(tmp_path, spec)
    for first_batch, overrides in ((0, ["data.num_workers=2"]), (2, []), (4, ["data.num_workers=2"])):
        other = batches(tmp_path, spec, *overrides, first_batch=first_batch)
        for expected, epoch in zip((complete[0][first_batch:], complete[1]), other, strict=True):
            assert len(epoch) == len(expected) and all(map(same, epoch, expected))


class Damaged(DetectionDataset):
    """A data set whose image 3 is unreadable. It counts the errors."""

    def __init__(self, dataset: DetectionDataset):
        super().__init__(dataset.records, dataset.class_names, dataset.category_ids)
        self.num_errors = 0

    def __getitem__(self, index: int) -> Sample:
        if index == 3:
            self.num_errors += 1
            raise UserError("image 3 is unreadable")
        return super().__getitem__(index)


def test_an_unreadable_drawn_image_is_replaced_and_reported(tmp_path: Path):
    dataset = Damaged(build_dataset(tiny_config(tmp_path), "train"))

    def draw_and_forget(sample: Sample, context: TransformContext) -> Sample:
        context.draw()
        return sample

    def loaded(substitute: bool) -> Iterator[Batch]:
        loader = make_loader(
            dataset,
            Resize(64, 64),
            [draw_and_forget],
            batch_size=2,
            seed=0,
            sampler=UniformSampler(dataset.labels_by_image(), 6),
            num_workers=0,
            size_divisor=32,
            substitute=substitute,
        )
        for epoch in range(4):
            yield from loader.epoch(epoch)

    reported = sum((batch.unreadable for batch in loaded(True)), ())
    assert len(reported) == dataset.num_errors > 4  # in 4 epochs, the sampler draws the image 4 times
    with pytest.raises(UserError, match="image 3"):
        list(loaded(False))
