"""Readings of the figures of an anatomy: a sentence each."""

import math
from collections.abc import Sequence

import numpy as np

from detector.core.wording import counted, listed, number, percent, short
from detector.evaluation.anatomy_result import Anatomy, Calibration, Confusion, Curves, ImbalancePart, PrecisionRecall
from detector.lab.report.errors import ERRORS, error_shares

MAX_CONFUSIONS = 3
PRECISE = 0.9
CALIBRATED = 0.02  # mean score minus precision that is no bias


def read_errors(anatomy: Anatomy) -> str:
    """Name the largest type of error."""
    shares = error_shares(anatomy)
    if not shares:
        return "No error costs AP50."
    name, share = next(iter(shares.items()))
    return (
        f"The largest cost is that of {ERRORS[name]}: {number(anatomy.tide[name])} AP50, "
        f"{percent(share)} of the sum of the six types."
    )


def read_confusion(confusion: Confusion) -> str:
    """Name the most frequent confusions."""
    names, counts = [short(name) for name in confusion.names], confusion.counts
    last = len(names) - 1
    wrong = sorted(
        ((counts[i][j], i, j) for i in range(len(names)) for j in range(len(names)) if i != j and counts[i][j]),
        reverse=True,
    )
    texts = []
    for count, truth, prediction in wrong[:MAX_CONFUSIONS]:
        if truth == last:
            texts.append(f"{count:,} detections of {names[prediction]} on background")
        elif prediction == last:
            texts.append(f"{count:,} missed objects of {names[truth]}")
        else:
            texts.append(f"{count:,} objects of {names[truth]} detected as {names[prediction]}")
    where = f"At score {confusion.score:.2f}"
    return f"{where} the most frequent errors are {listed(texts)}." if texts else f"{where} there is no error."


def read_thresholds(curves: Curves) -> str:
    """Name the threshold of the highest F1."""
    best = curves.best_f1
    if not best.f1:
        return "No detection is right at any threshold."
    return (
        f"F1 is highest at the threshold {best.score:.2f}: {number(best.f1)}, with precision {number(best.precision)} "
        f"and recall {number(best.recall)}."
    )


def read_recall(curves: dict[str, PrecisionRecall]) -> str:
    """Compare the recalls to which the classes keep a precision of 0.9."""
    reached = {name: _recall_at(curve, PRECISE) for name, curve in curves.items()}
    if not reached:
        return ""
    if not any(reached.values()):
        return f"No class has a precision of {PRECISE} at any recall."
    best, worst = (pick(reached, key=reached.__getitem__) for pick in (max, min))
    text = f"{short(best)} keeps a precision of {PRECISE} up to the recall {reached[best]:.2f}"
    return f"{text}, {short(worst)} up to {reached[worst]:.2f}." if best != worst else f"{text}."


def read_calibration(calibration: Calibration) -> str:
    """Name the calibration error and its direction."""
    if math.isnan(calibration.ece):
        return "There are no detections."
    total = sum(b.count for b in calibration.bins)
    bias = sum(b.count * (b.score - b.precision) for b in calibration.bins) / total
    direction = "about right" if abs(bias) < CALIBRATED else f"{abs(bias):.2f} too {'high' if bias > 0 else 'low'}"
    return (
        f"The scores of {counted(total, 'detection')} are {direction} on average; "
        f"the expected calibration error is {number(calibration.ece)}."
    )


def read_imbalance(parts: Sequence[ImbalancePart]) -> str:
    """Compare the images of the lowest and of the highest imbalance."""
    first, last = parts[0], parts[-1]
    if math.isnan(first.AP) or math.isnan(last.AP):
        return ""
    return (
        f"AP is {number(first.AP)} on the images with the fewest background anchors per foreground anchor and "
        f"{number(last.AP)} on the images with the most."
    )


def _recall_at(curve: PrecisionRecall, precision: float) -> float:
    """Return the highest recall at which the curve has at least this precision; 0 where it never has."""
    enough = np.array(curve.recall)[np.array(curve.precision) >= precision]
    return float(enough.max()) if len(enough) else 0.0
