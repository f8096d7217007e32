"""The model in several processes: their gradients are summed."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detector.core.distributed import world_size


def replicate(model: nn.Module) -> nn.Module:
    """Return the model as PyTorch's DistributedDataParallel where there are several processes. Gradients are summed,
    since the criterion's losses add up over the ranks."""
    if world_size() == 1:
        return model
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True)

    def add(_: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        summed = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
        return summed.get_future().then(lambda future: future.value()[0])

    replica.register_comm_hook(None, add)
    return replica


def summed_gradients(replica: nn.Module, *, is_last: bool) -> AbstractContextManager:
    """Return a context in which the last batch of a step alone sums the gradients of all its batches over the ranks."""
    return nullcontext() if is_last or not isinstance(replica, DistributedDataParallel) else replica.no_sync()
