"""How a tool ends: its exit code and, where the user is at fault, its one line on stderr."""

import sys
from collections.abc import Callable
from typing import NoReturn

from detector.errors import Interrupted, UserError


def run(main: Callable[[], None]) -> NoReturn:
    """Call `main` and exit: 0 done, 2 the user's input is at fault, 130 or 143 interrupted (bugs: a traceback)."""
    try:
        main()
    except UserError as error:
        # a loader worker's error arrives behind the worker's traceback
        prefix = f"{UserError.__module__}.{UserError.__name__}: "
        print("error:", " ".join(str(error).splitlines()).rpartition(prefix)[2], file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
