import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from detector.geometry.anchors import AnchorGrid, default_sizes
from detector.geometry.points import PointGrid

RATIOS = (0.5, 1.0, 2.0)

# the sizes of torchvision.models.detection.retinanet_resnet50_fpn
SIZES = [[x, int(x * 2 ** (1.0 / 3)), int(x * 2 ** (2.0 / 3))] for x in (32, 64, 128, 256, 512)]


def test_default_sizes_are_retinanets():
    assert default_sizes((8, 16, 32, 64, 128), exact=False) == SIZES
    assert default_sizes((16, 32), exact=False) == SIZES[1:3]
    assert default_sizes((8,), exact=True) == [pytest.approx([32, 40.3175, 50.7968], abs=1e-4)]


@pytest.mark.parametrize("image_size", [(160, 224), (96, 352), (800, 1088), (32, 32)])
def test_anchors_equal_torchvision(image_size: tuple[int, int]):
    sizes = [tuple(-(-side // 2**level) for side in image_size) for level in range(3, 8)]  # some are odd
    maps = [torch.zeros(1, 1, *size) for size in sizes]
    (expected,) = AnchorGenerator(tuple(map(tuple, SIZES)), (RATIOS,) * 5)(
        ImageList(torch.zeros(1, 3, *image_size), [image_size]), maps
    )
    levels = AnchorGrid((8, 16, 32, 64, 128), SIZES, RATIOS, exact=False).of_image(image_size)
    assert [len(level) for level in levels] == [height * width * 9 for height, width in sizes]
    assert torch.equal(torch.cat(levels), expected)


@pytest.mark.parametrize("image_size", [(160, 224), (800, 1088)])
def test_points_at_corners_equal_the_anchors_of_torchvisions_fcos(image_size: tuple[int, int]):
    strides = (8, 16, 32, 64, 128)
    maps = [torch.zeros(1, 1, *(-(-side // stride) for side in image_size)) for stride in strides]
    (expected,) = AnchorGenerator(tuple((stride,) for stride in strides), ((1.0,),) * 5)(
        ImageList(torch.zeros(1, 3, *image_size), [image_size]), maps
    )
    assert torch.equal(torch.cat(PointGrid(strides, at_corners=True).of_image(image_size)), expected)


def test_points_are_the_centers_of_the_cells():
    first, second = PointGrid((8, 16)).of_image((16, 24))
    assert first.tolist() == [[x, y, x + 8, y + 8] for y in (0, 8) for x in (0, 8, 16)]
    assert second.tolist() == [[0, 0, 16, 16], [16, 0, 32, 16]]


def test_order_is_row_column_ratio_size():
    grid = AnchorGrid((8,), [(8, 16)], (1.0, 4.0), exact=False)
    (base,) = grid.base()
    # ratio 1: squares of 8 and 16; ratio 4 (height / width): 4 x 16 and 8 x 32
    assert base.tolist() == [[-4, -4, 4, 4], [-8, -8, 8, 8], [-2, -8, 2, 8], [-4, -16, 4, 16]]
    (level,) = grid.of_image((16, 24))
    centers = (level[:, :2] + level[:, 2:]) / 2
    expected = [[x, y] for y in (0, 8) for x in (0, 8, 16) for _ in range(4)]
    assert centers.tolist() == expected
    assert torch.equal(level[4:8], base + torch.tensor([8, 0, 8, 0]))


def test_exact_anchors_keep_fractions_and_strides():
    """On 160 pixels P7 has two cells. Their distance is 128 pixels, and 80 pixels in torchvision."""
    sizes, ratios = [(32, 64), (48, 96)], (0.5, 2.0)
    exact, rounded = (AnchorGrid((64, 128), sizes, ratios, exact).of_image((160, 64))[1] for exact in (True, False))
    centers = (exact[:, :2] + exact[:, 2:]) / 2
    assert centers.unique(dim=0).tolist() == [[0, 0], [0, 128]]
    assert ((rounded[:, :2] + rounded[:, 2:]) / 2).unique(dim=0).tolist() == [[0, 0], [0, 80]]
    width, height = (exact[:, 2:] - exact[:, :2]).unbind(1)
    torch.testing.assert_close(width * height, torch.tensor([48.0, 96] * 4) ** 2)
    torch.testing.assert_close(height / width, torch.tensor([0.5, 0.5, 2, 2] * 2))


def test_each_level_needs_sizes():
    with pytest.raises(ValueError):
        AnchorGrid((8, 16), [(8,)], RATIOS, exact=False).of_image((32, 32))
