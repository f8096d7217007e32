"""Several processes as one, started by torchrun: who this one is, and what they exchange. In a single process every
exchange is the identity."""

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
    """Whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def process_group(device: torch.device) -> Generator[None]:
    """As a context: joined with the processes that torchrun started; a single one goes on alone. Each takes the GPU of
    its local rank; host data travel by gloo, a GPU's by NCCL."""
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
    dist.destroy_process_group()  # not after an error: the others may be waiting in an exchange


def _of_this_start(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """The part of a store that holds nothing of processes that ended before these started.

    torchrun keeps one store over its restarts, and in it the addresses where the processes that it killed listened: one
    that looks for its new peer's before that has come finds the old one. (TORCHELASTIC_RESTART_COUNT does not tell the
    starts apart: of several nodes, those whose processes had not failed do not count.) So rank 0 answers whoever asks
    by an id of its own, until all are known to have the name that it has given. Raises TimeoutError."""
    own = uuid.uuid4().hex
    if rank == 0:
        until = time.monotonic() + store.timeout.total_seconds()  # ty: ignore[missing-attribute]  (torch's types lack it)
        for other in range(1, world_size):
            while not store.check([f"{own}/{other}"]):
                if time.monotonic() > until:
                    raise TimeoutError(f"rank {other} of {world_size} has not come")
                if store.check([f"asks/{other}"]):  # it may be the old one's id yet, for whom an answer does no harm
                    store.set(store.get(f"asks/{other}").decode(), own)
                time.sleep(POLL_S)
        return dist.PrefixStore(own, store)
    store.set(f"asks/{rank}", own)
    name = store.get(own).decode()  # waits for it
    store.set(f"{name}/{rank}", "")
    return dist.PrefixStore(name, store)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The element-wise sum over all ranks, on every rank, without a gradient."""
    if dist.is_initialized():
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor)
    return tensor


def gather(value: Any) -> list[Any]:
    """Every rank's value, by rank, on rank 0; nothing on the others."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


def broadcast(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]
