"""The model in a training of several processes, whose gradients are summed."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detector.core.distributed import world_size


def replicate(model: nn.Module) -> nn.Module:
    """Return the model, or in a training of several processes its DistributedDataParallel.

    The gradients are summed and not averaged, because the loss is the sum over the ranks.
    """
    if world_size() == 1:
        return model
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True)

    def add(_: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        summed = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
        return summed.get_future().then(lambda future: future.value()[0])

    replica.register_comm_hook(None, add)
    return replica


def summed_gradients(replica: nn.Module, *, is_last: bool) -> AbstractContextManager:
    """Return a context for the backward pass of a batch.

    Only the last batch of a step sums the gradients over the ranks, and these include those of the earlier batches.

    Args:
        replica: the result of `replicate`.
        is_last: whether this batch is the last batch of its step.
    """
    return nullcontext() if is_last or not isinstance(replica, DistributedDataParallel) else replica.no_sync()
