"""The summary of a source: sentences with the numbers that matter most."""

import math

from detector.core.wording import counted, number, percent, ratio, short
from detector.evaluation.anatomy_result import Anatomy
from detector.evaluation.metrics import Metrics
from detector.imbalance.census_result import Census
from detector.imbalance.probe_result import ProbeResult
from detector.lab.report.errors import ERRORS, error_shares
from detector.lab.report.series import read_series
from detector.lab.report.sources import Source


def summarize(source: Source, num_images: int | None) -> list[str]:
    """Return the sentences for which the source has the data.

    Args:
        source: a folder's files.
        num_images: the number of validation images, where it is known.
    """
    sentences = [
        accuracy(source.metrics, num_images) if source.metrics is not None else "",
        errors(source.anatomy) if source.anatomy is not None else "",
        threshold(source.anatomy) if source.anatomy is not None else "",
        foreground(source.census, source.steps),
        classes(source.census) if source.census is not None else "",
        losses(source.probe) if source.probe is not None else "",
    ]
    return [sentence for sentence in sentences if sentence]


def accuracy(metrics: Metrics, num_images: int | None) -> str:
    """State AP, and the weakest class with its AP."""
    if math.isnan(metrics["AP"]):
        return "The validation split has no objects, so there is no AP."
    where = "the validation split" if num_images is None else counted(num_images, "validation image")
    text = f"AP is {number(metrics['AP'], 2)} on {where}"
    if not math.isnan(at_half := metrics.numbers.get("AP50", math.nan)):
        text += f" (AP50 {number(at_half, 2)})"
    measured = {name: values.AP for name, values in metrics.per_class.items() if not math.isnan(values.AP)}
    if len(set(measured.values())) < 2:
        return f"{text}."
    weakest = min(measured, key=measured.__getitem__)
    return f"{text}; the weakest class is {short(weakest)} (AP {number(measured[weakest], 2)})."


def errors(anatomy: Anatomy) -> str:
    """State which types of errors cost most AP50."""
    shares = error_shares(anatomy)
    if not shares:
        return "No error costs AP50."
    (first, share), *others = shares.items()
    text = f"{percent(share)} of the AP50 that errors cost is from {ERRORS[first]}"
    return f"{text}; the next are {ERRORS[others[0][0]]} ({percent(others[0][1])})." if others else f"{text}."


def threshold(anatomy: Anatomy) -> str:
    """State the score threshold of the highest F1."""
    best = anatomy.curves.best_f1
    if not best.f1:
        return ""
    return (
        f"F1 is highest at the score threshold {best.score:.2f}: {number(best.f1, 2)}, with precision "
        f"{number(best.precision, 2)} and recall {number(best.recall, 2)}."
    )


def foreground(census: Census | None, steps: list[dict[str, float]]) -> str:
    """State how rare foreground anchors are, and their share of the gradient at the end of the training."""
    texts = []
    background = foreground_ratio(census, steps)
    if not math.isnan(background):
        texts.append(f"Foreground is 1 of {background + 1:,.0f} anchors")
    share = read_series(steps, "fg_gradient_share")
    if len(share):
        subject = "foreground" if texts else "Foreground"
        texts.append(f"{subject} has {percent(share.end)} of the gradient at the end of the training")
    return f"{'; '.join(texts)}." if texts else ""


def foreground_ratio(census: Census | None, steps: list[dict[str, float]]) -> float:
    """Return the background anchors per foreground anchor: of the census, else of the training; NaN without both."""
    if census is not None:
        return census.ratio
    measured = [row for row in steps if "num_bg" in row and "num_fg" in row]
    fg, bg = (sum(row[name] for row in measured) for name in ("num_fg", "num_bg"))
    return bg / fg if fg else math.nan


def classes(census: Census) -> str:
    """State how unequal the classes are, and how many objects have no anchor."""
    present = sorted((row for row in census.by_class if row.objects), key=lambda row: row.objects)
    if not present:
        return "The census has no objects."
    texts = []
    if len(present) > 1:
        most, least = present[-1], present[0]
        times = ratio(most.objects / least.objects)
        texts.append(f"{short(most.name)} has {times} times as many objects as {short(least.name)}")
    if census.matches.unmatched:
        share = percent(census.matches.unmatched / census.matches.objects)
        texts.append(f"{share} of the objects have no foreground anchor")
    return f"{'; '.join(texts)}." if texts else ""


def losses(probe: ProbeResult) -> str:
    """Compare the loss of the training with the other losses by the share of the gradient on foreground."""
    shares = {name: loss.gradient_foreground for name, loss in probe.losses.items()}
    trained = str(probe.trained_with.get("type", ""))
    if trained not in shares or any(math.isnan(share) for share in shares.values()):
        return ""
    low, high = (pick(shares, key=shares.__getitem__) for pick in (min, max))
    return (
        f"On the scores of this model, {short(trained)} gives foreground {percent(shares[trained])} of the gradient; "
        f"the range of all losses is {percent(shares[low])} ({short(low)}) to {percent(shares[high])} ({short(high)})."
    )
