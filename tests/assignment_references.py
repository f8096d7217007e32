"""The assignment rules of FCOS, TOOD, YOLOX and RTMDet as loops over one image, in fp64, from the formulas.

Each function returns the object of each prior. -1 is background, and -2 is ignored.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]


@dataclass
class Image:
    """An image with O objects, whose padding is removed, and A priors.

    Attributes:
        boxes: the O boxes.
        labels: the O labels.
        ignore: the O marks of ignore regions.
        priors: the A boxes.
        strides: the A strides in pixels.
        levels: the A levels, from 0.
        predicted: the A predicted boxes.
        logits: (A, K).
    """

    boxes: list[Box]
    labels: list[int]
    ignore: list[bool]
    priors: list[Box]
    strides: list[float]
    levels: list[int]
    predicted: list[Box]
    logits: np.ndarray

    def objects(self) -> list[int]:
        return [g for g in range(len(self.boxes)) if not self.ignore[g]]

    def score(self, a: int, k: int) -> float:
        return 1 / (1 + math.exp(-self.logits[a, k]))


def center(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def shared_area(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def iou(a: Box, b: Box) -> float:
    union = area(a) + area(b) - shared_area(a, b)
    return shared_area(a, b) / union if union > 0 else 0


def to_sides(point: tuple[float, float], box: Box) -> tuple[float, float, float, float]:
    return point[0] - box[0], point[1] - box[1], box[2] - point[0], box[3] - point[1]


def contains(box: Box, prior: Box) -> bool:
    return min(to_sides(center(prior), box)) > 0


def is_near(box: Box, prior: Box, limit: float) -> bool:
    return all(abs(p - c) < limit for p, c in zip(center(prior), center(box), strict=True))


def cross_entropy(p: float, target: float) -> float:
    return -(target * math.log(p) if target > 0 else 0) - ((1 - target) * math.log(1 - p) if target < 1 else 0)


def with_ignored(image: Image, matched: list[int]) -> list[int]:
    """Ignore the background priors with more than half of their area in an ignore region."""
    for a, prior in enumerate(image.priors):
        for g, box in enumerate(image.boxes):
            if matched[a] == -1 and image.ignore[g] and shared_area(prior, box) > area(prior) / 2:
                matched[a] = -2
    return matched


def centre(image: Image, radius: float | None, reach: float) -> list[int]:
    """Return FCOS's objects: of the objects for which a prior is a location, the one with the smallest area."""
    matched = [-1] * len(image.priors)
    for a, prior in enumerate(image.priors):
        stride, level = image.strides[a], image.levels[a]
        least = 0 if level == 0 else reach * stride / 2
        most = math.inf if level == max(image.levels) else reach * stride
        for g in image.objects():
            box = image.boxes[g]
            distances = to_sides(center(prior), box)
            if min(distances) <= 0 or not least < max(distances) < most:
                continue
            if radius is not None and not is_near(box, prior, radius * stride):
                continue
            if matched[a] == -1 or area(box) < area(image.boxes[matched[a]]):
                matched[a] = g
    return with_ignored(image, matched)


def task_aligned(
    image: Image, topk: int, alpha: float, beta: float, enlarge_small: bool, *, one_to_one: bool = False
) -> tuple[list[int], list[float]]:
    """Return TOOD's objects and qualities. With `one_to_one`, an object keeps only its best prior."""
    num_priors, stride = len(image.priors), min(image.strides)
    claims: list[list[int]] = [[] for _ in range(num_priors)]
    aligned = {}
    for g in image.objects():
        box = image.boxes[g]
        region = list(box)
        for low, high in ((0, 2), (1, 3)):
            if enlarge_small and box[high] - box[low] < stride:
                middle = (box[low] + box[high]) / 2
                region[low], region[high] = middle - stride, middle + stride
        candidates = [a for a in range(num_priors) if contains(tuple(region), image.priors[a])]
        for a in candidates:
            aligned[g, a] = image.score(a, image.labels[g]) ** alpha * iou(image.predicted[a], box) ** beta
        for a in sorted(candidates, key=lambda a: -aligned[g, a])[:topk]:
            if aligned[g, a] > 0:
                claims[a].append(g)
    matched, quality = [-1] * num_priors, [0.0] * num_priors
    for a, objects in enumerate(claims):
        if objects:
            matched[a] = max(objects, key=lambda g: iou(image.predicted[a], image.boxes[g]))
    for g in set(matched) - {-1}:
        mine = [a for a in range(num_priors) if matched[a] == g]
        if one_to_one:
            mine = [max(mine, key=lambda a: aligned[g, a])]
            matched = [-1 if other == g and a not in mine else other for a, other in enumerate(matched)]
        highest_t = max(aligned[g, a] for a in mine)
        highest_u = max(iou(image.predicted[a], image.boxes[g]) for a in mine)
        for a in mine:
            quality[a] = aligned[g, a] / highest_t * highest_u
    return with_ignored(image, matched), quality


def cheapest(
    image: Image, candidates: int, cost_of: Callable[[int, int], float | None]
) -> tuple[list[int], list[float]]:
    """Return the objects and the IoUs if each object takes its cheapest candidates. `cost_of(g, a)` may be None."""
    num_priors = len(image.priors)
    claims: list[list[int]] = [[] for _ in range(num_priors)]
    costs = {}
    for g in image.objects():
        costs |= {(g, a): cost for a in range(num_priors) if (cost := cost_of(g, a)) is not None}
        mine = [a for a in range(num_priors) if (g, a) in costs]
        overlaps = sorted((iou(image.predicted[a], image.boxes[g]) for a in mine), reverse=True)
        k = max(1, int(sum(overlaps[:candidates])))
        for a in sorted(mine, key=lambda a: costs[g, a])[:k]:
            claims[a].append(g)
    matched = [min(objects, key=lambda g: costs[g, a]) if objects else -1 for a, objects in enumerate(claims)]
    quality = [iou(image.predicted[a], image.boxes[g]) if g >= 0 else 0.0 for a, g in enumerate(matched)]
    return with_ignored(image, matched), quality


def sim_ota(image: Image, radius: float, candidates: int, iou_weight: float) -> tuple[list[int], list[float]]:
    """Return YOLOX's objects and IoUs."""

    def cost_of(g: int, a: int) -> float | None:
        box, prior = image.boxes[g], image.priors[a]
        inside, near = contains(box, prior), is_near(box, prior, radius * image.strides[a])
        if not inside and not near:
            return None
        cost = sum(
            cross_entropy(image.score(a, k), 1.0 if k == image.labels[g] else 0.0) for k in range(image.logits.shape[1])
        )
        cost -= iou_weight * math.log(max(iou(image.predicted[a], box), 1e-7))
        return cost if inside and near else cost + 100_000

    return cheapest(image, candidates, cost_of)


def soft_label(image: Image, radius: float, candidates: int, iou_weight: float) -> tuple[list[int], list[float]]:
    """Return RTMDet's objects and IoUs."""

    def cost_of(g: int, a: int) -> float | None:
        box, prior = image.boxes[g], image.priors[a]
        if not contains(box, prior):
            return None
        overlap, cost = iou(image.predicted[a], box), 0.0
        for k in range(image.logits.shape[1]):
            target = overlap if k == image.labels[g] else 0.0
            cost += cross_entropy(image.score(a, k), target) * (target - image.score(a, k)) ** 2
        distance = math.dist(center(prior), center(box)) / image.strides[a]
        return cost - iou_weight * math.log(max(overlap, 1e-7)) + 10 ** (distance - radius)

    return cheapest(image, candidates, cost_of)
