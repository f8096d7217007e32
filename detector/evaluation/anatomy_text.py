"""An anatomy in a few lines of text."""

from detector.core.errors import one_line
from detector.evaluation.anatomy_result import Anatomy, Confusion

MAX_CONFUSIONS = 4


def describe(anatomy: Anatomy) -> str:
    """Return the main figures of an anatomy, a line for each subject."""
    costs = {name: cost for name, cost in anatomy.tide.items() if name != "AP50"}
    best = anatomy.curves.best_f1
    lines = [
        "AP50 lost to errors (TIDE): " + "  ".join(f"{name} {cost:.3f}" for name, cost in costs.items()),
        f"best F1 {best.f1:.3f} at score {best.score:.2f} (precision {best.precision:.3f}, recall {best.recall:.3f}); "
        f"calibration error {anatomy.calibration.ece:.3f}",
    ]
    if confusions := _confusions(anatomy.confusion):
        lines.append(f"most often, at that score: {', '.join(confusions)}")
    if anatomy.at_border is not None:
        (objects, num_objects), (wrong, num_wrong) = anatomy.at_border.objects, anatomy.at_border.wrong
        if num_objects and num_wrong:
            shares = f"{objects / num_objects:.0%} of the objects, {wrong / num_wrong:.0%} of the wrong detections"
            lines.append(f"at the picture's border: {shares} at that score")
    if (ranking := anatomy.anchor_level) is not None:
        lines.append(f"anchors: ROC-AUC {ranking.roc_auc:.4f}, average precision {ranking.average_precision:.4f}")
    for part in anatomy.by_imbalance:
        low, high = part.background_per_foreground
        lines.append(f"images of {low:.0f} to {high:.0f} background anchors per foreground anchor: AP {part.AP:.3f}")
    return "\n".join(lines)


def _confusions(confusion: Confusion) -> list[str]:
    """Return the most frequent confusions, the most frequent first."""
    names, counts = [one_line(name) for name in confusion.names], confusion.counts
    wrong = [
        (counts[i][j], f"{truth} taken for {taken} {counts[i][j]}")
        for i, truth in enumerate(names)
        for j, taken in enumerate(names)
        if i != j and counts[i][j]
    ]
    return [text for _, text in sorted(wrong, key=lambda item: -item[0])[:MAX_CONFUSIONS]]
