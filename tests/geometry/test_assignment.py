import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from detector.geometry.anchors import base_anchors, grid_anchors
from detector.geometry.assignment import MaxIoUAssigner
from detector.structures import IGNORED

RATIOS = (0.5, 1.0, 2.0)

K = 5
HEIGHT, WIDTH = 128, 192


@pytest.fixture(scope="module")
def anchors() -> Tensor:
    sizes = [(16, 24), (8, 12), (4, 6)]
    return torch.cat(grid_anchors((HEIGHT, WIDTH), sizes, [base_anchors((s, 1.3 * s), RATIOS) for s in (16, 32, 64)]))


def ground_truths(counts: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """boxes (B, G, 4) and labels (B, G), padded; from slivers to the whole image."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.zeros(len(counts), max(counts), 4)
    labels = torch.full((len(counts), max(counts)), IGNORED)
    for i, n in enumerate(counts):
        corners = torch.rand(n, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([WIDTH, HEIGHT])
        boxes[i, :n] = corners.flatten(1)
        labels[i, :n] = torch.randint(K, (n,), generator=generator)
    return boxes, labels


def not_ignored(labels: Tensor) -> Tensor:
    return torch.zeros_like(labels, dtype=torch.bool)


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_equals_torchvision_image_by_image(anchors: Tensor, seed: int, low_quality: bool):
    counts = [6, 1, 13, 3]
    boxes, labels = ground_truths(counts, seed)
    targets = MaxIoUAssigner(K, low_quality=low_quality)(anchors, boxes, labels, not_ignored(labels))
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=low_quality)
    for i, n in enumerate(counts):
        matched = matcher(box_iou(boxes[i, :n], anchors))
        expected = labels[i, :n][matched.clamp(min=0)]
        expected[matched == Matcher.BELOW_LOW_THRESHOLD] = K
        expected[matched == Matcher.BETWEEN_THRESHOLDS] = IGNORED
        assert torch.equal(targets.labels[i], expected)
        foreground = matched >= 0
        assert torch.equal(targets.boxes[i, foreground], boxes[i, matched[foreground]])
        assert foreground.any() or not low_quality
    assert (targets.labels == K).any() and (targets.labels == IGNORED).any()


def test_low_quality_gives_a_hard_ground_truth_its_best_anchor():
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    boxes, labels = torch.tensor([[[0.0, 0, 10, 1]]]), torch.tensor([[2]])  # IoU 0.1 with the first anchor
    for low_quality, expected in ((True, [2, K, K]), (False, [K, K, K])):
        targets = MaxIoUAssigner(K, low_quality=low_quality)(anchors, boxes, labels, not_ignored(labels))
        assert targets.labels.tolist() == [expected]


def test_thresholds_include_their_lower_ends():
    anchors = torch.tensor([[0.0, 0, 8, 8]])
    labels = torch.tensor([[1]])
    for height, expected in ((4.0, 1), (3.9, IGNORED), (2.0, IGNORED), (1.9, K)):  # IoU = height / 8
        assigner = MaxIoUAssigner(K, foreground=0.5, background=0.25, low_quality=False)
        targets = assigner(anchors, torch.tensor([[[0, 0, 8, height]]]), labels, not_ignored(labels))
        assert targets.labels.tolist() == [[expected]]


def test_no_ground_truth_is_all_background(anchors: Tensor):
    boxes, labels = torch.zeros(2, 1, 4), torch.full((2, 1), IGNORED)
    targets = MaxIoUAssigner(K)(anchors, boxes, labels, not_ignored(labels))
    assert (targets.labels == K).all() and targets.boxes.isfinite().all()


def test_a_ground_truth_outside_the_image_gets_no_anchor(anchors: Tensor):
    boxes = torch.tensor([[[5000.0, 5000, 5100, 5100], [20, 20, 60, 60]]])
    labels = torch.tensor([[3, 1]])
    targets = MaxIoUAssigner(K)(anchors, boxes, labels, not_ignored(labels))
    assert (targets.labels == 1).any() and not (targets.labels == 3).any()


def test_an_ignore_region_takes_background_anchors_only():
    anchors = torch.tensor(
        [
            [0.0, 0, 10, 10],  # on the object, inside the region
            [20, 0, 30, 10],  # inside the region
            [34, 0, 44, 10],  # 60% inside
            [36, 0, 46, 10],  # 40% inside
            [60, 0, 70, 10],  # outside
        ]
    )
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 40, 30]]])
    labels, ignore = torch.tensor([[1, 0]]), torch.tensor([[False, True]])
    targets = MaxIoUAssigner(K)(anchors, boxes, labels, ignore)
    assert targets.labels.tolist() == [[1, IGNORED, IGNORED, K, K]]
    # an anchor that fits the region itself is not its foreground
    fits = torch.tensor([[0.0, 0, 40, 30]])
    assert MaxIoUAssigner(K)(fits, boxes[:, 1:], labels[:, 1:], ignore[:, 1:]).labels.tolist() == [[IGNORED]]
