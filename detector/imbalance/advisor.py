"""Remedies that follow from the census of a data set and the probe of a trained model.

The thresholds below are rules of thumb. The figures in each recommendation are measured.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from detector.core.overrides import nested
from detector.imbalance.balance import balancing_alpha, focal_gradient, initial_alpha
from detector.imbalance.census_result import AnchorSuggestion, Census
from detector.imbalance.probe_result import ProbeResult

# Lin et al. 2017, table 1b: the best alpha on COCO at each gamma
PUBLISHED_ALPHA = {0.1: 0.75, 0.2: 0.75, 0.5: 0.5, 1.0: 0.25, 2.0: 0.25, 5.0: 0.25}
MILD_RATIO = 20  # with fewer background elements per foreground element, cross entropy needs no remedy
SEVERE_RATIO = 1000  # background elements per foreground element
MIN_OUTLIER_SHARE = 0.3  # of a trained model's cross-entropy gradient
MANY_EMPTY_IMAGES = 0.5  # of all images
SHARED_CLASS = 0.5  # of all images: a sampler of images cannot balance a class that more images have
RARE_CLASS = 0.1  # of the objects of the most frequent class
GOOD_RECALL = 0.95
MIN_RECALL_GAIN = 0.02
MAX_UNMATCHED = 0.02  # of the objects
MAX_LOW_QUALITY = 0.1  # of the objects
OUTLIERS = ("foreground_outlier", "background_outlier")
ALPHA_LIMITS = (0.05, 0.95)  # beyond the limits the weight of foreground or background is nearly 0


@dataclass(frozen=True, slots=True)
class Advice:
    """A config key, the value to set, and the reason in sentences with the measured figures."""

    key: str
    value: Any
    reason: str


def advise(census: Census, probe: ProbeResult | None, gamma: float) -> list[Advice]:
    """Return the remedies that the figures support, the most important first.

    The list has a loss if the census has foreground. It has another setting only if a change of the setting helps.

    Args:
        census: the census of the data set.
        probe: the probe of a trained model, or None.
        gamma: the gamma of focal loss. 0 requests cross entropy, which needs under-sampling.
    """
    loss = _loss(census, probe, gamma)
    if loss and probe is not None:
        loss[0] = replace(loss[0], reason=loss[0].reason + _outliers(probe))
    return [*loss, *_images(census), *_anchors(census)]


def overlay(advice: list[Advice]) -> dict[str, Any]:
    """Return the values that the advice sets as nested dictionaries, to merge over a config."""
    return nested({item.key: item.value for item in advice})


def alpha_of_probe(probe: ProbeResult, gamma: float) -> float:
    """Return the alpha that balances the gradients of foreground and background on a trained model's scores.

    The gradient of a bin of the logit is `focal_gradient` at the bin's center, times the elements in the bin.

    Args:
        probe: the probe of the trained model.
        gamma: the gamma of focal loss.
    """
    edges = np.array(probe.logits.edges)
    scores = 1 / (1 + np.exp(-(edges[:-1] + edges[1:]) / 2))
    foreground, background = (
        float(focal_gradient(norms, gamma) @ counts)
        for norms, counts in ((1 - scores, probe.logits.foreground), (scores, probe.logits.background))
    )
    return balancing_alpha(foreground, background)


def gains_recall(suggestion: AnchorSuggestion) -> bool:
    """Return whether the suggested anchors fit clearly more objects than the anchors of the config."""
    recall = suggestion.recall
    return recall.now < GOOD_RECALL and recall.suggested > recall.now + MIN_RECALL_GAIN


def _loss(census: Census, probe: ProbeResult | None, gamma: float) -> list[Advice]:
    anchors = census.anchors
    if not anchors.foreground:
        return []
    ratio = census.background_elements / anchors.foreground
    if ratio < MILD_RATIO:
        return [
            Advice(
                "loss.classification",
                {"type": "cross_entropy"},
                f"{ratio:.0f} background elements per foreground element are a mild imbalance. Cross entropy with "
                f"model.head.prior is sufficient. Cross entropy has no gamma, so gamma {gamma:g} is not used.",
            )
        ]
    if gamma == 0:
        reason = (
            f"Gamma 0 requests cross entropy. With {ratio:,.0f} background elements per foreground element, cross "
            "entropy needs the anchor sampler."
        )
        return [Advice("loss.classification", {"type": "cross_entropy"}, reason), _anchor_sampler(census)]
    dominance = (
        f"With {ratio:,.0f} background elements per foreground element, background dominates the gradient of cross "
        "entropy."
    )
    if probe is None:
        first = initial_alpha(anchors.foreground, census.background_elements, gamma, census.remedies.prior)
        published = min(PUBLISHED_ALPHA, key=lambda known: abs(known - gamma))
        alpha = PUBLISHED_ALPHA[published]
        choice = (
            f"Alpha {alpha:g} is the published optimum at gamma {published:g}. Alpha {first:.3g} balances the "
            "gradients of foreground and background on the initial scores. To get the balancing alpha for the scores "
            "of a trained model, run `detector probe` and pass the result to `detector advise` with --probe."
        )
    else:
        balanced = alpha_of_probe(probe, gamma)
        alpha = round(min(max(balanced, ALPHA_LIMITS[0]), ALPHA_LIMITS[1]), 3)
        choice = (
            f"At gamma {gamma:g}, alpha {balanced:.3g} balances the gradients of foreground and background on the "
            f"trained model's scores ({probe.split} split)."
        )
        if alpha != round(balanced, 3):
            choice += f" Alpha is limited to the range {ALPHA_LIMITS[0]} to {ALPHA_LIMITS[1]}."
    under_sampling = (
        f"Under-sampling to equal numbers would use only 1 of {anchors.background / anchors.foreground:,.0f} "
        "background anchors."
    )
    value = {"type": "focal", "gamma": gamma, "alpha": alpha}
    return [Advice("loss.classification", value, f"{dominance} {choice} {under_sampling}")]


def _outliers(probe: ProbeResult) -> str:
    """Return sentences about the outliers where they dominate the gradient of cross entropy, else an empty text.

    Outliers do not change the advised loss. In the study `fair_losses`, GHM-C with a power of 0.5 and OHEM had a higher
    AP than focal loss with wrong annotations, but also with clean annotations.
    """
    missed, wrong = (probe.losses["cross_entropy"].gradient[group] for group in OUTLIERS)
    if not missed + wrong >= MIN_OUTLIER_SHARE:  # also for NaN
        return ""
    return (
        f" Outliers are elements whose score contradicts their label. They have {missed + wrong:.0%} of the trained "
        f"model's cross-entropy gradient: {missed:.0%} is that of missed objects, and {wrong:.0%} that of high scores "
        "for classes that the anchors do not have. Check these images for wrong labels."
    )


def _anchor_sampler(census: Census) -> Advice:
    """Advise random under-sampling to 1 : 1, with room for all foreground anchors of 95% of the images."""
    anchors, foreground = census.anchors, census.by_image.foreground.quantiles["95"]
    count = 2 * max(1, math.ceil(foreground))
    return Advice(
        "anchor_sampler",
        {"type": "random", "count": count, "foreground_fraction": 0.5},
        "At gamma 0 the loss does not reduce the weight of easy background, so a sampler removes part of the "
        f"background. {count} anchors per image hold all foreground anchors of 95% of the images ({foreground:.0f} "
        "anchors) and as many background anchors. With equal numbers, 1 of "
        f"{anchors.background / anchors.foreground:,.0f} background anchors is used.",
    )


def _images(census: Census) -> list[Advice]:
    """Advise an image sampler, or class weights where a sampler cannot help."""
    empty = census.by_image.images_without_objects / census.num_images
    if empty > MANY_EMPTY_IMAGES and any(row.objects for row in census.by_class):
        return [
            Advice(
                "data.sampler",
                {"type": "class_balanced"},
                f"{empty:.0%} of the images have no object and give only background. The class-balanced sampler draws "
                "images by class, so every drawn image has an object.",
            )
        ]
    present = [row for row in census.by_class if row.objects]
    if len(present) < 2:
        return []
    most, least = (pick(present, key=lambda row: row.objects) for pick in (max, min))
    if least.objects >= RARE_CLASS * most.objects:
        return []
    share = least.images / census.num_images
    rarity = f"Class {least.name} has {least.objects:,} objects, and class {most.name} has {most.objects:,}."
    if share > SHARED_CLASS and not census.anchors.foreground:
        return []  # no loss is advised that could have class weights
    if share > SHARED_CLASS:
        weights = dict(zip(census.class_names, census.remedies.class_weights["effective_number"], strict=True))
        return [
            Advice(
                "loss.classification.class_weights",
                "effective_number",
                f"{rarity} {share:.0%} of the images have class {least.name}, so repeating images would repeat both "
                f"classes. The class weights are {weights[least.name]:.2f} for {least.name} and "
                f"{weights[most.name]:.2f} for {most.name}.",
            )
        ]
    threshold = round(min(1.0, 4 * share), 3)
    return [
        Advice(
            "data.sampler",
            {"type": "repeat_factor", "threshold": threshold},
            f"{rarity} {share:.1%} of the images have class {least.name}. With threshold {threshold:g} the sampler "
            "draws these images up to twice as often.",
        )
    ]


def _anchors(census: Census) -> list[Advice]:
    advice = []
    fit, matches = census.anchor_suggestion, census.matches
    if fit is None:
        return []
    recall = fit.recall
    if gains_recall(fit):
        reason = (
            f"Only {recall.now:.1%} of the objects have an anchor with the IoU that the assigner requires. With "
            f"anchors fitted to the boxes of the data set, {recall.suggested:.1%} have such an anchor."
        )
        advice.append(Advice("model.head.sizes", fit.sizes, reason))
        advice.append(Advice("model.head.ratios", fit.ratios, reason))
    elif matches.unmatched > MAX_UNMATCHED * matches.objects:
        reason = (
            f"{matches.unmatched} of {matches.objects} objects have no foreground anchor, so the model does not learn "
            "them. With low_quality each object gets its best anchor."
        )
        advice.append(Advice("assigner", {"type": "max_iou", "low_quality": True}, reason))
    elif matches.low_quality > MAX_LOW_QUALITY * matches.objects:
        reason = (
            f"{matches.low_quality} of {matches.objects} objects have only foreground anchors whose IoU is below the "
            "assigner's threshold. ATSS computes a threshold for each object."
        )
        advice.append(Advice("assigner", {"type": "atss"}, reason))
    return advice
