"""Suggest settings against the imbalance that a census, and optionally a probe, has measured.

The output is a config with the settings, their reasons, and the overrides of the command.

Example: detector advise --census runs/census/bccd_focal_train --cfg bccd_focal.yaml data.root=DIR --out advice.yaml
"""

import argparse
import math
import os
import shlex
import textwrap
from pathlib import Path

import yaml

from detector.core.command import next_steps, out_file, user_path
from detector.core.errors import UserError
from detector.core.files import write_text


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--census", type=user_path, required=True, help="census.json of detector census, or its folder")
    parser.add_argument("--probe", type=user_path, help="probe.json of detector probe, or its folder")
    parser.add_argument("--cfg", required=True, help="config to improve: a name in configs/, or a path")
    parser.add_argument("--gamma", type=float, default=2.0, help="gamma of the focal loss; 0 is cross entropy")
    parser.add_argument("--out", type=out_file, default="advice.yaml", help="file for the improved config")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_intermixed_args()
    # imported here, because --help must not import torch
    from detector.config import CONFIGS, Config, load_config
    from detector.core.json_records import read_record
    from detector.core.overrides import merge, read_overrides
    from detector.imbalance.advisor import advise, overlay
    from detector.imbalance.census_result import CENSUS, Census
    from detector.imbalance.probe_result import PROBE, ProbeResult

    if not 0 <= args.gamma < math.inf:
        raise UserError(f"--gamma {args.gamma:g} is not a number of 0 or more", "give for example --gamma 2")
    load_config(args.cfg, args.overrides)
    census = read_record(file_in(args.census, "census.json"), Census, CENSUS)
    probe = read_record(file_in(args.probe, "probe.json"), ProbeResult, PROBE) if args.probe else None
    advice = advise(census, probe, args.gamma)
    base = user_path(args.cfg) if os.path.dirname(args.cfg) else CONFIGS / args.cfg
    base = base if base.is_file() else Path(f"{base}.yaml")
    lines = [f"# {args.cfg} with the settings that its census suggests."]
    for item in advice:
        print(f"{item.key}: {item.value}\n{textwrap.indent(textwrap.fill(item.reason, 100), '    ')}")
        lines += textwrap.wrap(f"{item.key}: {item.reason}", 116, initial_indent="# ", subsequent_indent="#   ")
    values = {"base": os.path.relpath(base, args.out.parent)}
    values |= merge(read_overrides(args.overrides, Config), overlay(advice))
    write_text(args.out, "\n".join(lines) + "\n" + yaml.safe_dump(values, sort_keys=False, default_flow_style=None))
    load_config(str(args.out.resolve()))
    path = args.out if os.path.dirname(args.out) else f"./{args.out}"
    print(f"{args.out} contains these settings")
    print(next_steps({f"detector train --cfg {shlex.quote(str(path))}": "train with them"}))


def file_in(path: Path, name: str) -> Path:
    """Return the file `name` in the folder `path`, or `path` if `path` is a file."""
    return path / name if path.is_dir() else path
