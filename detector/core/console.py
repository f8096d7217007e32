"""The log of a command on the console: plain lines, and warnings that stand out."""

import logging
import os
import sys

WARNING_COLOR = "\x1b[1;33m"  # bold yellow
PLAIN = "\x1b[0m"


class ConsoleHandler(logging.Handler):
    """Writes log records to stderr. A warning begins with `warning: `, in color where stderr is a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        stream = sys.stderr  # a progress bar replaces sys.stderr for a time, and prints the lines above itself
        prefix = ""
        if record.levelno >= logging.WARNING:
            has_color = stream.isatty() and not os.environ.get("NO_COLOR")
            prefix = f"{WARNING_COLOR}warning:{PLAIN} " if has_color else "warning: "
        print(prefix + record.getMessage(), file=stream)


def start_logging() -> None:
    """Show the log of a command on the console, from the level INFO on."""
    root = logging.getLogger()
    if not root.handlers:  # a program that calls a command can have its own
        root.setLevel(logging.INFO)
        root.addHandler(ConsoleHandler())
        logging.getLogger("matplotlib").setLevel(logging.WARNING)  # its first run reports a new list of fonts
