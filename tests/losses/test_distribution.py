"""Distribution focal loss."""

import math

import pytest
import torch
from torch import Tensor

from detector.geometry.coders import DistributionCoder
from detector.losses import BOX_LOSSES

CODER = DistributionCoder(4)
DFL = BOX_LOSSES.build("dfl")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def encoded(*distances: float) -> Tensor:
    """Return the target of a box with these distances from the center of a prior of side 1."""
    left, top, right, bottom = distances
    box = torch.tensor([[0.5 - left, 0.5 - top, 0.5 + right, 0.5 + bottom]]).double()
    return CODER.encode(box, torch.tensor([[0.0, 0, 1, 1]]).double())


def test_the_formula_of_the_paper():
    """Loop over the sides: -((i + 1 - d) log p_i + (d - i) log p_(i+1)). A distance of 9 is clamped to 3.99."""
    priors = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [0, 0, 16, 16]]).double()
    boxes = torch.tensor([[[-3.0, 2, 20, 9], [0, 0, 90, 9], [7, 6, 9, 11]]]).double()
    logits, foreground = draw(1, 3), torch.tensor([[True, True, False]])
    expected = 0.0
    for row in range(2):
        (x, y), side = ((priors[row, :2] + priors[row, 2:]) / 2).tolist(), float(priors[row, 2] - priors[row, 0])
        x1, y1, x2, y2 = boxes[0, row].tolist()
        for k, length in enumerate((x - x1, y - y1, x2 - x, y2 - y)):
            d = min(max(length / side, 0), 3.99)
            values = [math.exp(v) for v in logits[0, row, 5 * k : 5 * k + 5].tolist()]
            i = int(d)
            losses = [-math.log(v / sum(values)) for v in values]
            expected += ((i + 1 - d) * losses[i] + (d - i) * losses[i + 1]) / 4
    loss = DFL(logits, CODER.encode(boxes, priors), foreground, 5)
    assert loss.item() == pytest.approx(expected / 5, rel=1e-12)


def test_gradcheck():
    predicted, target = draw(3).requires_grad_(), draw(3, seed=1).unflatten(-1, (4, 5)).softmax(-1).flatten(-2)
    foreground, weights = torch.tensor([True, False, True]), torch.tensor([0.3, math.nan, 0.8]).double()
    assert torch.autograd.gradcheck(lambda x: DFL(x, target, foreground, 2, weights), predicted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_background_rows_may_hold_any_value(dtype: torch.dtype):
    predicted, target = draw(3).to(dtype), torch.full((3, 20), 0.2)
    predicted[1], target[2] = torch.inf, torch.nan
    predicted.requires_grad_()
    loss = DFL(predicted, target, torch.tensor([True, False, False]), 0)
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32
    assert predicted.grad.isfinite().all() and predicted.grad[0].any() and not predicted.grad[1:].any()


def test_the_minimum_is_the_entropy_of_the_target():
    target = encoded(0, 1.5, 2, 3.25)
    entropy = sum(-p * math.log(p) for p in (0.5, 0.5, 0.75, 0.25)) / 4
    assert DFL(target.clamp(min=1e-300).log(), target, torch.tensor([True]), 1).item() == pytest.approx(entropy)
