"""Functions that run scripts in several processes with ranks, as torchrun does, and commands in a process."""

import multiprocessing
import os
import socket
import sys
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

REPO = Path(__file__).parents[1]
PROCESSES = multiprocessing.get_context("forkserver")
# each process is a fork of a server that has imported these modules, because the imports take longer than the scripts
PROCESSES.set_forkserver_preload(["detector.training", "runs", "ranks"])


def environment(**more: str) -> dict[str, str]:
    """Return the environment variables of processes that share two cores. No host name is resolved."""
    paths = os.pathsep.join((str(REPO), str(REPO / "tests")))
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | more


@dataclass(frozen=True)
class Ended:
    """The results of a process: its exit code (-9 after SIGKILL), its standard output and its standard error."""

    code: int
    output: str
    errors: str


def run_ranks(script: str, num_ranks: int, *arguments: object, **variables: str) -> list[str]:
    """Run a Python script in several processes, assert that they succeed, and return their outputs.

    Args:
        script: Python source. Its `sys.argv[1:]` are the arguments.
        num_ranks: the number of processes.
        arguments: passed to the script as text.
        variables: more environment variables.
    """
    ended = end_ranks(script, num_ranks, *arguments, **variables)
    assert [rank.code for rank in ended] == [0] * num_ranks, ended
    return [rank.output for rank in ended]


def end_ranks(script: str, num_ranks: int, *arguments: object, **variables: str) -> list[Ended]:
    """Run a Python script in several processes, as `run_ranks` does, and return their results."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [shared | variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)]
    return _run_forks(script, [str(argument) for argument in arguments], ranks, Path.cwd())


def run_command(folder: Path, *arguments: object, **variables: str) -> Ended:
    """Run the command `detector` in a folder, in a separate process.

    Args:
        folder: the working folder.
        arguments: the command line, for example `"evaluate", "--checkpoint", path`.
        variables: more environment variables.
    """
    (ended,) = _run_forks("from detector.cli import main; main()", list(map(str, arguments)), [variables], folder)
    return ended


def _run_forks(script: str, arguments: list[str], variables: list[dict[str, str]], folder: Path) -> list[Ended]:
    """Run a script in forks of a server that has imported `detector`: a fork for each set of environment variables.

    The forks share the hash seed of the server, in contrast to processes of torchrun.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    with TemporaryDirectory() as outputs:
        files = [Path(outputs) / f"{rank}.txt" for rank in range(len(variables))]
        processes = [
            PROCESSES.Process(target=_run_script, args=(script, arguments, environment(**more), folder, file))
            for more, file in zip(variables, files, strict=True)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=300)
        for process in processes:
            process.kill()  # a process may still wait for another rank
            process.join()
        return [
            Ended(process.exitcode, file.read_text(), file.with_suffix(".err").read_text())
            for process, file in zip(processes, files, strict=True)
        ]


def _run_script(script: str, arguments: list[str], variables: dict[str, str], folder: Path, file: Path) -> None:
    """Run a script as `python -c` does, and write its output to a file."""
    for descriptor, path in ((1, file), (2, file.with_suffix(".err"))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv = ["-c", *arguments]
    sys.path[:0] = variables["PYTHONPATH"].split(os.pathsep)
    np.random.seed()  # a fork has the random state of the server
    torch.set_num_threads(1)
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
