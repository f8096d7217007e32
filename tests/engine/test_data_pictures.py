from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config

from detector.build import build_dataset
from detector.build.data import build_train_loader
from detector.data.images import read_image
from detector.engine.data_pictures import CELL_SIDE, save_batch, save_labels


def test_the_picture_of_a_batch_shows_its_images_and_boxes(tmp_path: Path):
    config = tiny_config(tmp_path, "train.batch_size=3")
    dataset = build_dataset(config, "train")
    loader = build_train_loader(config, dataset)
    batch = loader.first_batch()
    first = next(loader.epoch(0))
    assert torch.equal(batch.images, first.images) and torch.equal(batch.boxes, first.boxes)

    save_batch(tmp_path / "a/batch.jpg", batch, dataset.class_names)
    picture = read_image(tmp_path / "a/batch.jpg").astype(int)
    assert picture.shape == (2 * CELL_SIDE, 2 * CELL_SIDE, 3)  # three images and a blank
    scale = CELL_SIDE / batch.images.shape[-1]
    for index, (top, left) in enumerate([(0, 0), (0, CELL_SIDE), (CELL_SIDE, 0)]):
        cell = picture[top : top + CELL_SIDE, left : left + CELL_SIDE]
        plain = F.interpolate(batch.images[index : index + 1].float(), (CELL_SIDE, CELL_SIDE))[0]
        is_drawn = np.abs(cell - plain.permute(1, 2, 0).numpy()).max(axis=2) > 60
        for box, label in zip(batch.boxes[index], batch.labels[index], strict=True):
            if label >= 0:
                x1, y1, x2, y2 = (box * scale).round().clamp(0, CELL_SIDE - 1).int().tolist()
                assert is_drawn[y1:y2, x1].mean() > 0.5 and is_drawn[y2, x1:x2].mean() > 0.5


@pytest.mark.parametrize("num_classes", [1, 30])
def test_the_labels_are_drawn_for_few_and_many_classes(num_classes: int, tmp_path: Path):
    rng = np.random.default_rng(0)
    names = tuple(f"$class_{k}^" for k in range(num_classes))
    counts = rng.integers(1, 100, num_classes)
    save_labels(tmp_path / "labels.png", counts, names, rng.uniform(4, 90, (counts.sum(), 2)), np.array([[16.0, 32]]))
    assert read_image(tmp_path / "labels.png").shape[1] > 1000


def test_what_cannot_be_drawn_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").touch()
    none = np.empty((0, 2))
    save_labels(tmp_path / "file/labels.png", np.zeros(1, int), ("a",), none, none)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    save_labels(tmp_path / "labels.png", np.zeros(1, int), ("a",), none, np.array([[16.0, 16]]))  # crowds alone
    assert (tmp_path / "labels.png").exists()
