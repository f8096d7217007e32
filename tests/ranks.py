"""Several processes that work as one, as torchrun starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[1]


def environment(**more: str) -> dict[str, str]:
    """For processes that share two cores, on a host whose name need not resolve."""
    paths = os.pathsep.join((str(REPO), str(REPO / "tests")))
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | more


def run_ranks(script: str, num_ranks: int, *arguments: object, **variables: str) -> list[str]:
    """What a Python script prints in each of so many processes. Its `sys.argv[1:]` are the arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(**shared | variables, RANK=str(rank), LOCAL_RANK=str(rank)),
        )
        for rank in range(num_ranks)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * num_ranks
    return said
