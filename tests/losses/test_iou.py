import pytest
import torch
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from detector.losses import BOX_LOSSES

PEERS = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}
NAMES = ["iou", *PEERS]


def draw_boxes(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 60
    return torch.cat((corner, corner + 1 + 40 * torch.rand(*shape, 2, generator=generator).double()), -1).to(dtype)


@pytest.mark.parametrize("name", PEERS)
def test_losses_equal_torchvision(name):
    predicted, target = draw_boxes(3, 50, seed=1).requires_grad_(), draw_boxes(3, 50, seed=2)
    foreground = torch.rand(3, 50, generator=torch.Generator().manual_seed(3)) < 0.5
    loss = BOX_LOSSES.build(name)(predicted, target, foreground, 7)
    (grad,) = torch.autograd.grad(loss, predicted)

    expected = PEERS[name](predicted[foreground], target[foreground], reduction="sum") / 7
    (expected_grad,) = torch.autograd.grad(expected, predicted)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-9)


def test_iou_by_hand():
    """The pairs have an intersection of 2 and a union of 10, are equal, and do not overlap."""
    predicted = torch.tensor([[0.0, 0, 2, 2], [3, 3, 5, 9], [0, 0, 1, 1]])
    target = torch.tensor([[1.0, 0, 3, 4], [3, 3, 5, 9], [2, 2, 3, 3]])
    loss = BOX_LOSSES.build("iou")
    for row, expected in enumerate((0.8, 0.0, 1.0)):
        foreground = torch.arange(3) == row
        assert loss(predicted, target, foreground, 1).item() == pytest.approx(expected, abs=1e-6)
    apart = torch.tensor([False, False, True])
    assert BOX_LOSSES.build("giou")(predicted, target, apart, 1).item() == pytest.approx(1 + 7 / 9, abs=1e-6)
    assert BOX_LOSSES.build("diou")(predicted, target, apart, 1).item() == pytest.approx(1 + 8 / 18, abs=1e-6)


@pytest.mark.parametrize("name", ["iou", "giou", "diou"])  # the weight in ciou gets no gradient
def test_gradcheck(name):
    predicted, target = draw_boxes(4, seed=4).requires_grad_(), draw_boxes(4, seed=5)
    everything = torch.ones(4, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda x: BOX_LOSSES.build(name)(x, target, everything, 2), predicted)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_background_rows_may_hold_any_value(name, dtype):
    predicted = draw_boxes(3, dtype=dtype)
    target = predicted + torch.tensor([1, 2, 3, 4], dtype=dtype)
    predicted[1], target[2] = torch.inf, torch.nan
    predicted.requires_grad_()
    loss = BOX_LOSSES.build(name)(predicted, target, torch.tensor([True, False, False]), 0)
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32
    assert predicted.grad.dtype == dtype and predicted.grad.isfinite().all()
    assert predicted.grad[0].abs().sum() > 0 and (predicted.grad[1:] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_no_foreground_gives_zero(name):
    predicted = draw_boxes(2, 5).requires_grad_()
    loss = BOX_LOSSES.build(name)(predicted, draw_boxes(2, 5, seed=1), torch.zeros(2, 5, dtype=torch.bool), 0)
    loss.backward()
    assert loss == 0 and (predicted.grad == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_losses_do_not_depend_on_the_scale(name):
    predicted, target, everything = draw_boxes(20, seed=6), draw_boxes(20, seed=7), torch.ones(20, dtype=torch.bool)
    loss = BOX_LOSSES.build(name)
    torch.testing.assert_close(
        loss(predicted * 8, target * 8, everything, 1), loss(predicted, target, everything, 1), rtol=1e-6, atol=1e-6
    )
