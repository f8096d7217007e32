"""The computation of a census: the counts of all images, by level, class, object size and image."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from detector.core.errors import UserError
from detector.data.dataset import Record
from detector.geometry.anchors import AnchorGrid
from detector.geometry.boxes import pairwise_iou
from detector.imbalance.anchor_counts import Setting, count_all, padded_size, scaled_boxes
from detector.imbalance.anchor_fit import best_iou, suggest
from detector.imbalance.census_result import (
    AnchorSuggestion,
    Census,
    ClassCounts,
    Comparison,
    Crowding,
    Distribution,
    Histogram,
    ImageCounts,
    LevelCounts,
    MatchCounts,
    SizeCounts,
)
from detector.imbalance.remedies import count_labels, make_remedies
from detector.imbalance.vocabulary import AnchorCounts

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}  # COCO's, original pixels
QUANTILES = (0, 5, 25, 50, 75, 95, 100)
KINDS = ("foreground", "ignored", "background")  # the columns of `Count.anchors`


def take_census(records: Sequence[Record], class_names: Sequence[str], setting: Setting) -> Census:
    """Take the census of a set of images.

    Args:
        records: the annotations of the images.
        class_names: the names of the K classes.
        setting: the anchors, the assigner and the image size.

    Returns:
        The census, with an empty split.

    Raises:
        UserError: the assigner needs the predictions of a model.
    """
    if setting.assigner.needs_predictions:
        raise UserError(
            "assigner: this assigner needs the predictions of a model, and a census has no model",
            "take the census with assigner=max_iou, assigner=atss or assigner=centre",
        )
    num_classes = len(class_names)
    counts = count_all(records, setting)
    labels = [record.labels[~record.crowd] for record in records]
    label = np.concatenate([*labels, []]).astype(np.int64)
    objects = count_labels(labels, num_classes)
    with_class = count_labels([np.unique(labels_of_image) for labels_of_image in labels], num_classes)
    by_image_and_level = np.array([c.anchors for c in counts], dtype=np.int64).reshape(-1, len(setting.level_names), 3)
    by_level, by_image = by_image_and_level.sum(axis=0), by_image_and_level.sum(axis=1)
    by_class = np.array([c.by_class for c in counts], dtype=np.int64).reshape(-1, num_classes).sum(axis=0)
    anchors = _anchor_counts(by_level.sum(axis=0))
    num_matched, matched_iou, num_ignored = (
        np.concatenate([*(getattr(c, name) for c in counts), []])
        for name in ("object_anchors", "object_iou", "object_ignored")
    )
    # the IoU of an object with the square of a point does not describe the match
    has_anchors = isinstance(setting.grid, AnchorGrid)
    threshold = getattr(setting.assigner, "foreground", 0.5) if has_anchors else 0.0
    is_unmatched, is_low_quality = num_matched == 0, (num_matched > 0) & (matched_iou < threshold)
    areas = np.concatenate([*(record.area[~record.crowd] for record in records), []])
    max_iou, suggestion = _anchor_fit(records, setting, threshold)
    return Census(
        num_images=len(records),
        num_objects=int(objects.sum()),
        num_crowd=int(sum(record.crowd.sum() for record in records)),
        class_names=list(class_names),
        anchors=anchors,
        ratio=anchors.background / anchors.foreground if anchors.foreground else math.nan,
        by_level=[
            LevelCounts(
                level=name,
                **dict(zip(KINDS, by_level[i].tolist(), strict=True)),
                foreground_of_image=_distribution(by_image_and_level[:, i, 0]),
            )
            for i, name in enumerate(setting.level_names)
        ],
        by_class=[
            ClassCounts(
                name=name,
                objects=int(objects[k]),
                images=int(with_class[k]),
                foreground=int(by_class[k]),
                ignored=int(num_ignored[label == k].sum()),
                foreground_of_object=_distribution(num_matched[label == k]),
            )
            for k, name in enumerate(class_names)
        ],
        by_size=[
            SizeCounts(
                name=name,
                objects=int(in_range.sum()),
                foreground=int(num_matched[in_range].sum()),
                ignored=int(num_ignored[in_range].sum()),
                foreground_of_object=_distribution(num_matched[in_range]),
                unmatched=int((in_range & is_unmatched).sum()),
                low_quality=int((in_range & is_low_quality).sum()),
            )
            for name, (least, most) in SIZES.items()
            for in_range in [(areas >= least) & (areas < most)]
        ],
        by_image=_by_image(by_image, labels),
        matches=MatchCounts(
            objects=len(num_matched), unmatched=int(is_unmatched.sum()), low_quality=int(is_low_quality.sum())
        ),
        crowding=_crowding(records),
        max_iou=max_iou,
        anchor_suggestion=suggestion,
        remedies=make_remedies(
            labels, num_classes, anchors.foreground, anchors.foreground + anchors.background, setting.prior
        ),
    )


def _anchor_counts(counts: np.ndarray) -> AnchorCounts:
    return AnchorCounts(**dict(zip(KINDS, counts.tolist(), strict=True)))


def _distribution(values: np.ndarray) -> Distribution:
    quantiles = np.percentile(values, QUANTILES) if len(values) else [math.nan] * len(QUANTILES)
    return Distribution(quantiles={str(q): float(value) for q, value in zip(QUANTILES, quantiles, strict=True)})


def _by_image(anchors: np.ndarray, labels: Sequence[np.ndarray]) -> ImageCounts:
    """Return the counts by image.

    Args:
        anchors: (images, 3), columns as in KINDS.
        labels: the labels of the objects of each image.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = anchors[:, 2] / anchors[:, 0]
    num_objects = np.array([len(labels_of_image) for labels_of_image in labels])
    return ImageCounts(
        background_per_foreground=_distribution(ratio[np.isfinite(ratio)]),
        foreground=_distribution(anchors[:, 0]),
        objects=_distribution(num_objects),
        images_without_objects=int((num_objects == 0).sum()),
        images_without_foreground=int((anchors[:, 0] == 0).sum()),
    )


