"""Functions that run scripts in several processes with ranks, as torchrun does, and commands in a process."""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Iterable
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
    forks = [Fork(script, arguments, Path.cwd(), rank) for rank in ranks]
    return [fork.end() for fork in forks]


def run_command(folder: Path, *arguments: object, **variables: str) -> Ended:
    """Run the command `detector` in a folder, in a separate process.

    Args:
        folder: the working folder.
        arguments: the command line, for example `"evaluate", "--checkpoint", path`.
        variables: more environment variables.
    """
    return start_command(folder, *arguments, **variables).end()


def start_command(folder: Path, *arguments: object, **variables: str) -> "Fork":
    """Start the command `detector` as `run_command` does, and do not wait for its end."""
    return Fork("from detector.cli import main; main()", arguments, folder, variables)


class Fork:
    """A process that runs a script: a fork of a server that has imported `detector`.

    The forks share the hash seed of the server, in contrast to processes of torchrun.

    Args:
        script: Python source.
        arguments: passed to the script as text.
        folder: the working folder.
        variables: more environment variables.
    """

    def __init__(self, script: str, arguments: Iterable[object], folder: Path, variables: dict[str, str]):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment().items():
                patch.setenv(name, value)
            forkserver.ensure_running()
        self._outputs = TemporaryDirectory()
        self._file = Path(self._outputs.name) / "output.txt"
        texts = [str(argument) for argument in arguments]
        self._process = PROCESSES.Process(
            target=_run_script, args=(script, texts, environment(**variables), folder, self._file)
        )
        self._process.start()

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self._process.pid, number)

    def end(self) -> Ended:
        """Wait until the process ends, kill it after 300 seconds, and return its results."""
        self._process.join(timeout=300)
        self._process.kill()
        self._process.join()
        output, errors = (file.read_text() for file in (self._file, self._file.with_suffix(".err")))
        self._outputs.cleanup()
        return Ended(self._process.exitcode, output, errors)


def _run_script(script: str, arguments: list[str], variables: dict[str, str], folder: Path, file: Path) -> None:
    """Run a script as `python -c` does, and write its output to a file."""
    for descriptor, path in ((1, file), (2, file.with_suffix(".err"))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["-c", *arguments]
    sys.path[:0] = variables["PYTHONPATH"].split(os.pathsep)
    np.random.seed()  # a fork has the random state of the server
    torch.set_num_threads(1)
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
