"""Count the anchors that the assigner makes foreground, ignored or background, image by image."""

import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detector.core.machine import num_cores
from detector.core.structures import GroundTruth, Priors, is_foreground
from detector.data.dataset import Record
from detector.geometry.anchors import AnchorGrid, num_cells
from detector.geometry.assignment import Assigner
from detector.geometry.boxes import paired_iou
from detector.models.detector import level_names

IN_ONE_PROCESS = 400  # fewer images are counted before a second process has started
CHUNK = 100  # images that a process counts at once


@dataclass(frozen=True, slots=True)
class Setting:
    """What a census counts with; it can be pickled.

    grid: the anchors.
    assigner: decides which anchors are foreground, ignored or background.
    target_size: turns an image's height and width into those at which the model sees it, in pixels.
    divisor: the sides of a padded image are multiples of it, in pixels.
    prior: the score with which training starts, 0..1.
    num_classes: K.
    """

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
    """The anchors of an image, and of its G objects (crowds left out).

    anchors: (levels, 3) numbers of foreground, ignored and background anchors.
    by_class: (K,) foreground anchors of each class.
    object_anchors: (G,) foreground anchors of each object.
    object_iou: (G,) the best IoU of an object with its foreground anchors; 0 without any.
    object_ignored: (G,) ignored anchors that overlap the object more than other objects, but not in a crowd.
    """

    anchors: np.ndarray
    by_class: np.ndarray
    object_anchors: np.ndarray
    object_iou: np.ndarray
    object_ignored: np.ndarray


def padded_size(record: Record, setting: Setting) -> tuple[int, int]:
    height, width = setting.target_size(record.height, record.width)
    return -(-height // setting.divisor) * setting.divisor, -(-width // setting.divisor) * setting.divisor


def scaled_boxes(record: Record, setting: Setting) -> Tensor:
    """Return the boxes (N, 4) xyxy in pixels of the image that the model sees."""
    height, width = setting.target_size(record.height, record.width)
    factors = np.array([width / record.width, height / record.height] * 2, dtype=np.float32)
    return torch.from_numpy(record.boxes * factors)


def count_image(record: Record, setting: Setting, anchors: Sequence[Tensor]) -> Count:
    """Count what the assigner makes of the anchors of an image, (H, W, N, 4) for each level.

    A local assigner (see `Assigner`) does not get the anchors that touch no box: they are background.
    """
    boxes = scaled_boxes(record, setting)
    is_local = setting.assigner.is_local
    shown = [level[_touches(level, boxes)] if is_local else level.flatten(0, 2) for level in anchors]
    sizes = tuple(map(len, shown))
    flat = torch.cat(shown)
    labels = torch.from_numpy(record.labels)
    crowd = torch.from_numpy(record.crowd)
    if len(boxes):
        targets = setting.assigner(Priors(flat, sizes), GroundTruth(boxes[None], labels[None], crowd[None]))
        assigned, matched = targets.labels[0], targets.boxes[0]
    else:
        assigned, matched = torch.full((len(flat),), setting.num_classes), flat
    foreground = is_foreground(assigned, setting.num_classes)
    counts = []
    masks = torch.stack((foreground, assigned < 0)).split(sizes, dim=1)
    for level, masks_of_level in zip(anchors, masks, strict=True):
        fg, ignored = masks_of_level.sum(dim=1).tolist()
        counts.append((fg, ignored, level[..., 0].numel() - fg - ignored))
    objects = boxes[~crowd]
    of_object = (matched[foreground][:, None] == objects).all(dim=2) & (assigned[foreground][:, None] == labels[~crowd])
    iou = paired_iou(flat[foreground], matched[foreground])[:, None].expand(of_object.shape)
    best = torch.cat((torch.zeros(1, len(objects)), iou.masked_fill(~of_object, 0))).amax(dim=0)
    between = _ignored_beside(objects, flat[assigned < 0], matched[assigned < 0], setting.assigner)
    by_class = torch.bincount(assigned[foreground], minlength=setting.num_classes)
    by_object = (x.numpy() for x in (of_object.sum(dim=0), best, between))
    return Count(np.array(counts), by_class.numpy(), *by_object)


def _ignored_beside(objects: Tensor, anchors: Tensor, matched: Tensor, assigner: Assigner) -> Tensor:
    """Count the ignored anchors of each object, (G,). An anchor belongs to the object that it overlaps most.

    Anchors whose IoU the assigner calls background lie in a crowd and do not count. Of objects with equal boxes the
    first has the anchors.

    Args:
        objects: (G, 4) boxes.
        anchors: (N, 4) ignored anchors.
        matched: (N, 4) the box that each anchor overlaps most.
        assigner: its `background` is the lowest IoU of an ignored anchor.
    """
    near = paired_iou(anchors, matched) >= max(getattr(assigner, "background", math.inf), 1e-6)
    same = (matched[near][:, None] == objects).all(dim=2)
    return (same & (same.cumsum(dim=1) == 1)).sum(dim=0)


def _touches(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Return which anchors of a level (H, W, N, 4) share an area with any of the boxes (G, 4): (H, W, N) bool.

    The column of an anchor decides whether it overlaps a box in x, its row whether it overlaps the box in y.
    """
    left, top, right, bottom = boxes.T[..., None, None]
    column, row = anchors[0], anchors[:, 0]
    in_x = (column[..., 0] < right) & (column[..., 2] > left)
    in_y = (row[..., 1] < bottom) & (row[..., 3] > top)
    return torch.einsum("ghn,gwn->hwn", in_y.float(), in_x.float()) > 0


def count_images(records: Sequence[Record], setting: Setting) -> list[Count]:
    """Count the anchors of each image, in the order of the records."""
    cache: dict[tuple[int, int], list[Tensor]] = {}
    counts = []
    for record in records:
        size = padded_size(record, setting)
        if size not in cache:
            cache[size] = [
                anchors.view(*(int(num_cells(side, stride)) for side in size), -1, 4)
                for stride, anchors in zip(setting.grid.strides, setting.grid.of_image(size), strict=True)
            ]
        counts.append(count_image(record, setting, cache[size]))
    return counts


def _count_chunk(work: tuple[Sequence[Record], Setting]) -> list[Count]:
    torch.set_num_threads(1)
    return count_images(*work)


def count_all(records: Sequence[Record], setting: Setting, processes: int | None = None) -> list[Count]:
    """Count as `count_images` does, on all cores; many images are counted in several processes."""
    cores = num_cores()
    processes = processes or (1 if len(records) < IN_ONE_PROCESS else cores)
    if processes == 1:
        return count_images(records, setting)
    chunks = [records[i : i + CHUNK] for i in range(0, len(records), CHUNK)]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        counted = pool.map(_count_chunk, [(chunk, setting) for chunk in chunks])
        return [count for chunk in counted for count in chunk]
