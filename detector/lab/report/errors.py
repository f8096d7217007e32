"""TIDE's types of errors in words, and their parts of the loss of AP50."""

from detector.evaluation.anatomy_result import Anatomy

ERRORS = {
    "Bkg": "false positives on background",
    "Miss": "missed objects",
    "Loc": "inaccurate boxes",
    "Cls": "wrong classes",
    "Both": "boxes with a wrong class and position",
    "Dupe": "duplicate detections",
}


def error_shares(anatomy: Anatomy) -> dict[str, float]:
    """Return the share of each type in the sum of the AP50 that the repair of each type adds.

    The shares are in 0..1, the largest first, by TIDE's names. Types that cost nothing are left out.
    """
    costs = {name: anatomy.tide[name] for name in ERRORS if anatomy.tide.get(name, 0) > 0}
    total = sum(costs.values())
    return {name: cost / total for name, cost in sorted(costs.items(), key=lambda item: -item[1])}
