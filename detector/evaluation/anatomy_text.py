"""A summary of an anatomy as text."""

from detector.core.errors import one_line
from detector.evaluation.anatomy_result import Anatomy, Confusion

MAX_CONFUSIONS = 4


def describe(anatomy: Anatomy) -> str:
    """Return the main figures of an anatomy, a line for each subject."""
    costs = {name: cost for name, cost in anatomy.tide.items() if name != "AP50"}
    best = anatomy.curves.best_f1
    lines = [
        "AP50 lost by error type (TIDE): " + "  ".join(f"{name} {cost:.3f}" for name, cost in costs.items()),
        f"best F1: {best.f1:.3f} at score {best.score:.2f} (precision {best.precision:.3f}, recall {best.recall:.3f})",
        f"expected calibration error: {anatomy.calibration.ece:.3f}",
    ]
    if confusions := _confusions(anatomy.confusion):
        lines.append(f"most frequent confusions with score {best.score:.2f} or higher: {', '.join(confusions)}")
    if anatomy.at_border is not None:
        (objects, num_objects), (wrong, num_wrong) = anatomy.at_border.objects, anatomy.at_border.wrong
        if num_objects and num_wrong:
            lines.append(
                f"boxes at the image border: {objects / num_objects:.0%} of the objects, {wrong / num_wrong:.0%} of "
                f"the wrong detections with score {best.score:.2f} or higher"
            )
    if (ranking := anatomy.anchor_level) is not None:
        lines.append(f"anchor scores: ROC-AUC {ranking.roc_auc:.4f}, average precision {ranking.average_precision:.4f}")
    for part in anatomy.by_imbalance:
        low, high = part.background_per_foreground
        lines.append(
            f"AP of images with {low:.0f} to {high:.0f} background anchors per foreground anchor: {part.AP:.3f}"
        )
    return "\n".join(lines)


def _confusions(confusion: Confusion) -> list[str]:
    """Return the most frequent confusions, the most frequent first."""
    names, counts = [one_line(name) for name in confusion.names], confusion.counts
    wrong = [
        (counts[i][j], f"{truth} detected as {predicted} ({counts[i][j]})")
        for i, truth in enumerate(names)
        for j, predicted in enumerate(names)
        if i != j and counts[i][j]
    ]
    return [text for _, text in sorted(wrong, key=lambda item: -item[0])[:MAX_CONFUSIONS]]
