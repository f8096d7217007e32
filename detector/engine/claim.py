"""Choose the run folder and lock it for this process."""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from detector.core.errors import UserError
from detector.engine.checkpoint import generations, newest_whole

log = logging.getLogger(__name__)
LAST = Path("checkpoints") / "last.pt"
LOCK = ".lock"
TIME = "%Y-%m-%d_%H-%M-%S"


@contextmanager
def claim_run(name: str, out: Path | None, resume: str | None) -> Generator[tuple[Path, Path | None]]:
    """As a context: the run folder, which no other process can claim meanwhile, and the checkpoint to continue from.

    `out` defaults to a new folder runs/<name>/<time>. `resume` is a checkpoint's path, or `auto`: the newest whole
    checkpoint in `out`, or without `out` that of the newest run of this name; where there is none, not even a damaged
    one, a new run starts. A run goes on in its own folder. Raises UserError where the folder holds another run, or
    belongs to a process that is running.
    """
    resume = resume and os.path.expanduser(resume)
    chosen = _choose(name, out, resume)
    missing = _missing(chosen or Path("runs") / name)
    folder = chosen or _new_folder(name)
    # only once it is locked is it certain what the folder holds
    with claim(folder, created=missing if chosen else [folder, *missing]):
        if resume is None and out is not None:
            _refuse_a_run(folder)
        checkpoint = None
        if resume == "auto":
            checkpoint = newest_whole(folder / LAST)
            if checkpoint is None and (damaged := generations(folder / LAST)):
                names = ", ".join(path.name for path in damaged)
                raise UserError(f"{folder}: none of its checkpoints is whole ({names})", "choose another --out")
            if checkpoint is None:
                log.info("nothing to resume in %s: a new run starts in %s", out or Path("runs") / name, folder)
            elif out is None:
                log.info("the newest run of %s is %s", name, folder)
        elif resume is not None:
            checkpoint = Path(resume)
            if folder.resolve() != _owner(checkpoint):
                _refuse_a_run(folder)
        yield folder, checkpoint


@contextmanager
def claim(folder: Path, *, created: Sequence[Path] = ()) -> Generator[None]:
    """Lock the folder, and create it if needed.

    The operating system releases the lock when the process dies. Folders created here are removed if they stay empty.

    Args:
        folder: the folder to lock.
        created: folders that the caller created for it, the innermost first. They count as created here.

    Raises:
        UserError: another process has locked the folder.
    """
    created = [*created, *_missing(folder)]
    lock = _lock(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # of a disk that is read-only now
            (folder / LOCK).unlink()
        os.close(lock)
        with suppress(OSError):  # it is not empty
            for path in dict.fromkeys(created):
                path.rmdir()


def _missing(folder: Path) -> list[Path]:
    """The folder and those above it, the innermost first, as far as they do not exist."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _lock(folder: Path) -> int:
    """The open lock file. Its lock is one that worker processes do not inherit, so that it ends with this process."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.read(lock, 200).decode(errors="replace")
            os.close(lock)
            raise UserError(
                f"{folder}: another process writes to this folder ({owner})",
                "wait for its end, or choose another --out",
            ) from None
        except OSError as error:
            log.warning("%s: this file system has no locks (%s); start no second run there", folder, error.strerror)
        if os.fstat(lock).st_nlink:  # else the process that had it removed it in the meantime
            with suppress(OSError):  # a full disk: the lock holds all the same
                os.ftruncate(lock, 0)
                os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return lock
        os.close(lock)


def _choose(name: str, out: Path | None, resume: str | None) -> Path | None:
    """A folder that the run must have; None where it gets a new one."""
    if resume is None or out is not None and resume == "auto":
        return out
    if resume == "auto":
        return _newest_run(name)
    checkpoint = Path(resume)
    if checkpoint.is_dir():
        raise UserError(
            f"--resume {resume}: a folder",
            f"give a checkpoint, as {checkpoint / LAST}, or --out {resume} --resume auto",
        )
    if _owner(checkpoint) is None:
        return out
    own = checkpoint.parent.parent
    if out is not None and out.resolve() != own.resolve():
        raise UserError(f"--out {out}: {resume} belongs to the run {own}, which goes on there", "leave --out away")
    return out or own


def _owner(checkpoint: Path) -> Path | None:
    """The run folder whose checkpoint it is, resolved."""
    return checkpoint.parent.parent.resolve() if checkpoint.parent.name == "checkpoints" else None


def _newest_run(name: str) -> Path | None:
    """The run of this name that wrote the newest checkpoint, which may be damaged; its folder may have any name."""
    times = {
        folder: max(path.stat().st_mtime_ns for path in checkpoints)
        for folder in (Path("runs") / name).glob("*")
        if (checkpoints := generations(folder / LAST))
    }
    return max(times, key=times.__getitem__, default=None)


def _refuse_a_run(out: Path) -> None:
    if (out / "metrics.csv").exists() or generations(out / LAST):  # a run can have no CSV logger
        raise UserError(f"{out} holds a run already", "continue it with --resume auto, or choose another --out")


def _new_folder(name: str) -> Path:
    """runs/<name>/<time>, made by this process: of two in one second, the second gets a _2 behind the time."""
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
