"""How a tool ends: its exit code and, where the user is at fault, its one line on stderr."""

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from detector.errors import Interrupted, UserError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def run(main: Callable[[], None]) -> NoReturn:
    """Call `main` and exit: 0 done, 2 the user's input is at fault, 130 or 143 interrupted (bugs: a traceback)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the locale's encoding lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        what = f"{error.filename or 'a file of the run'}: {os.strerror(error.errno).lower()}"
        print(f"error: {what}; mend that, then go on (a training by --resume auto)", file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
