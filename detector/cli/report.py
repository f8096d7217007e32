"""Write a self-contained HTML page that compares runs, probes, censuses and studies.

Example: detector report runs/first runs/second runs/studies/losses --out report.html
"""

import argparse

from detector.core.command import out_file, user_path
from detector.core.files import write_text


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", nargs="+", type=user_path, metavar="RUN", help="folder of a run, probe, census or study"
    )
    parser.add_argument("--out", type=out_file, default="report.html")
    args = parser.parse_intermixed_args()
    # imported here, because --help must not import torch
    from detector.lab.report.page import make_page
    from detector.lab.report.sources import read_source

    write_text(args.out, make_page([read_source(folder) for folder in args.folders]))
    print(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)")
