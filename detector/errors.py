"""The one exception for input that the user can mend."""


class UserError(Exception):
    """The user's input is at fault. The message is one line: what is wrong, where, and the remedy.

    Libraries raise it; tools turn it into that line on stderr and exit code 2 (`detector.command`).
    """
