"""Readings of a probe: the terms of its table, and sentences with its numbers and their limits."""

import math

import numpy as np

from detector.core.wording import percent, ratio, short
from detector.imbalance.advisor import MIN_OUTLIER_SHARE, OUTLIERS
from detector.imbalance.meters import GRADIENT_SHARE_RANGE
from detector.imbalance.probe_result import ProbeResult
from detector.imbalance.vocabulary import EASY_BELOW, OUTLIER_FROM

HARDEST = 0.01  # of the elements
LOW, HIGH = 0.25, 0.75  # scores that a reading compares
REFERENCE = "cross_entropy"
COLUMNS = {  # the column of each of GROUPS
    "foreground": "fg",
    "foreground_outlier": "fg outlier",
    "easy_background": "easy bg",
    "hard_background": "hard bg",
    "background_outlier": "bg outlier",
}
TERMS = {
    "element": "the score p of an anchor for a class; the target is 1 for the class of a foreground anchor, and else 0",
    "fg": f"target 1 and p above {1 - OUTLIER_FROM:.1f}",
    "fg outlier": f"target 1 and p of at most {1 - OUTLIER_FROM:.1f}: a missed object, or a wrong label",
    "easy bg": f"target 0 and p below {EASY_BELOW}",
    "hard bg": f"target 0 and p from {EASY_BELOW} to {OUTLIER_FROM}",
    "bg outlier": f"target 0 and p of at least {OUTLIER_FROM}: a wrong detection, or an object without a label",
}


def chosen(probe: ProbeResult) -> list[str]:
    """Return the losses that the figures color. The first is the loss that the readings describe.

    They are the loss of the training, cross entropy, and the losses that give foreground the most and the least of the
    gradient.
    """
    losses = probe.losses
    trained = str(probe.trained_with.get("type", ""))
    ranked = sorted(losses, key=lambda name: losses[name].gradient_foreground)
    names = [trained, REFERENCE, ranked[-1], ranked[0]]
    return list(dict.fromkeys(name for name in names if name in losses))


def describe(probe: ProbeResult) -> str:
    """Return the readings of the elements and of the gradient, a line for each subject."""
    return "\n".join(filter(None, (read_norms(probe), read_budget(probe), read_outliers(probe))))


def read_budget(probe: ProbeResult) -> str:
    """Compare the shares of the gradient that the losses give to foreground."""
    losses, name = probe.losses, chosen(probe)[0]
    shares = {loss: losses[loss].gradient_foreground for loss in losses}
    low, high = (pick(shares, key=shares.__getitem__) for pick in (min, max))
    parts = losses[name].gradient
    text = f"{_title(probe, name)} gives foreground {shares[name]:.1%} of the gradient"
    text += f" (fg {parts['foreground']:.1%} and fg outlier {parts['foreground_outlier']:.1%})"
    text += f"; the range is {shares[low]:.1%} ({short(low)}) to {shares[high]:.1%} ({short(high)})"
    least, most = map(percent, GRADIENT_SHARE_RANGE)
    return f"{text}. A share below {least} or above {most} is bad."


def read_outliers(probe: ProbeResult) -> str:
    """Compare the shares of the gradient that the losses give to outliers."""
    shares = {name: sum(loss.gradient[group] for group in OUTLIERS) for name, loss in probe.losses.items()}
    name = chosen(probe)[0]
    low, high = (pick(shares, key=shares.__getitem__) for pick in (min, max))
    text = f"{_title(probe, name)} gives outliers {percent(shares[name])} of the gradient"
    text += f"; the range is {percent(shares[low])} ({short(low)}) to {percent(shares[high])} ({short(high)})"
    if REFERENCE not in shares:
        return f"{text}."
    limit = f"from {percent(MIN_OUTLIER_SHARE)} on, look for wrong labels"
    return f"{text}. Cross entropy gives outliers {percent(shares[REFERENCE])}; {limit}."


def read_norms(probe: ProbeResult) -> str:
    """State how much of the background is easy, and how much of the foreground is an outlier."""
    elements = probe.elements
    foreground = elements["foreground"] + elements["foreground_outlier"]
    background = elements["easy_background"] + elements["hard_background"] + elements["background_outlier"]
    if not foreground or not background:
        return ""
    return (
        f"{percent(elements['easy_background'] / background)} of the background elements are easy (p below "
        f"{EASY_BELOW}), and {percent(elements['foreground_outlier'] / foreground)} of the foreground elements are "
        f"outliers (p of at most {1 - OUTLIER_FROM:.1f})."
    )


def read_weighted(probe: ProbeResult) -> str:
    """State the gradient norm above which half of the gradient is."""
    name = chosen(probe)[0]
    edges, shares = np.array(probe.gradient_norm.edges), np.array(probe.losses[name].reweighted)
    if not np.isfinite(shares).all() or not shares.sum():
        return ""
    middle = edges[1:][np.searchsorted(np.cumsum(shares) / shares.sum(), 0.5)]
    return f"Half of the gradient of {short(name)} is on elements with a norm above {middle:.2f}."


def read_cumulative(probe: ProbeResult, kind: str) -> str:
    """State how much of the loss the hardest hundredth of the elements has."""
    shares = {name: _of_hardest(probe, name, kind) for name in probe.losses}
    shares = {name: share for name, share in shares.items() if not math.isnan(share)}
    name = chosen(probe)[0]
    if name not in shares:
        return ""
    most = max(shares, key=shares.__getitem__)
    text = f"With {short(name)} the hardest 1% of the {kind} elements have {percent(shares[name])} of their loss"
    return f"{text}." if most == name else f"{text}, with {short(most)} {percent(shares[most])}."


def read_by_score(probe: ProbeResult, kind: str) -> str:
    """Compare the loss of hard elements with that of easy elements."""
    name = chosen(probe)[0]
    curve = probe.losses[name].loss_by_p
    means = {p: mean for p, mean in zip(curve.p, getattr(curve, kind), strict=True) if mean > 0}
    if len(means) < 2:
        return ""
    low, high = (min(means, key=lambda p: abs(p - near)) for near in (LOW, HIGH))
    easy, hard = (low, high) if kind == "background" else (high, low)
    times = ratio(means[hard] / means[easy])
    scores = f"of score {hard:.2f} costs {times} times as much as an element of score {easy:.2f}"
    return f"With {short(name)} a {kind} element {scores}."


def _title(probe: ProbeResult, name: str) -> str:
    return f"{short(name)}, the loss of the training," if name == probe.trained_with.get("type") else short(name)


def _of_hardest(probe: ProbeResult, name: str, kind: str) -> float:
    curve = probe.losses[name].cumulative[kind]
    if not curve.elements or not np.isfinite(curve.loss).all():
        return math.nan
    return 1 - float(np.interp(1 - HARDEST, curve.elements, curve.loss))
