"""The few collective operations the parts need; each is the identity in a single process."""

import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The element-wise sum over all ranks, on every rank, without a gradient."""
    if dist.is_initialized():
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor)
    return tensor
