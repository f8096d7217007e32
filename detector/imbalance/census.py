"""What a data set and the anchors do to each other, before any training: from the annotations alone."""

import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from detector.core.machine import num_cores
from detector.core.structures import GroundTruth, Priors
from detector.data.dataset import Record
from detector.data.pipeline.samplers import RepeatFactorSampler
from detector.geometry.anchors import AnchorGrid, num_cells
from detector.geometry.assignment import Assigner
from detector.geometry.boxes import paired_iou, pairwise_iou
from detector.imbalance.anchor_fit import best_iou, suggest
from detector.imbalance.balance import initial_alpha
from detector.losses.class_weights import make_class_weights
from detector.models.detector import level_names

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}  # COCO's, original pixels
QUANTILES = (0, 5, 25, 50, 75, 95, 100)
IN_ONE_PROCESS = 400  # fewer images are counted before a second process has started
GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
BETA = 0.9999  # of the effective number of objects
REPEAT_THRESHOLDS = (0.001, 0.01, 0.1)


@dataclass(frozen=True, slots=True)
class Setting:
    """target_size: an image's (height, width) to that at which the model sees it; divisor: what the padded sides are
    multiples of; prior: the first score. Picklable."""

    grid: AnchorGrid
    assigner: Assigner
    target_size: Callable[[int, int], tuple[int, int]]
    divisor: int
    prior: float
    num_classes: int

    @property
    def level_names(self) -> list[str]:
        return level_names(self.grid.strides)


@dataclass(frozen=True, slots=True)
class Count:
    """One image: anchors (levels, 3) foreground, ignored, background; foreground anchors of each class (K,); for each
    object that is no crowd its foreground anchors (G,), the best IoU among those (G,), 0 without any, and the anchors
    that are ignored because they overlap it, most of all objects, neither enough nor too little (G,)."""

    anchors: np.ndarray
    by_class: np.ndarray
    object_anchors: np.ndarray
    object_iou: np.ndarray
    object_ignored: np.ndarray


