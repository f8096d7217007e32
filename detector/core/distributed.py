"""The process group of a run that torchrun has started: ranks, and values that the processes exchange.

In a single process each exchange returns its argument.
"""

import os
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

POLL_S = 0.02


def launched() -> bool:
    """Return whether torchrun has started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def process_group(device: torch.device) -> Generator[None]:
    """As a context: join the processes that torchrun has started. A single process continues without a group.

    Each process uses the GPU of its local rank. Gloo transfers the data of the host, and NCCL the data of a GPU.
    """
    if not launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, world_size = next(dist.rendezvous("env://"))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=_of_this_start(store, rank, world_size),
        rank=rank,
        world_size=world_size,
    )
    yield
    dist.destroy_process_group()  # not after an error: other processes may still wait in an exchange


def _of_this_start(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """Return the store with a prefix that only the processes of this start use.

    torchrun keeps one store over its restarts. The store still has the addresses of the processes that torchrun has
    killed. A process that reads an address before its new peer has written it gets the old address.
    (TORCHELASTIC_RESTART_COUNT is no prefix: nodes whose processes have not failed do not increase it.)

    So the processes agree on a prefix. Each process draws a unique id. Rank 0 sends its id, which is the prefix, to
    each id that asks for it, until each rank has confirmed the prefix. Raises TimeoutError where a rank does not
    confirm.
    """
    unique_id = uuid.uuid4().hex
    if rank == 0:
        until = time.monotonic() + store.timeout.total_seconds()  # ty: ignore[missing-attribute]  (torch's types lack it)
        for other in range(1, world_size):
            while not store.check([f"{unique_id}/{other}"]):
                if time.monotonic() > until:
                    raise TimeoutError(f"rank {other} of {world_size} has not answered")
                if store.check([f"asks/{other}"]):  # an answer to the id of a killed process has no effect
                    store.set(store.get(f"asks/{other}").decode(), unique_id)
                time.sleep(POLL_S)
        return dist.PrefixStore(unique_id, store)
    store.set(f"asks/{rank}", unique_id)
    prefix = store.get(unique_id).decode()  # waits for the answer of rank 0
    store.set(f"{prefix}/{rank}", "")
    return dist.PrefixStore(prefix, store)


def rank() -> int:
    """Return the rank of this process, which is 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the element-wise sum over all ranks, on every rank, without a gradient."""
    if dist.is_initialized():
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor)
    return tensor


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks, in the order of the ranks, on rank 0, and an empty list on the other ranks."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


def broadcast(value: Any) -> Any:
    """Return the value of rank 0 on every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]
