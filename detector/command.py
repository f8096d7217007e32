"""How a tool ends: its exit code and, where the user is at fault, its one line on stderr."""

import sys
from collections.abc import Callable
from typing import NoReturn

from detector.errors import UserError


def run(main: Callable[[], None]) -> NoReturn:
    """Call `main` and exit: 0 done, 2 the user's input is at fault, 130 interrupted. A bug keeps its traceback."""
    try:
        main()
    except UserError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
