"""Counts, for each image, of the anchors that the assigner makes foreground, ignored or background."""

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
from detector.geometry.points import PointGrid
from detector.models.detector import level_names

IN_ONE_PROCESS = 400  # fewer images are counted in less time than a process needs to start
CHUNK = 100  # images that a process counts in each task


@dataclass(frozen=True, slots=True)
class Setting:
    """The settings of a census. They can be pickled.

    grid: the anchors or the points.
    assigner: decides which anchors are foreground, ignored or background.
    target_size: maps the height and width of an image to the height and width of the model's input, in pixels.
    divisor: the sides of a padded image are multiples of this number, in pixels.
    prior: the initial score, 0..1.
    num_classes: K.
    """

    grid: AnchorGrid | PointGrid
    assigner: Assigner
    target_size: Callable[[int, int], tuple[int, int]]
    divisor: int
    prior: float
    num_classes: int

    @property
    def level_names(self) -> list[str]:
        """The names of the pyramid levels."""
        return level_names(self.grid.strides)


@dataclass(frozen=True, slots=True)
class Count:
    """The numbers of anchors of an image and of its G objects (without crowds).

    anchors: (levels, 3) numbers of foreground, ignored and background anchors.
    by_class: (K,) number of foreground anchors of each class.
    object_anchors: (G,) number of foreground anchors of each object.
    object_iou: (G,) the highest IoU of each object with its foreground anchors; 0 without foreground anchors.
    object_ignored: (G,) number of ignored anchors that overlap the object most and do not lie in a crowd.
    """

    anchors: np.ndarray
    by_class: np.ndarray
    object_anchors: np.ndarray
    object_iou: np.ndarray
    object_ignored: np.ndarray


def padded_size(record: Record, setting: Setting) -> tuple[int, int]:
    """Return the height and width of the padded image in pixels of the model's input.

    Args:
        record: the annotations of the image.
        setting: the settings of the census.
    """
    height, width = setting.target_size(record.height, record.width)
    return -(-height // setting.divisor) * setting.divisor, -(-width // setting.divisor) * setting.divisor


def scaled_boxes(record: Record, setting: Setting) -> Tensor:
    """Return the boxes (N, 4) xyxy in pixels of the model's input.

    Args:
        record: the annotations of the image.
        setting: the settings of the census.
    """
    height, width = setting.target_size(record.height, record.width)
    factors = np.array([width / record.width, height / record.height] * 2, dtype=np.float32)
    return torch.from_numpy(record.boxes * factors)


def count_image(record: Record, setting: Setting, anchors: Sequence[Tensor]) -> Count:
    """Count the foreground, ignored and background anchors of an image.

    A local assigner (see `Assigner`) does not get the anchors that touch no box. Those anchors are background.

    Args:
        record: the annotations of the image.
        setting: the settings of the census.
        anchors: the anchors of each level, (H, W, N, 4).
    """
    boxes = scaled_boxes(record, setting)
    is_local = setting.assigner.is_local
    candidates = [level[_touches(level, boxes)] if is_local else level.flatten(0, 2) for level in anchors]
    sizes = tuple(map(len, candidates))
    flat = torch.cat(candidates)
    labels = torch.from_numpy(record.labels)
    crowd = torch.from_numpy(record.crowd)
    if len(boxes):
        priors = Priors(flat, sizes, tuple(setting.grid.strides))
        targets = setting.assigner(priors, GroundTruth(boxes[None], labels[None], crowd[None]))
        assigned, matched = targets.labels[0], targets.boxes[0]
    else:
        assigned, matched = torch.full((len(flat),), setting.num_classes), flat
    is_fg = is_foreground(assigned, setting.num_classes)
    counts = []
    masks = torch.stack((is_fg, assigned < 0)).split(sizes, dim=1)
    for level, masks_of_level in zip(anchors, masks, strict=True):
        num_fg, num_ignored = masks_of_level.sum(dim=1).tolist()
        counts.append((num_fg, num_ignored, level[..., 0].numel() - num_fg - num_ignored))
    objects = boxes[~crowd]
    is_of_object = (matched[is_fg][:, None] == objects).all(dim=2) & (assigned[is_fg][:, None] == labels[~crowd])
    iou = paired_iou(flat[is_fg], matched[is_fg])[:, None].expand(is_of_object.shape)
    best = torch.cat((torch.zeros(1, len(objects)), iou.masked_fill(~is_of_object, 0))).amax(dim=0)
    ignored = _count_ignored(objects, flat[assigned < 0], matched[assigned < 0], setting.assigner)
    by_class = torch.bincount(assigned[is_fg], minlength=setting.num_classes)
    by_object = (x.numpy() for x in (is_of_object.sum(dim=0), best, ignored))
    return Count(np.array(counts), by_class.numpy(), *by_object)


def _count_ignored(objects: Tensor, anchors: Tensor, matched: Tensor, assigner: Assigner) -> Tensor:
    """Count the ignored anchors of each object, (G,). An anchor belongs to the object that it overlaps most.

    An ignored anchor whose IoU is in the assigner's background range lies in a crowd and does not count. Where objects
    have equal boxes, the anchors belong to the first object.

    Args:
        objects: (G, 4) boxes.
        anchors: (N, 4) ignored anchors.
        matched: (N, 4) the box that each anchor overlaps most.
        assigner: the attribute `background` is the lowest IoU of an ignored anchor.
    """
    is_near = paired_iou(anchors, matched) >= max(getattr(assigner, "background", math.inf), 1e-6)
    is_same = (matched[is_near][:, None] == objects).all(dim=2)
    return (is_same & (is_same.cumsum(dim=1) == 1)).sum(dim=0)


def _touches(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Return which anchors of a level (H, W, N, 4) share an area with any of the boxes (G, 4): (H, W, N) bool.

    The overlap in x depends only on the column of an anchor. The overlap in y depends only on its row.
    """
    left, top, right, bottom = boxes.T[..., None, None]
    column, row = anchors[0], anchors[:, 0]
    in_x = (column[..., 0] < right) & (column[..., 2] > left)
    in_y = (row[..., 1] < bottom) & (row[..., 3] > top)
    return torch.einsum("ghn,gwn->hwn", in_y.float(), in_x.float()) > 0


def count_images(records: Sequence[Record], setting: Setting) -> list[Count]:
    """Count the anchors of each image, in the order of the records.

    Args:
        records: the annotations of the images.
        setting: the settings of the census.
    """
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
    """Count the anchors of each image as `count_images` does, many images in several processes.

    Args:
        records: the annotations of the images.
        setting: the settings of the census.
        processes: the number of processes. By default it depends on the number of images and cores.
    """
    cores = num_cores()
    processes = processes or (1 if len(records) < IN_ONE_PROCESS else cores)
    if processes == 1:
        return count_images(records, setting)
    chunks = [records[i : i + CHUNK] for i in range(0, len(records), CHUNK)]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        counted = pool.map(_count_chunk, [(chunk, setting) for chunk in chunks])
        return [count for chunk in counted for count in chunk]
