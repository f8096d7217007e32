from pathlib import Path

import numpy as np
import pytest

from detector.data.checks.findings import Findings
from detector.data.formats.voc import VocDataset
from detector.data.pipeline.splitting import stratified_split


def shares(labels: list[np.ndarray], first: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the fraction of the objects of each class in the first part."""
    counts = np.array([np.bincount(image, minlength=num_classes) for image in labels])
    return counts[first].sum(axis=0) / counts.sum(axis=0)


def make_labels(seed: int, num_images: int = 200) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    frequencies = np.arange(1.0, 7) ** -2
    return [
        rng.choice(6, size=rng.poisson(3), p=frequencies / frequencies.sum()).astype(np.int64)
        for _ in range(num_images)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_in_proportion(seed: int):
    labels = make_labels(seed)
    first = stratified_split(labels, 0.8, seed)
    assert abs(first.sum() - 160) <= 6  # the proportions of classes have priority over the sizes
    stratified = np.abs(shares(labels, first, 6) - 0.8).max()
    at_random = [
        np.abs(shares(labels, np.random.default_rng(s).permutation(200) < 160, 6) - 0.8).max() for s in range(50)
    ]
    assert stratified < 0.06 < np.median(at_random)  # 6 of the 7 objects of the rarest class are 0.057 too many


def test_the_parts_depend_on_the_seed():
    labels = make_labels(0)
    first = stratified_split(labels, 0.8, 0)
    np.testing.assert_array_equal(first, stratified_split(labels, 0.8, 0))
    assert (first != stratified_split(labels, 0.8, 1)).any()


@pytest.mark.parametrize("fraction", [0.5, 0.75])
def test_images_without_objects_are_divided_too(fraction: float):
    labels = [np.zeros(0, np.int64)] * 40
    assert stratified_split(labels, fraction, 0).sum() == 40 * fraction
    mixed = [*labels, *([np.array([0])] * 4)]
    first = stratified_split(mixed, fraction, 0)
    assert first.sum() == 44 * fraction and first[40:].sum() == 4 * fraction


def test_a_class_of_a_single_image_goes_to_the_larger_part():
    labels = [np.array([0, 1]), *([np.array([0])] * 9)]
    assert all(stratified_split(labels, 0.9, seed)[0] for seed in range(10))


def test_real_annotations(shared_data: Path):
    bccd = shared_data / "bccd"
    dataset = VocDataset(None, Findings("skip"), images=bccd / "JPEGImages", annotations=bccd / "Annotations")
    labels = dataset.labels_by_image()
    first = stratified_split(labels, 0.8, 0)
    np.testing.assert_allclose(shares(labels, first, 3), 0.8, atol=0.01)
    assert abs(first.sum() - 0.8 * 364) <= 4