def padded_size(record: Record, setting: Setting) -> tuple[int, int]:
    return tuple(-(-s // setting.divisor) * setting.divisor for s in setting.target_size(record.height, record.width))


def scaled_boxes(record: Record, setting: Setting) -> Tensor:
    """(N, 4) at the size the model sees."""
    height, width = setting.target_size(record.height, record.width)
    factors = np.array([width / record.width, height / record.height] * 2, dtype=np.float32)
    return torch.from_numpy(record.boxes * factors)


def count_image(record: Record, setting: Setting, anchors: Sequence[Tensor]) -> Count:
    """What the assigner says of each level's anchors (H, W, N, 4).

    Where the assigner is `local`, anchors that touch no box are background and need not be shown to it."""
    boxes = scaled_boxes(record, setting)
    local = setting.assigner.is_local
    shown = [level[_touches(level, boxes)] if local else level.flatten(0, 2) for level in anchors]
    sizes = tuple(map(len, shown))
    flat = torch.cat(shown)
    labels = torch.from_numpy(record.labels)
    crowd = torch.from_numpy(record.crowd)
    if len(boxes):
        targets = setting.assigner(Priors(flat, sizes), GroundTruth(boxes[None], labels[None], crowd[None]))
        assigned, matched = targets.labels[0], targets.boxes[0]
    else:
        assigned, matched = torch.full((len(flat),), setting.num_classes), flat
    foreground = (assigned >= 0) & (assigned < setting.num_classes)
    counts = []
    for level, own in zip(anchors, torch.stack((foreground, assigned < 0)).split(sizes, dim=1), strict=True):
        fg, ignored = own.sum(dim=1).tolist()
        counts.append((fg, ignored, level[..., 0].numel() - fg - ignored))
    mine = boxes[~crowd]
    of_object = (matched[foreground][:, None] == mine).all(dim=2) & (assigned[foreground][:, None] == labels[~crowd])
    iou = paired_iou(flat[foreground], matched[foreground])[:, None].expand(of_object.shape)
    best = torch.cat((torch.zeros(1, len(mine)), iou.masked_fill(~of_object, 0))).amax(dim=0)
    between = _ignored_beside(mine, flat[assigned < 0], matched[assigned < 0], setting.assigner)
    by_class = torch.bincount(assigned[foreground], minlength=setting.num_classes)
    objects = (x.numpy() for x in (of_object.sum(dim=0), best, between))
    return Count(np.array(counts), by_class.numpy(), *objects)


def _ignored_beside(objects: Tensor, anchors: Tensor, matched: Tensor, assigner: Assigner) -> Tensor:
    """(G,) of the ignored anchors (N, 4) with the boxes that they overlap most (N, 4), those whose IoU the assigner
    does not call background; the others lie in a crowd. Of equal objects the first has them."""
    near = paired_iou(anchors, matched) >= max(getattr(assigner, "background", math.inf), 1e-6)
    same = (matched[near][:, None] == objects).all(dim=2)
    return (same & (same.cumsum(dim=1) == 1)).sum(dim=0)


def _touches(anchors: Tensor, boxes: Tensor) -> Tensor:
    """(H, W, N) whether an anchor of a level (H, W, N, 4) shares any area with any of the boxes (G, 4): in x, which its
    column decides, and with the same box in y, which its row decides."""
    left, top, right, bottom = boxes.T[..., None, None]
    column, row = anchors[0], anchors[:, 0]
    in_x = (column[..., 0] < right) & (column[..., 2] > left)
    in_y = (row[..., 1] < bottom) & (row[..., 3] > top)
    return torch.einsum("ghn,gwn->hwn", in_y.float(), in_x.float()) > 0


def count_images(records: Sequence[Record], setting: Setting) -> list[Count]:
    """Each record's count, in order."""
    cache: dict[tuple[int, int], list[Tensor]] = {}
    counts = []
    for record in records:
        size = padded_size(record, setting)
        if size not in cache:
            cache[size] = [
                anchors.view(*(num_cells(side, stride) for side in size), -1, 4)
                for stride, anchors in zip(setting.grid.strides, setting.grid.of_image(size), strict=True)
            ]
        counts.append(count_image(record, setting, cache[size]))
    return counts


def _count_chunk(work: tuple[Sequence[Record], Setting]) -> list[Count]:
    torch.set_num_threads(1)
    return count_images(*work)


def count_all(records: Sequence[Record], setting: Setting, processes: int | None = None) -> list[Count]:
    """`count_images` on all cores; with many images in processes of their own."""
    cores = num_cores()
    processes = processes or (1 if len(records) < IN_ONE_PROCESS else cores)
    if processes == 1:
        return count_images(records, setting)
    chunks = [records[i : i + 100] for i in range(0, len(records), 100)]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        counted = pool.map(_count_chunk, [(chunk, setting) for chunk in chunks])
        return [count for chunk in counted for count in chunk]


def take_census(records: Sequence[Record], class_names: Sequence[str], setting: Setting) -> dict:
    """The census of a split as plain numbers; the README says what each is. NaN where there is nothing to count."""
    counts = count_all(records, setting)
    labels = [record.labels[~record.crowd] for record in records]
    label = np.concatenate([*labels, []]).astype(np.int64)
    objects = np.bincount(label, minlength=len(class_names))
    with_class = np.bincount(np.concatenate([*map(np.unique, labels), []]).astype(int), minlength=len(class_names))
    by_image_and_level = np.array([c.anchors for c in counts], dtype=np.int64).reshape(-1, len(setting.level_names), 3)
    by_level, by_image = by_image_and_level.sum(axis=0), by_image_and_level.sum(axis=1)
    by_class = np.array([c.by_class for c in counts], dtype=np.int64).reshape(-1, len(class_names)).sum(axis=0)
    foreground, ignored, background = by_level.sum(axis=0).tolist()
    matched, matched_iou, between = (
        np.concatenate([*(getattr(c, name) for c in counts), []])
        for name in ("object_anchors", "object_iou", "object_ignored")
    )
    threshold = getattr(setting.assigner, "foreground", 0.5)
    unmatched, low = matched == 0, (matched > 0) & (matched_iou < threshold)
    areas = np.concatenate([*map(_areas, records), []])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = by_image[:, 2] / by_image[:, 0]
    return {
        "num_images": len(records),
        "num_objects": int(objects.sum()),
        "num_crowd": int(sum(record.crowd.sum() for record in records)),
        "class_names": list(class_names),
        "anchors": {"foreground": foreground, "ignored": ignored, "background": background},
        "ratio": background / foreground if foreground else math.nan,
        "by_level": [
            {
                "level": name,
                **dict(zip(("foreground", "ignored", "background"), row, strict=True)),
                "foreground_of_image": _quantiles(by_image_and_level[:, i, 0]),
            }
            for i, (name, row) in enumerate(zip(setting.level_names, by_level.tolist(), strict=True))
        ],
        "by_class": [
            {
                "name": name,
                "objects": int(objects[k]),
                "images": int(with_class[k]),
                "foreground": int(by_class[k]),
                "ignored": int(between[label == k].sum()),
                "foreground_of_object": _quantiles(matched[label == k]),
            }
            for k, name in enumerate(class_names)
        ],
        "by_size": [
            {
                "name": name,
                "objects": int(own.sum()),
                "foreground": int(matched[own].sum()),
                "ignored": int(between[own].sum()),
                "foreground_of_object": _quantiles(matched[own]),
                "unmatched": int((own & unmatched).sum()),
                "low_quality": int((own & low).sum()),
            }
            for name, (least, most) in SIZES.items()
            for own in [(areas >= least) & (areas < most)]
        ],
        "by_image": {
            "background_per_foreground": _quantiles(ratio[np.isfinite(ratio)]),
            "foreground": _quantiles(by_image[:, 0]),
            "objects": _quantiles(np.array([len(own) for own in labels])),
            "images_without_objects": int(sum(len(own) == 0 for own in labels)),
            "images_without_foreground": int((by_image[:, 0] == 0).sum()),
        },
        "matches": {
            "objects": len(matched),
            "unmatched": int(unmatched.sum()),
            "low_quality": int(low.sum()),
        },
        "crowding": _crowding(records),
        **_fit(records, setting, threshold),
        "remedies": _remedies(labels, objects, with_class, int(by_class.sum()), background + foreground, setting),
    }


def _areas(record: Record) -> np.ndarray:
    return record.area[~record.crowd]


def _quantiles(values: np.ndarray) -> dict:
    if not len(values):
        return {"quantiles": {str(q): math.nan for q in QUANTILES}}
    return {"quantiles": {str(q): float(np.percentile(values, q)) for q in QUANTILES}}


def _crowding(records: Sequence[Record]) -> dict:
    """Objects whose IoU with another object of their image is at least a half: candidates for the same anchors, and for
    being suppressed as each other's duplicates."""
    highest = []
    for record in records:
        boxes = torch.from_numpy(record.boxes[~record.crowd])
        highest.append(pairwise_iou(boxes, boxes).fill_diagonal_(0).amax(dim=1) if len(boxes) else torch.zeros(0))
    highest = torch.cat([*highest, torch.zeros(0)])
    mean = float(highest.mean()) if len(highest) else math.nan
    return {"mean_max_iou": mean, "objects_overlapping_half": int((highest >= 0.5).sum())}


def _fit(records: Sequence[Record], setting: Setting, threshold: float) -> dict:
    """The best IoU of each object with any anchor, now and with the suggested anchors."""
    boxes = [scaled_boxes(record, setting)[torch.from_numpy(~record.crowd)] for record in records]
    sizes = [torch.tensor([padded_size(r, setting)]).expand(len(b), 2) for r, b in zip(records, boxes, strict=True)]
    if not any(map(len, boxes)):
        return {"max_iou": None, "anchor_suggestion": None}
    boxes, sizes = torch.cat(boxes), torch.cat(sizes)
    grid = setting.grid
    now = best_iou(boxes, sizes, grid)
    new_sizes, new_ratios = suggest(boxes, len(grid.sizes), len(grid.sizes[0]), len(grid.ratios))
    new = best_iou(boxes, sizes, replace(grid, sizes=new_sizes, ratios=new_ratios))
    counts, edges = np.histogram(now.numpy(), bins=20, range=(0, 1))
    both = {"now": now, "suggested": new}
    return {
        "max_iou": {"edges": edges.tolist(), "counts": counts.tolist()},
        "anchor_suggestion": {
            "sizes": new_sizes,
            "ratios": new_ratios,
            "recall": {name: float((iou >= threshold).float().mean()) for name, iou in both.items()},
            "mean_max_iou": {name: float(iou.mean()) for name, iou in both.items()},
        },
    }


def _remedies(
    labels: list[np.ndarray],
    objects: np.ndarray,
    with_class: np.ndarray,
    num_fg: int,
    num_rows: int,
    setting: Setting,
) -> dict:
    """What of a class stands at its place in the class names; a factor is NaN where no image has the class."""
    num_bg = num_rows * len(objects) - num_fg
    factors = {}
    for threshold in REPEAT_THRESHOLDS if objects.sum() else ():
        sampler = RepeatFactorSampler(labels, len(objects), threshold=threshold)
        fractions = np.where(with_class > 0, with_class / len(labels), np.nan)
        factors[str(threshold)] = {
            "classes": np.maximum(1, np.sqrt(threshold / fractions)).tolist(),
            "largest": float(sampler.factors.max()),
            "epoch": float(sampler.factors.mean()),
        }
    return {
        "prior": setting.prior,
        "alpha": {str(gamma): initial_alpha(num_fg, num_bg, gamma, setting.prior) for gamma in GAMMAS},
        "class_weights": {
            rule: make_class_weights(rule, objects.tolist(), BETA).tolist()
            for rule in ("inverse_frequency", "effective_number")
        },
        "repeat_factors": factors,
    }
