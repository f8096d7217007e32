import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detector.geometry.boxes import box_area, clip, paired_iou, pairwise_intersection, pairwise_iou


def random_boxes(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, generator=generator) * 300
    return torch.cat((corners, corners + 1 + torch.rand(*shape, 2, generator=generator) * 200), dim=-1)


def test_area_and_intersection_of_known_boxes():
    a = torch.tensor([[0.0, 0, 4, 3], [10, 10, 12, 12]])
    b = torch.tensor([[2.0, 1, 6, 9], [4, 0, 5, 3], [0, 0, 20, 20]])  # overlaps, touches, contains both
    assert box_area(a).tolist() == [12, 4]
    assert pairwise_intersection(a, b).tolist() == [[4, 0, 12], [0, 0, 4]]


def test_iou_equals_torchvision():
    a, b = random_boxes(40), random_boxes(60, seed=1)
    torch.testing.assert_close(pairwise_iou(a, b), box_iou(a, b), rtol=1e-6, atol=0)
    assert (pairwise_iou(a, b) > 0.3).any() and (pairwise_iou(a, b) == 0).any()


def test_iou_of_a_batch_equals_the_iou_of_its_images():
    a, b = random_boxes(3, 5), random_boxes(7, seed=1)
    assert torch.equal(pairwise_iou(a, b), torch.stack([pairwise_iou(image, b) for image in a]))
    assert pairwise_iou(random_boxes(3, 0), b).shape == (3, 0, 7)


def test_iou_with_empty_boxes_is_zero():
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 9], [0, 0, 0, 0], [0, 0, 10, 10]])
    assert torch.equal(pairwise_iou(boxes, boxes), torch.tensor([0.0, 0, 0, 1]).diag())


def test_paired_iou_is_the_diagonal_of_pairwise_iou_and_of_torchvision():
    a = random_boxes(2, 40)
    b = a + 20 * torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(1))
    b[0, 0], b[0, 1] = a[0, 0], a[0, 1] + 1000  # equal boxes; boxes without overlap
    b[..., 2:] = torch.maximum(b[..., :2], b[..., 2:])
    paired = paired_iou(a, b)
    assert paired.shape == (2, 40) and paired[0, 0] == 1 and paired[0, 1] == 0
    assert 0.2 < paired.mean() < 0.9
    torch.testing.assert_close(paired, pairwise_iou(a, b).diagonal(dim1=1, dim2=2), rtol=1e-6, atol=1e-7)
    theirs = torch.stack([box_iou(*image).diag() for image in zip(a, b, strict=True)])
    torch.testing.assert_close(paired, theirs, rtol=1e-6, atol=1e-7)


def test_paired_iou_with_empty_boxes_is_zero():
    empty, full = torch.tensor([5.0, 5, 5, 5]), torch.tensor([0.0, 0, 10, 10])
    a, b = torch.stack((empty, empty, full)), torch.stack((empty, full, empty))
    assert paired_iou(a, b).tolist() == [0, 0, 0]


def test_clip_moves_corners_inside_each_image():
    boxes = torch.tensor([[-5.0, -1, 200, 50], [3, 4, 5, 6], [120, 90, 130, 99]])
    heights, widths = torch.tensor([40.0, 40, 80]), torch.tensor([100.0, 100, 110])
    assert clip(boxes, heights, widths).tolist() == [[0, 0, 100, 40], [3, 4, 5, 6], [110, 80, 110, 80]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_dtype_of_the_boxes(dtype: torch.dtype):
    boxes = random_boxes(4).to(dtype)
    side = torch.tensor(50, dtype=dtype)
    results = (pairwise_iou(boxes, boxes), clip(boxes, side, side))
    assert all(result.dtype == dtype for result in results)
