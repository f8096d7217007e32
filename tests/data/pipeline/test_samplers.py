from pathlib import Path

import numpy as np
import pytest
from refusals import refused

from detector.data.formats.coco import CocoDataset
from detector.data.pipeline.samplers import IMAGE_SAMPLERS, ImageSampler, systematic

# Class 0 is in six of eight images, class 1 in two, class 2 in one, class 3 in none. Image 7 has no object.
EIGHT = [np.array(labels, dtype=np.int64) for labels in ([0], [0, 0], [0], [0], [0, 1, 0], [0, 2], [1, 1, 1], [])]
SAMPLERS = [
    ("uniform", {}),
    ("repeat_factor", {"threshold": 0.5}),
    ("class_balanced", {}),
]


def scene(num_images: int, num_classes: int, seed: int) -> list[np.ndarray]:
    """Return labels with classes from common to rare. About a tenth of the images is empty."""
    rng = np.random.default_rng(seed)
    chances = 0.5 ** np.arange(1, num_classes + 1)
    chances /= chances.sum()
    counts = rng.integers(0, 10, num_images)
    return [rng.choice(num_classes, size=n, p=chances) for n in counts]


def epochs(sampler: ImageSampler, num_images: int, number: int) -> np.ndarray:
    """Return the number of draws of each image in each epoch, (number, num_images)."""
    orders = [sampler.order(np.random.default_rng((0, epoch))) for epoch in range(number)]
    return np.stack([np.bincount(order, minlength=num_images) for order in orders])


@pytest.mark.parametrize(("name", "parameters"), SAMPLERS)
def test_an_epoch_depends_on_the_generator_and_has_a_fixed_length(name: str, parameters: dict):
    labels = scene(37, 6, seed=0)
    sampler, same = (IMAGE_SAMPLERS.build(name, labels, 6, **parameters) for _ in range(2))
    orders = [sampler.order(np.random.default_rng(seed)).tolist() for seed in range(200)]
    assert {len(order) for order in orders} == {len(sampler)}
    assert len(set(map(tuple, orders))) == 200
    for seed in (150, 3):
        assert same.order(np.random.default_rng(seed)).tolist() == orders[seed]
    assert {type(i) for i in orders[0]} == {int} and set(sum(orders, [])) <= set(range(37))


@pytest.mark.parametrize(("name", "parameters"), SAMPLERS)
def test_every_position_of_an_epoch_has_the_same_distribution(name: str, parameters: dict):
    sampler = IMAGE_SAMPLERS.build(name, EIGHT, 4, **parameters)
    orders = np.stack([sampler.order(np.random.default_rng(seed)) for seed in range(4000)])
    shares = np.stack([(orders == image).mean(axis=0) for image in range(8)])
    spread = np.sqrt(shares.mean(axis=1, keepdims=True) / 4000)
    assert (abs(shares - shares.mean(axis=1, keepdims=True)) <= 5 * spread).all()


def test_uniform_is_a_permutation():
    sampler = IMAGE_SAMPLERS.build("uniform", EIGHT, 4)
    assert len(sampler) == 8 and (epochs(sampler, 8, 50) == 1).all()


# ---- systematic sampling


@pytest.mark.parametrize("seed", range(5))
def test_systematic_sampling_rounds_each_expectation_without_bias(seed: int):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0, 3, 20) ** 2
    expected = 17 * weights / weights.sum()
    counts = np.stack([np.bincount(systematic(weights, 17, rng), minlength=20) for _ in range(5000)])
    assert (counts >= np.floor(expected)).all() and (counts <= np.ceil(expected)).all()
    spread = np.sqrt((expected % 1) * (1 - expected % 1) / 5000)  # of an unbiased rounding
    assert (abs(counts.mean(axis=0) - expected) <= 5 * spread).all()


# ---- repeat factors


def test_repeat_factors_by_hand():
    """The fractions 6/8, 2/8, 1/8 with the threshold 1/2 give the factors 1, sqrt(2), 2."""
    sampler = IMAGE_SAMPLERS.build("repeat_factor", EIGHT, 4, threshold=0.5)
    np.testing.assert_allclose(sampler.factors, [1, 1, 1, 1, 2**0.5, 2, 2**0.5, 1], rtol=1e-15)
    assert len(sampler) == 9  # 9.83 is rounded down
    counts = epochs(sampler, 8, 5000)
    expected = sampler.factors * 9 / sampler.factors.sum()
    np.testing.assert_allclose(counts.mean(axis=0), expected, atol=5 * 0.5 / 5000**0.5)
    assert set(counts[:, 5].tolist()) == {1, 2} and set(counts[:, 0].tolist()) == {0, 1}