def _crowding(records: Sequence[Record]) -> Crowding:
    highest = [torch.zeros(0)]
    for record in records:
        boxes = torch.from_numpy(record.boxes[~record.crowd])
        if len(boxes):
            highest.append(pairwise_iou(boxes, boxes).fill_diagonal_(0).amax(dim=1))
    iou = torch.cat(highest)
    return Crowding(
        mean_max_iou=float(iou.mean()) if len(iou) else math.nan, objects_overlapping_half=int((iou >= 0.5).sum())
    )


def _anchor_fit(
    records: Sequence[Record], setting: Setting, threshold: float
) -> tuple[Histogram, AnchorSuggestion] | tuple[None, None]:
    """Compute the highest IoU of each object with the config's anchors and with suggested anchors. Points give None."""
    grid = setting.grid
    if not isinstance(grid, AnchorGrid):
        return None, None
    boxes = [scaled_boxes(record, setting)[torch.from_numpy(~record.crowd)] for record in records]
    sizes = [torch.tensor([padded_size(r, setting)]).expand(len(b), 2) for r, b in zip(records, boxes, strict=True)]
    if not any(map(len, boxes)):
        return None, None
    boxes, sizes = torch.cat(boxes), torch.cat(sizes)
    now = best_iou(boxes, sizes, grid)
    new_sizes, new_ratios = suggest(boxes, len(grid.sizes), len(grid.sizes[0]), len(grid.ratios))
    suggested = best_iou(boxes, sizes, replace(grid, sizes=new_sizes, ratios=new_ratios))
    counts, edges = np.histogram(now.numpy(), bins=20, range=(0, 1))
    suggestion = AnchorSuggestion(
        sizes=new_sizes,
        ratios=new_ratios,
        recall=Comparison(
            now=float((now >= threshold).float().mean()), suggested=float((suggested >= threshold).float().mean())
        ),
        mean_max_iou=Comparison(now=float(now.mean()), suggested=float(suggested.mean())),
    )
    return Histogram(edges=edges.tolist(), counts=counts.tolist()), suggestion
