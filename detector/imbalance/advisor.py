"""Which remedies a data set's census, and a model's probe, speak for. The thresholds are rules of thumb, stated here
once; the figures behind each recommendation are measured."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from detector.imbalance.balance import balancing_alpha, focal_pull, initial_alpha
from detector.imbalance.census_result import Census
from detector.imbalance.probe_result import ProbeResult

# Lin et al. 2017, table 1b: the best alpha on COCO at each gamma
PUBLISHED_ALPHA = {0.1: 0.75, 0.2: 0.75, 0.5: 0.5, 1.0: 0.25, 2.0: 0.25, 5.0: 0.25}
MILD_RATIO = 20  # background elements per foreground element below which cross entropy needs no help
OUTLIER_SHARE = 0.3  # of a trained model's cross-entropy gradient: that much comes from labels it is sure are wrong
WEIGHTED = ("focal", "cross_entropy")  # the losses that take class weights
EMPTY_IMAGES = 0.5  # of all images
RARE_CLASS = 0.1  # of the most frequent class's objects
POOR_RECALL = 0.95
GAIN = 0.02
UNMATCHED = 0.02
LOW_QUALITY = 0.1
OUTLIERS = ("foreground_outlier", "background_outlier")
LIMITS = (0.05, 0.95)  # alpha beyond them silences one side altogether


@dataclass(frozen=True, slots=True)
class Advice:
    """A config key, the value to give it, and why, in a sentence with the figures."""

    key: str
    value: Any
    reason: str


def advise(census: Census, probe: ProbeResult | None, gamma: float) -> list[Advice]:
    """Advise remedies, the most important first. The loss is always among them; what already fits is not.

    Args:
        census: the data set's.
        probe: a trained model's, or None.
        gamma: focal loss's. 0 asks for cross entropy, which needs under-sampling.
    """
    loss = _loss(census, probe, gamma)
    takes_weights = any(one.key == "loss.classification" and one.value["type"] in WEIGHTED for one in loss)
    return [*loss, *_images(census, takes_weights), *_anchors(census)]


def overlay(advice: list[Advice]) -> dict[str, Any]:
    """The nested values that the advice sets, a config over the one it was made for."""
    values: dict[str, Any] = {}
    for one in advice:
        *sections, last = one.key.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = one.value
    return values


def alpha_of_probe(probe: ProbeResult, gamma: float) -> float:
    """The alpha at which a trained model's foreground and background pull alike: focal loss's pull at the middle of
    each bin of the gradient norm, times the elements there."""
    edges = np.array(probe.gradient_norm.edges)
    pull = focal_pull((edges[:-1] + edges[1:]) / 2, gamma)
    foreground, background = (
        float((pull * counts).sum()) for counts in (probe.gradient_norm.foreground, probe.gradient_norm.background)
    )
    return balancing_alpha(foreground, background)


def _loss(census: Census, probe: ProbeResult | None, gamma: float) -> list[Advice]:
    anchors, num_classes = census.anchors, len(census.class_names)
    if not anchors.foreground:
        return []
    elements_bg = (anchors.foreground + anchors.background) * num_classes - anchors.foreground
    ratio = elements_bg / anchors.foreground
    if probe is not None:
        missed, unmarked = (probe.losses["cross_entropy"].gradient[group] for group in OUTLIERS)
        focal, ghm = (sum(probe.losses[name].gradient[group] for group in OUTLIERS) for name in ("focal", "ghm_c"))
        # harmonising holds down outliers that are many; few and far ones it lifts
        if missed + unmarked >= OUTLIER_SHARE and ghm < focal:
            return [
                Advice(
                    "loss.classification",
                    {"type": "ghm_c"},
                    f"{missed + unmarked:.0%} of the trained model's cross-entropy gradient comes from outliers, "
                    f"elements it is sure are labelled otherwise ({missed:.0%} missed objects, {unmarked:.0%} found "
                    f"where none is marked); gradient harmonising leaves them {ghm:.0%}, focal loss {focal:.0%}, and "
                    f"their images are worth a look for wrong labels; gamma {gamma:g} is focal loss's alone",
                )
            ]
    if ratio < MILD_RATIO:
        return [
            Advice(
                "loss.classification",
                {"type": "cross_entropy"},
                f"{ratio:.0f} background elements per foreground element is mild; with model.head.prior cross entropy "
                f"copes, without gamma {gamma:g}",
            )
        ]
    if gamma == 0:
        reason = f"asked for; with {ratio:,.0f} background elements per foreground element it needs the anchor sampler"
        return [Advice("loss.classification", {"type": "cross_entropy"}, reason), _anchor_sampler(census)]
    under_sampled = anchors.background / anchors.foreground
    drowned = f"{ratio:,.0f} background elements per foreground element drown it in cross entropy"
    if probe is None:
        first = initial_alpha(anchors.foreground, elements_bg, gamma, census.remedies.prior)
        published = min(PUBLISHED_ALPHA, key=lambda known: abs(known - gamma))
        alpha = PUBLISHED_ALPHA[published]
        reason = (
            f"{drowned}; alpha {alpha:g} is the published optimum at gamma {published:g}. Foreground and background "
            f"pull alike on the very first scores at alpha {first:.3g}; on those of a trained model a probe tells"
        )
    else:
        balanced = alpha_of_probe(probe, gamma)
        alpha = round(min(max(balanced, LIMITS[0]), LIMITS[1]), 3)
        reason = (
            f"{drowned}; at gamma {gamma:g} foreground and background pull alike with alpha {balanced:.3g} on the "
            f"trained model's scores ({probe.split} split)"
            + (f", kept within {LIMITS[0]} to {LIMITS[1]}" if alpha != round(balanced, 3) else "")
        )
    reason += f". (Under-sampling would keep one background anchor in {under_sampled:,.0f})"
    return [Advice("loss.classification", {"type": "focal", "gamma": gamma, "alpha": alpha}, reason)]


def _anchor_sampler(census: Census) -> Advice:
    """Random under-sampling to 1 : 1 that leaves out hardly any foreground."""
    anchors, foreground = census.anchors, census.by_image.foreground.quantiles["95"]
    count = 2 * max(1, math.ceil(foreground))
    return Advice(
        "anchor_sampler",
        {"type": "random", "count": count, "foreground_fraction": 0.5},
        f"at gamma 0 nothing holds the easy background down, so a part of it goes: {count} anchors an image hold all "
        f"foreground of 95% of the images ({foreground:.0f} anchors) and as much background, one in "
        f"{anchors.background / anchors.foreground:,.0f}",
    )


def _images(census: Census, takes_weights: bool) -> list[Advice]:
    """Which images come up how often, or, where that cannot help, how much their classes weigh."""
    empty = census.by_image.images_without_objects / census.num_images
    if empty > EMPTY_IMAGES and any(row.objects for row in census.by_class):
        return [
            Advice(
                "data.sampler",
                {"type": "class_balanced"},
                f"{empty:.0%} of the images have no object and teach background alone; drawn class by class, every "
                "image that comes up has one",
            )
        ]
    present = [row for row in census.by_class if row.objects]
    if len(present) < 2:
        return []
    most, least = (pick(present, key=lambda row: row.objects) for pick in (max, min))
    if least.objects >= RARE_CLASS * most.objects:
        return []
    share = least.images / census.num_images
    # where rare objects share their images with the frequent ones, repeating images repeats both
    if share > 0.5 and not takes_weights:
        return []
    if share > 0.5:
        weights = dict(zip(census.class_names, census.remedies.class_weights["effective_number"], strict=True))
        return [
            Advice(
                "loss.classification.class_weights",
                "effective_number",
                f"{least.name} has {least.objects:,} objects against {most.objects:,} of {most.name}, but "
                f"is in {share:.0%} of the images, so repeating images would not help; as a weight it gets "
                f"{weights[least.name]:.2f} against {weights[most.name]:.2f}",
            )
        ]
    threshold = round(min(1.0, 4 * share), 3)
    return [
        Advice(
            "data.sampler",
            {"type": "repeat_factor", "threshold": threshold},
            f"{least.name} has {least.objects:,} objects against {most.objects:,} of {most.name} and is in "
            f"{share:.1%} of the images; with threshold {threshold:g} these come up twice as often",
        )
    ]


def _anchors(census: Census) -> list[Advice]:
    found = []
    fit, matches = census.anchor_suggestion, census.matches
    if fit is None:
        return []
    recall = fit.recall
    if recall.now < POOR_RECALL and recall.suggested > recall.now + GAIN:
        reason = (
            f"only {recall.now:.1%} of the objects have an anchor that overlaps them enough; with the boxes' own "
            f"sizes and shapes {recall.suggested:.1%}"
        )
        found.append(Advice("model.head.sizes", fit.sizes, reason))
        found.append(Advice("model.head.ratios", fit.ratios, reason))
    elif matches.unmatched > UNMATCHED * matches.objects:
        reason = f"{matches.unmatched} of {matches.objects} objects have no anchor at all: nothing can find them"
        found.append(Advice("assigner", {"type": "max_iou", "low_quality": True}, reason))
    elif matches.low_quality > LOW_QUALITY * matches.objects:
        reason = (
            f"{matches.low_quality} of {matches.objects} objects have only anchors that overlap them too little; "
            "with a threshold of its own each object gets its best anchors"
        )
        found.append(Advice("assigner", {"type": "atss"}, reason))
    return found
