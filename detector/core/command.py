"""What all tools share: the paths among their arguments, their exit codes and their one line on stderr."""

import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from detector.core.errors import Interrupted, UserError
from detector.core.torch_errors import explain

PLACE_ERRORS = (  # of the user's disk and paths, not of the code
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ESTALE),
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EBUSY, errno.EXDEV, errno.EMFILE, errno.ENFILE),
)
CLOSED_PIPE = 141  # what a shell reports of a process that SIGPIPE ends


def run(main: Callable[[], None]) -> NoReturn:
    """Call `main` and exit: 0 done, 2 the user's input is at fault, 130 or 143 interrupted, 141 nobody reads the output
    any more (bugs: a traceback)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the locale's encoding lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _call(main)
        sys.stdout.flush()
    except BrokenPipeError:
        code = CLOSED_PIPE
        # what is left in the buffer would be written, and fail once more, while Python shuts down
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _call(main: Callable[[], None]) -> int | str | None:
    try:
        main()
    except UserError as error:
        return _fail(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno not in PLACE_ERRORS:
            raise
        what = f"{error.filename or 'a file of the run'}: {os.strerror(error.errno).lower()}"
        return _fail(f"{what}; correct that and run the command again (a training with --resume auto)")
    except Interrupted as error:
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except SystemExit as stopped:
        return stopped.code
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        return _fail(line)
    return 0


def _fail(line: str) -> int:
    with suppress(OSError):  # nobody reads it
        print("error:", UserError(line), file=sys.stderr)
    return 2


def user_path(text: str | Path) -> Path:
    """An argument that is a path, with the home folder for `~`."""
    return Path(os.path.expanduser(text))


def out_folder(text: str | Path) -> Path:
    """An argument that is a folder to write to, there already or not. Raises UserError where it cannot be made."""
    folder = user_path(text)
    _check_place(folder)
    return folder


def out_file(text: str | Path) -> Path:
    """An argument that is a file to write. Raises UserError where it cannot be made."""
    file = user_path(text)
    if file.is_dir():
        raise UserError(f"{text}: a folder", "give the file to write in it")
    _check_place(file.parent, file.name)
    return file


def _check_place(folder: Path, file_name: str = "") -> None:
    """Check before the work that a folder, and a file in it, can be made.

    Raises UserError where the folder or a missing folder above it cannot be made, or a name is too long.
    """
    place = folder / file_name
    with suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(place)  # raises where the whole path is too long
    present = next((p for p in (folder, *folder.parents) if os.path.lexists(p)), Path())
    if not present.is_dir():
        raise UserError(f"{place}: {present} is not a folder", "choose another place")
    longest = max((len(os.fsencode(part)) for part in place.parts), default=0)
    if 0 < os.pathconf(present, "PC_NAME_MAX") < longest:
        raise UserError(f"{place}: the name is too long for the file system ({longest} bytes)", "choose a shorter one")
    if not os.access(present, os.W_OK):
        is_read_only = os.statvfs(present).f_flag & os.ST_RDONLY
        what = "is on a read-only file system" if is_read_only else "may not be written to by this user"
        raise UserError(f"{place}: {present} {what}", "choose another place, or correct that")
