import pytest
import torch

from detector.models.neck import HalvingConv


def fill_free_memory(num_weights: int) -> None:
    """Leave NaNs in the memory that the next tensors of about this size get."""
    for size in (num_weights // 2, num_weights, 2 * num_weights, *(2**k for k in range(8, 18))):
        torch.full((size,), torch.nan)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 2), (3, 3)])
def test_the_gradient_of_a_map_of_one_column_in_bf16_is_that_in_fp32(size: tuple[int, int]):
    conv = HalvingConv(16, 16)
    x = torch.randn(4, 16, *size, generator=torch.Generator().manual_seed(0))
    y = conv(x)
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, conv.weight, conv.bias, stride=2, padding=1))
    (expected,) = torch.autograd.grad(y.square().sum(), conv.weight)
    for _ in range(20):
        fill_free_memory(conv.weight.numel())
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        (gradient,) = torch.autograd.grad(y.float().square().sum(), conv.weight)
        torch.testing.assert_close(gradient, expected, rtol=0.05, atol=0.02 * expected.abs().max().item())
