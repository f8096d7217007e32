"""Readings of a census: the terms of its tables, and sentences with its numbers and their limits."""

import math

from detector.core.wording import counted, number, percent, ratio, short
from detector.imbalance.advisor import MAX_LOW_QUALITY, MAX_UNMATCHED, MILD_RATIO, SEVERE_RATIO, gains_recall
from detector.imbalance.census_result import AnchorSuggestion, Census

THRESHOLD = "the assigner's limit (assigner.foreground; 0.5 where the assigner has no such key)"
ANCHOR_TERMS = {
    "level": "P3 has a cell for every 8 pixels, and each further level doubles this distance",
    "foreground": "anchors that the assigner gives to an object; they learn the object",
    "ignored": "anchors between foreground and background, or in a crowd; the loss omits them",
    "background": "all other anchors; they learn that there is no object",
}
OBJECT_TERMS = {
    "size": "small is below 32 x 32 pixels of the original image, large is from 96 x 96 pixels",
    "without anchor": "objects without a foreground anchor; the model does not learn them",
    "low quality only": f"objects whose foreground anchors all have an IoU below {THRESHOLD}",
}
SAMPLE = 10_000  # anchors of the sentence that compares foreground and background


def describe(census: Census) -> str:
    """Return all readings, a line for each subject."""
    readings = (read_anchors, read_ratio, read_images, read_levels, read_classes, read_matches)
    lines = [read(census) for read in readings]
    if census.anchor_suggestion is not None:
        lines.append(read_fit(census.anchor_suggestion))
    return "\n".join(filter(None, lines))


def read_anchors(census: Census) -> str:
    """State the parts of the anchors."""
    anchors = census.anchors
    total = anchors.foreground + anchors.ignored + anchors.background
    if not total:
        return ""
    parts = (ratio(SAMPLE * count / total) for count in (anchors.foreground, anchors.ignored, anchors.background))
    return "Of {:,} anchors, {} are foreground, {} are ignored and {} are background.".format(SAMPLE, *parts)


def read_ratio(census: Census) -> str:
    """State the background elements per foreground element, and judge the imbalance by the limits of the advisor."""
    anchors = census.anchors
    if not anchors.foreground:
        return "There is no foreground anchor, so a model cannot learn the objects."
    anchor_ratio = anchors.background / anchors.foreground
    background = census.background_elements / anchors.foreground
    grade = "mild" if background < MILD_RATIO else "strong" if background < SEVERE_RATIO else "severe"
    return (
        f"There are {ratio(anchor_ratio)} background anchors for each foreground anchor. An anchor has a score for "
        f"each class ({len(census.class_names)}), so there are {ratio(background)} background scores for each "
        f"foreground score. This imbalance is {grade}: below {MILD_RATIO} is mild, {MILD_RATIO} to {SEVERE_RATIO:,} "
        f"is strong, and from {SEVERE_RATIO:,} is severe."
    )


def read_levels(census: Census) -> str:
    """Name the level with the most foreground anchors."""
    total = census.anchors.foreground
    if not total:
        return ""
    most = max(reversed(census.by_level), key=lambda row: row.foreground)
    return f"{most.level} has {percent(most.foreground / total)} of the {total:,} foreground anchors."


def read_images(census: Census) -> str:
    """State the median and the range over the images of the background anchors for each foreground anchor."""
    quantiles = census.by_image.background_per_foreground.quantiles
    if math.isnan(quantiles["50"]):
        return ""
    return (
        f"Half of the images have fewer than {ratio(quantiles['50'])} background anchors for each foreground anchor; "
        f"the range is {ratio(quantiles['0'])} to {ratio(quantiles['100'])}."
    )


def read_classes(census: Census) -> str:
    """Compare the most frequent class with the rarest class."""
    present = sorted((row for row in census.by_class if row.objects), key=lambda row: row.objects)
    if not present:
        return ""
    most, least = present[-1], present[0]
    text = f"{short(most.name)} has {counted(most.objects, 'object')}"
    if most is least:
        return f"{text}."
    times = ratio(most.objects / least.objects)
    return f"{text}, {times} times as many as {short(least.name)} ({least.objects:,})."


def read_matches(census: Census) -> str:
    """State the objects without an anchor and with low-quality anchors only, with the limits of the advisor."""
    matches = census.matches
    if not matches.objects:
        return ""
    unmatched, low_quality = (percent(count / matches.objects) for count in (matches.unmatched, matches.low_quality))
    return (
        f"{unmatched} of the objects have no foreground anchor; more than {percent(MAX_UNMATCHED)} is bad. "
        f"{low_quality} have low quality only; more than {percent(MAX_LOW_QUALITY)} is bad."
    )


def read_fit(suggestion: AnchorSuggestion) -> str:
    """State the objects that an anchor fits, also with the suggested anchors if these fit clearly more objects."""
    recall, iou = suggestion.recall, suggestion.mean_max_iou
    text = (
        f"{percent(recall.now)} of the objects have an anchor whose IoU is at least {THRESHOLD}; "
        f"the mean of their highest IoU is {number(iou.now, 2)}"
    )
    if not gains_recall(suggestion):
        return f"{text}."
    return f"{text}. The suggested anchors reach {percent(recall.suggested)} and {number(iou.suggested, 2)}."
