import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from detector.geometry.anchors import base_anchors, default_sizes, grid_anchors

RATIOS = (0.5, 1.0, 2.0)

# as torchvision.models.detection.retinanet_resnet50_fpn has them
SIZES = tuple((x, int(x * 2 ** (1.0 / 3)), int(x * 2 ** (2.0 / 3))) for x in (32, 64, 128, 256, 512))


def test_default_sizes_are_retinanets():
    assert default_sizes((3, 7)) == SIZES
    assert default_sizes((4, 5)) == SIZES[1:3]


@pytest.mark.parametrize("image_size", [(160, 224), (96, 352), (800, 1088), (32, 32)])
def test_anchors_equal_torchvision(image_size: tuple[int, int]):
    sizes = [tuple(-(-side // 2**level) for side in image_size) for level in range(3, 8)]  # odd ones among them
    maps = [torch.zeros(1, 1, *size) for size in sizes]
    (expected,) = AnchorGenerator(SIZES, (RATIOS,) * 5)(ImageList(torch.zeros(1, 3, *image_size), [image_size]), maps)
    levels = grid_anchors(image_size, sizes, [base_anchors(s, RATIOS) for s in default_sizes((3, 7))])
    assert [len(level) for level in levels] == [height * width * 9 for height, width in sizes]
    assert torch.equal(torch.cat(levels), expected)


def test_order_is_row_column_ratio_size():
    base = base_anchors((8, 16), (1.0, 4.0))
    # ratio 1: squares of 8 and 16; ratio 4 (height / width): 4 x 16 and 8 x 32
    assert base.tolist() == [[-4, -4, 4, 4], [-8, -8, 8, 8], [-2, -8, 2, 8], [-4, -16, 4, 16]]
    (level,) = grid_anchors((16, 24), [(2, 3)], [base])
    centres = (level[:, :2] + level[:, 2:]) / 2
    expected = [[x, y] for y in (0, 8) for x in (0, 8, 16) for _ in range(4)]
    assert centres.tolist() == expected
    assert torch.equal(level[4:8], base + torch.tensor([8, 0, 8, 0]))


def test_a_level_for_each_feature_map():
    with pytest.raises(ValueError):
        grid_anchors((32, 32), [(4, 4), (2, 2)], [base_anchors((8,), RATIOS)])
