"""Pictures of the training data, drawn before the first step: a batch with its boxes, and the labels' statistics."""

import math
from pathlib import Path

import cv2
import numpy as np

from detector.core.drawing import draw_boxes
from detector.core.files import replacing
from detector.core.plotting import optional, plain, plotting
from detector.core.structures import PADDING_COLOR, Batch
from detector.data.images import write_image

MAX_CELLS = 16  # images in the picture of a batch
CELL_SIDE = 400  # pixels
MAX_CLASSES = 20  # bars


def save_batch(path: Path, batch: Batch, class_names: tuple[str, ...]) -> None:
    """Write a picture of a batch as the model gets it: its augmented images with their boxes and class names.

    Regions that count neither as foreground nor as background are called `ignored`. A batch that cannot be drawn is
    left out with a warning.

    Args:
        path: the file to write.
        batch: the batch. At most 16 of its images are drawn.
        class_names: the names of the classes, by label.
    """
    with optional(f"{path}"):
        cells = [_cell(batch, i, class_names) for i in range(min(len(batch.image_ids), MAX_CELLS))]
        num_columns = math.ceil(math.sqrt(len(cells)))
        blank = np.full_like(cells[0], PADDING_COLOR)
        cells += [blank] * (-len(cells) % num_columns)
        rows = [np.hstack(cells[i : i + num_columns]) for i in range(0, len(cells), num_columns)]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, np.vstack(rows))


def _cell(batch: Batch, index: int, class_names: tuple[str, ...]) -> np.ndarray:
    image = batch.images[index].permute(1, 2, 0).numpy()
    scale = CELL_SIDE / max(image.shape[:2])
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    labels = batch.labels[index].numpy()
    labels = np.where(batch.ignore[index].numpy() & (labels >= 0), len(class_names), labels)
    is_real = labels >= 0  # the others are padding
    return draw_boxes(
        cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST),
        batch.boxes[index].numpy()[is_real] * scale,
        labels[is_real],
        (*class_names, "ignored"),
    )


def save_labels(
    path: Path, class_counts: np.ndarray, class_names: tuple[str, ...], sides: np.ndarray, prior_sides: np.ndarray
) -> None:
    """Write the statistics of the training labels as a figure, with the head's priors over them.

    The panels are the objects of each class, the width and height of each object, and the histogram of the aspect
    ratios. A figure that cannot be drawn is left out with a warning.

    Args:
        path: the file to write.
        class_counts: (K,) the number of objects of each class.
        class_names: the names of the classes.
        sides: (N, 2) width and height of each object in pixels, at the size of the training images.
        prior_sides: (M, 2) width and height of each shape of a prior, in pixels.
    """
    with optional(f"{path}"), plotting():
        from matplotlib import pyplot  # its import is slow

        figure, (counts, boxes, ratios) = pyplot.subplots(1, 3, figsize=(14, 4.5), layout="constrained")
        order = np.argsort(-class_counts, kind="stable")[:MAX_CLASSES][::-1]
        bars = counts.barh([plain(class_names[k]) for k in order], class_counts[order])
        counts.bar_label(bars, padding=3)
        counts.margins(x=0.15)
        shown = f": the largest {MAX_CLASSES}" if len(class_names) > MAX_CLASSES else ""
        counts.set(title=f"Objects by class{shown}")

        boxes.scatter(*sides.T, s=6, alpha=0.25, linewidths=0, label="objects")
        boxes.scatter(*prior_sides.T, s=36, marker="+", color="black", label="priors (anchors)")
        boxes.set(title="Size in training (pixels)", xlabel="width", ylabel="height", xscale="log", yscale="log")
        boxes.legend()

        ratios.hist(np.log2(sides[:, 0] / sides[:, 1]).clip(-4, 4), bins=np.linspace(-4, 4, 49))
        for ratio in np.unique(np.round(4 * np.log2(prior_sides[:, 0] / prior_sides[:, 1])) / 4):
            ratios.axvline(ratio, color="black", linestyle="--", linewidth=1)
        ticks = [-4, -2, -1, 0, 1, 2, 4]
        ratios.set(title="Width : height (dashed: priors)", xticks=ticks, ylabel="objects")
        ratios.set_xticklabels([f"{2**t}:1" if t >= 0 else f"1:{2**-t}" for t in ticks])
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=110)
        pyplot.close(figure)
