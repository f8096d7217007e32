"""Choose the run folder, and lock it for this process."""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from detector.core.errors import UserError
from detector.engine.checkpoint import generations, newest_intact

log = logging.getLogger(__name__)
LAST = Path("checkpoints") / "last.pt"
LOCK = ".lock"
TIME = "%Y-%m-%d_%H-%M-%S"


@contextmanager
def claim_run(name: str, out: Path | None, resume: str | None) -> Generator[tuple[Path, Path | None]]:
    """As a context: choose and lock the run folder.

    The context gives the folder, and the checkpoint to continue from or None. A resumed run continues in the folder of
    its checkpoint.

    Args:
        name: the name of the run.
        out: the run folder. The default is a new folder runs/<name>/<time>.
        resume: the path of a checkpoint, or `auto`, or None for a new run. `auto` is the newest intact checkpoint in
            `out`, or, without `out`, in the newest run of this name. If no checkpoint exists, a new run starts.

    Raises:
        UserError: the folder contains another run, another process has locked it, `auto` finds only damaged
            checkpoints, or `resume` is a folder.
    """
    resume = resume and os.path.expanduser(resume)
    chosen = _choose(name, out, resume)
    missing = _missing(chosen or Path("runs") / name)
    folder = chosen or _new_folder(name)
    # the content of the folder is certain only under the lock
    with claim(folder, created=missing if chosen else [folder, *missing]):
        if resume is None and out is not None:
            _refuse_a_run(folder)
        checkpoint = None
        if resume == "auto":
            checkpoint = newest_intact(folder / LAST)
            if checkpoint is None and (damaged := generations(folder / LAST)):
                names = ", ".join(path.name for path in damaged)
                raise UserError(f"{folder}: all checkpoints are damaged ({names})", "choose another --out")
            if checkpoint is None:
                log.info("no checkpoint to resume in %s: starting a new run in %s", out or Path("runs") / name, folder)
            elif out is None:
                log.info("resuming the newest run of %s: %s", name, folder)
        elif resume is not None:
            checkpoint = Path(resume)
            if folder.resolve() != _run_folder_of(checkpoint):
                _refuse_a_run(folder)
        yield folder, checkpoint


@contextmanager
def claim(folder: Path, *, created: Sequence[Path] = ()) -> Generator[None]:
    """As a context: create a folder if it is missing, and lock it.

    The operating system releases the lock when the process ends. At the end, the created folders are removed if they
    are empty.

    Args:
        folder: the folder to lock.
        created: the folders that the caller has created for it, the innermost first.

    Raises:
        UserError: another process has locked the folder.
    """
    created = [*created, *_missing(folder)]
    lock = _lock(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # the disk has become read-only
            (folder / LOCK).unlink()
        os.close(lock)
        with suppress(OSError):  # a folder is not empty
            for path in dict.fromkeys(created):
                path.rmdir()


def _missing(folder: Path) -> list[Path]:
    """Return the folders that do not exist among `folder` and its parents, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _lock(folder: Path) -> int:
    """Return the open lock file. Child processes do not inherit its lock, so the lock ends with this process."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.read(lock, 200).decode(errors="replace")
            os.close(lock)
            raise UserError(
                f"{folder}: another process uses this folder ({owner})",
                "wait until that process ends, or choose another --out",
            ) from None
        except OSError as error:
            log.warning(
                "%s: this file system has no locks (%s): do not start a second run there", folder, error.strerror
            )
        if os.fstat(lock).st_nlink:  # else the previous owner has removed the file in the meantime
            with suppress(OSError):  # the disk is full, but the lock is valid
                os.ftruncate(lock, 0)
                os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return lock
        os.close(lock)


def _choose(name: str, out: Path | None, resume: str | None) -> Path | None:
    """Return the folder that the run must use, or None if the run gets a new folder."""
    if resume is None or out is not None and resume == "auto":
        return out
    if resume == "auto":
        return _newest_run(name)
    checkpoint = Path(resume)
    if checkpoint.is_dir():
        raise UserError(
            f"--resume {resume}: this is a folder, not a checkpoint",
            f"give a checkpoint, for example {checkpoint / LAST}, or --out {resume} --resume auto",
        )
    if _run_folder_of(checkpoint) is None:
        return out
    run_folder = checkpoint.parent.parent
    if out is not None and out.resolve() != run_folder.resolve():
        raise UserError(f"--out {out}: {resume} belongs to the run {run_folder}", "omit --out")
    return out or run_folder


def _run_folder_of(checkpoint: Path) -> Path | None:
    """Return the resolved run folder of a checkpoint, or None if the checkpoint is outside of a run folder."""
    return checkpoint.parent.parent.resolve() if checkpoint.parent.name == "checkpoints" else None


def _newest_run(name: str) -> Path | None:
    """Return the folder below runs/<name> with the newest checkpoint, intact or damaged."""
    times = {
        folder: max(path.stat().st_mtime_ns for path in checkpoints)
        for folder in (Path("runs") / name).glob("*")
        if (checkpoints := generations(folder / LAST))
    }
    return max(times, key=times.__getitem__, default=None)


def _refuse_a_run(out: Path) -> None:
    if (out / "metrics.csv").exists() or generations(out / LAST):  # a run without the logger csv has no metrics.csv
        raise UserError(
            f"{out}: the folder already contains a run", "continue it with --resume auto, or choose another --out"
        )


def _new_folder(name: str) -> Path:
    """Create and return runs/<name>/<time>. The second folder of one second is <time>_2."""
    parent = Path("runs") / name
    now, number = time.strftime(TIME), 1
    while True:
        folder = parent / (now if number == 1 else f"{now}_{number}")
        parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder
