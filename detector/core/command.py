"""The functions that all tools share: exit codes, error lines, the paths among the arguments, and the next steps."""

import errno
import io
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from detector.core.errors import Interrupted, UserError
from detector.core.torch_errors import explain

PATH_ERRORS = (  # errors of the user's disk and paths, which are no bugs
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ESTALE),
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EBUSY, errno.EXDEV, errno.EMFILE, errno.ENFILE),
)
CLOSED_PIPE = 141  # the exit code that a shell reports for a process that SIGPIPE has ended


def run(main: Callable[[], None]) -> NoReturn:
    """Call `main` and exit.

    The exit code is 0 after success, 2 after an error in the user's input, 130 or 143 after an interrupt, and 141 if
    the reader of the output has closed its pipe. A bug ends with a traceback and exit code 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that the locale's encoding lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _call(main)
        sys.stdout.flush()
    except BrokenPipeError:
        code = CLOSED_PIPE
        # else Python writes the rest of the buffer when it shuts down, and fails a second time
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _call(main: Callable[[], None]) -> int | str | None:
    try:
        main()
    except UserError as error:
        return _fail(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno not in PATH_ERRORS:
            raise
        problem = f"{error.filename or 'a file of the run'}: {os.strerror(error.errno).lower()}"
        remedy = "correct the path or the disk, and run the command again (a training with --resume auto)"
        return _fail(UserError(problem, remedy))
    except Interrupted as error:
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except SystemExit as stopped:
        return stopped.code
    except Exception as error:
        if (user_error := explain(error)) is None:
            raise
        return _fail(user_error)
    return 0


def _fail(error: UserError) -> int:
    with suppress(OSError):  # the reader of stderr has closed its pipe
        print("error:", error, file=sys.stderr)
    return 2


def user_path(text: str | Path) -> Path:
    """Return the path in an argument, with the home folder in place of `~`."""
    return Path(os.path.expanduser(text))


def out_folder(text: str | Path) -> Path:
    """Return the output folder in an argument. Raises UserError where the folder cannot be created."""
    folder = user_path(text)
    _check_writable(folder)
    return folder


def out_file(text: str | Path) -> Path:
    """Return the output file in an argument. Raises UserError where the file cannot be created."""
    file = user_path(text)
    if file.is_dir():
        raise UserError(f"{text}: the path is a folder", "give the path of a file")
    _check_writable(file.parent, file.name)
    return file


def _check_writable(folder: Path, file_name: str = "") -> None:
    """Check that a folder, and a file in it, can be created. Nothing is created yet.

    Raises UserError where the folder or a missing folder above it cannot be created, or where a name is too long.
    """
    path = folder / file_name
    with suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(path)  # raises where the path is too long
    present = next((p for p in (folder, *folder.parents) if os.path.lexists(p)), Path())
    if not present.is_dir():
        raise UserError(f"{path}: {present} is not a folder", "choose another path")
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if 0 < (limit := os.pathconf(present, "PC_NAME_MAX")) < longest:
        raise UserError(f"{path}: a name in the path has {longest} bytes", f"choose a name of at most {limit} bytes")
    if not os.access(present, os.W_OK):
        is_read_only = os.statvfs(present).f_flag & os.ST_RDONLY
        cause = "is on a read-only file system" if is_read_only else "is not writable for this user"
        raise UserError(f"{path}: {present} {cause}", f"choose another path, or make {present} writable")


def runnable(command: str) -> str:
    """Return a command as the user's shell runs it: after `uv run`, the shell does not find the command `detector`."""
    return f"uv run {command}" if "UV_RUN_RECURSION_DEPTH" in os.environ else command


def next_steps(commands: Mapping[str, str]) -> str:
    """Return the lines that end the log of a command: the commands to run next, each with its purpose.

    Args:
        commands: the purpose of each command, by the words after `uv run`.
    """
    width = max(map(len, commands))
    return "\n".join(
        ["next:", *(f"  {runnable(command.ljust(width))}  # {what}" for command, what in commands.items())]
    )
