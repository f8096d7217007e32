"""Several processes that work as one, as torchrun starts them."""

import multiprocessing
import os
import socket
import sys
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

REPO = Path(__file__).parents[1]
PROCESSES = multiprocessing.get_context("forkserver")
# each process is a fork of a server that has imported these: to import them takes longer than what the scripts do
PROCESSES.set_forkserver_preload(["detector.training", "runs", "ranks"])


def environment(**more: str) -> dict[str, str]:
    """For processes that share two cores, on a host whose name need not resolve."""
    paths = os.pathsep.join((str(REPO), str(REPO / "tests")))
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | more


def run_ranks(script: str, num_ranks: int, *arguments: object, **variables: str) -> list[str]:
    """Run a Python script in several processes and return what each prints.

    The processes start as forks of a server that has imported `detector` and done nothing else. They share its hash
    seed, which processes of torchrun do not.

    Args:
        script: Python source. Its `sys.argv[1:]` are the arguments.
        num_ranks: the number of processes.
        arguments: passed to the script as text.
        variables: more environment variables.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{rank}.txt" for rank in range(num_ranks)]
        processes = [
            PROCESSES.Process(
                target=_run_script,
                args=(script, arguments, environment(**shared | variables, RANK=str(rank), LOCAL_RANK=str(rank)), file),
            )
            for rank, file in enumerate(files)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=300)
        for process in processes:
            process.kill()  # where it waits for ever
        errors = [file.with_suffix(".err").read_text() for file in files]
        assert [process.exitcode for process in processes] == [0] * num_ranks, errors
        return [file.read_text() for file in files]


def _run_script(script: str, arguments: tuple[object, ...], variables: dict[str, str], file: Path) -> None:
    """Run a script as `python -c` does, with its output in a file."""
    for descriptor, path in ((1, file), (2, file.with_suffix(".err"))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["-c", *map(str, arguments)]
    np.random.seed()  # a fork has the server's state
    torch.set_num_threads(1)
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
