"""Alpha, class weights and repeat factors, computed from the counts of a data set alone."""

from collections.abc import Sequence

import numpy as np

from detector.data.pipeline.samplers import RepeatFactorSampler
from detector.imbalance.balance import initial_alpha
from detector.imbalance.census_result import Remedies, RepeatFactors
from detector.losses.class_weights import make_class_weights

GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
BETA = 0.9999  # the beta of the effective number of objects
REPEAT_THRESHOLDS = (0.001, 0.01, 0.1)


def make_remedies(labels: Sequence[np.ndarray], num_classes: int, num_fg: int, num_rows: int, prior: float) -> Remedies:
    """Compute the settings that a data set's imbalance suggests.

    Args:
        labels: the labels of each image's objects, (N,) int64 in 0..K-1.
        num_classes: K.
        num_fg: the number of foreground anchors of all images.
        num_rows: the number of foreground and background anchors of all images.
        prior: the initial score, 0..1.
    """
    objects = count_labels(labels, num_classes)
    num_bg = num_rows * num_classes - num_fg  # background elements; an anchor has K elements
    return Remedies(
        prior=prior,
        alpha={str(gamma): initial_alpha(num_fg, num_bg, gamma, prior) for gamma in GAMMAS},
        class_weights={
            rule: weights.tolist()
            for rule in ("inverse_frequency", "effective_number")
            if (weights := make_class_weights(rule, objects.tolist(), BETA)) is not None
        },
        repeat_factors={
            str(threshold): _repeat_factors(labels, num_classes, threshold)
            for threshold in (REPEAT_THRESHOLDS if objects.sum() else ())
        },
    )


def count_labels(labels: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
    """Count how often each label occurs in all images, (K,) int64.

    Args:
        labels: the labels of each image, (N,) int64 in 0..K-1.
        num_classes: K.
    """
    return np.bincount(np.concatenate([*labels, []]).astype(np.int64), minlength=num_classes)


def _repeat_factors(labels: Sequence[np.ndarray], num_classes: int, threshold: float) -> RepeatFactors:
    """Compute max(1, sqrt(threshold / f)) of each class. f is the fraction of the images that have the class."""
    num_images = count_labels([np.unique(labels_of_image) for labels_of_image in labels], num_classes)
    fractions = np.where(num_images > 0, num_images / len(labels), np.nan)
    sampler = RepeatFactorSampler(labels, num_classes, threshold=threshold)
    return RepeatFactors(
        classes=np.maximum(1, np.sqrt(threshold / fractions)).tolist(),
        largest=float(sampler.factors.max()),
        epoch=float(sampler.factors.mean()),
    )