def test_the_image_of_a_rare_class_is_repeated_by_its_factor():
    """One image of 100 has class 1: the factor is sqrt(0.16 / 0.01) = 4, and 99 + 4 is an integer."""
    labels = [np.array([0, 1] if i == 42 else [0]) for i in range(100)]
    sampler = IMAGE_SAMPLERS.build("repeat_factor", labels, 2, threshold=0.16)
    counts = epochs(sampler, 100, 20)
    assert len(sampler) == 103 and (counts[:, 42] == 4).all() and (np.delete(counts, 42, axis=1) == 1).all()


def test_without_rare_classes_repeat_factor_is_a_permutation():
    for labels in (EIGHT, [np.empty(0, dtype=np.int64)] * 8):
        sampler = IMAGE_SAMPLERS.build("repeat_factor", labels, 4)
        assert len(sampler) == 8 and (epochs(sampler, 8, 50) == 1).all()


@pytest.mark.parametrize("seed", range(3))
def test_repeat_factors_equal_the_formula_image_by_image(seed: int):
    labels = scene(300, 10, seed)
    fraction = {c: sum(c in image for image in labels) / 300 for c in range(10)}
    expected = [max([1.0, *((0.1 / fraction[c]) ** 0.5 for c in set(image.tolist()))]) for image in labels]
    sampler = IMAGE_SAMPLERS.build("repeat_factor", labels, 10, threshold=0.1)
    np.testing.assert_allclose(sampler.factors, expected, rtol=1e-14)
    assert len(sampler) == int(sum(expected)) > 300


# ---- class balance


def test_class_balance_by_hand():
    """Eight draws of three classes in six, two and one images give 8/18, 8/6 and 8/3 draws for an image of a class."""
    sampler = IMAGE_SAMPLERS.build("class_balanced", EIGHT, 4)
    assert len(sampler) == 8
    counts = epochs(sampler, 8, 5000)
    common, medium, rare = 8 / 18, 8 / 6, 8 / 3
    expected = [common, common, common, common, common + medium, common + rare, medium, 0]
    np.testing.assert_allclose(counts.mean(axis=0), expected, atol=5 * 1 / 5000**0.5)
    assert (counts[:, 7] == 0).all()


def test_in_every_epoch_classes_and_their_images_are_drawn_equally_often():
    """With a single class per image, the drawn image shows the drawn class."""
    classes = np.repeat([0, 1, 2, 4], [50, 20, 6, 1])
    sampler = IMAGE_SAMPLERS.build("class_balanced", [np.array([c, c]) for c in classes], 5)
    for counts in epochs(sampler, 77, 200):
        drawn = np.bincount(classes, weights=counts, minlength=5)
        assert drawn[3] == 0 and set(np.delete(drawn, 3).tolist()) == {19, 20}  # 77 / 4
        for c in (0, 1, 2):
            assert np.ptp(counts[classes == c]) <= 1


def test_images_of_a_class_are_drawn_in_every_combination():
    """Two draws of four images give each of the six pairs."""
    sampler = IMAGE_SAMPLERS.build("class_balanced", [np.array([c]) for c in (0, 0, 0, 0, 1)], 2)
    pairs = {tuple(np.flatnonzero(counts[:4])) for counts in epochs(sampler, 5, 200) if counts[:4].sum() == 2}
    assert len(pairs) == 6


def test_class_balance_without_objects_is_refused():
    with refused("data.sampler", "class_balanced", remedy="uniform"):
        IMAGE_SAMPLERS.build("class_balanced", [np.empty(0, dtype=np.int64)] * 3, 2)


# ---- real annotations


def test_on_real_annotations(shared_data: Path):
    coco = shared_data / "coco_tiny"
    dataset = CocoDataset(images=coco / "train2017", annotations=coco / "annotations/instances_train2017.json")
    labels = [record.labels[~record.crowd] for record in dataset.records]
    counts = dataset.class_counts()
    shares = {}
    for name, parameters in (("uniform", {}), ("repeat_factor", {"threshold": 0.2}), ("class_balanced", {})):
        sampler = IMAGE_SAMPLERS.build(name, labels, len(counts), **parameters)
        order = np.concatenate([sampler.order(np.random.default_rng(seed)) for seed in range(20)])
        seen = np.bincount(np.concatenate([labels[i] for i in order]), minlength=len(counts))
        assert (seen[counts > 0] > 0).all()
        shares[name] = np.sort(seen / seen.sum())[-3:].sum()
    assert shares["class_balanced"] < shares["repeat_factor"] < shares["uniform"]
