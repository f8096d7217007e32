"""Show the keys of the config: their values, defaults and meanings.

Examples: detector keys
          detector keys train
          detector keys loss.classification
"""

import argparse

from detector.core.command import user_path
from detector.core.errors import UserError


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", nargs="?", default="", help="show only the keys that begin with this text")
    parser.add_argument("--update", type=user_path, metavar="FILE", help="write the reference into this Markdown file")
    args = parser.parse_args()
    # imported here, because --help must not import torch
    from detector.build.reference import COLUMNS, keys, parts, registries, update
    from detector.core.files import write_text
    from detector.core.tables import show

    if args.update:
        try:
            write_text(args.update, update(args.update.read_text(encoding="utf-8")))
        except ValueError as error:
            raise UserError(f"{args.update} {error}", "add these two lines") from None
        return
    chosen = [key for key in keys() if key.path.startswith(args.prefix)]
    if not chosen:
        raise UserError(f"no key begins with {args.prefix!r}", "see all keys with `detector keys`")
    show(COLUMNS, [key.row for key in chosen])
    if args.prefix in registries():
        registry = registries()[args.prefix]
        for part in parts(registry):
            show(COLUMNS, [key.row for key in part.parameters], title=f"{args.prefix}={part.name}: {part.summary}")
