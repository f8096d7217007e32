"""The tools in an ASCII locale, with pictures whose names are not UTF-8 and classes whose names are Chinese."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ranks import environment
from tools_run import REPO

from detector.core.files import WRITE_TEXT, write_text
from detector.data.images import write_image

NAMES = ["图甲", "naïve"]
STEMS = [os.fsdecode(b"caf\xe9"), "图", "plain", "x" * 200]
CONFIG = """
imports: [small_resnet]
data:
  train: {type: voc, images: images, annotations: annotations}
  val: {type: voc, images: images, annotations: annotations}
  short_side: 64
  num_workers: 0
model: {backbone: {type: small_resnet, norm: group, trainable_stages: 5}, levels: [3, 4], width: 16,
  head: {depth: 1, prior: 0.4, sizes: [[12, 18], [26, 40]]}}
train: {batch_size: 2, device: cpu, precision: fp32, warmup_steps: 0, schedule: constant, epochs: 1, meter_every: 1}
"""
TOOLS = [
    "check_data --cfg ./c.yaml",
    "census --cfg ./c.yaml --out census",
    "train --cfg ./c.yaml --out run",
    "evaluate --checkpoint run/checkpoints/best.pt",
    "infer --checkpoint run/checkpoints/best.pt images --out found --score 0.1 --save coco csv yolo",
    "report run census --out report.html",
]
ALL_TOOLS = f"""
import runpy, sys
for line in {TOOLS!r}:
    name, *arguments = line.split()
    sys.argv = [name, *arguments]
    try:
        runpy.run_path("{REPO}/tools/" + name + ".py", run_name="__main__")
    except SystemExit as stopped:
        assert not stopped.code, (line, stopped.code)
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.slow
def test_each_tool_succeeds_and_its_files_are_utf8(tmp_path: Path):
    rng = np.random.default_rng(0)
    for folder in ("images", "annotations"):
        (tmp_path / folder).mkdir()
    for stem in STEMS:
        write_image(tmp_path / f"images/{stem}.jpg", rng.integers(256, size=(64, 64, 3), dtype=np.uint8))
        boxes = [
            f"<object><name>{name}</name><bndbox><xmin>{5 + 9 * k}</xmin><ymin>5</ymin><xmax>{30 + 9 * k}</xmax>"
            "<ymax>40</ymax></bndbox></object>"
            for k, name in enumerate(NAMES)
        ]
        size = "<size><width>64</width><height>64</height></size>"
        write_text(tmp_path / f"annotations/{stem}.xml", f"<annotation>{size}{''.join(boxes)}</annotation>")
    write_text(tmp_path / "c.yaml", CONFIG)
    done = subprocess.run(
        [sys.executable, "-c", ALL_TOOLS],
        cwd=tmp_path,
        env=environment(**ASCII),
        capture_output=True,
        timeout=300,
        check=False,
    )
    output = (done.stdout + done.stderr).decode("ascii")
    assert done.returncode == 0 and "Traceback" not in output, output
    assert r"\u56fe\u7532" in output

    results = json.loads((tmp_path / "found/detections.json").read_bytes())
    assert {os.fsencode(result["file_name"]) for result in results} == {os.fsencode(f"images/{s}.jpg") for s in STEMS}
    assert {result["category"] for result in results} <= set(NAMES)
    for file in tmp_path.rglob("*"):
        if file.suffix in (".csv", ".json", ".yaml", ".txt", ".html", ".md"):
            file.read_text(encoding="utf-8")
    with (tmp_path / "found/detections.csv").open(newline="", encoding="utf-8") as lines:
        assert len(list(csv.DictReader(lines))) == len(results)
    assert set(os.listdir(tmp_path / "run/pictures")) == {f"{stem}.jpg" for stem in STEMS}
    assert (tmp_path / "run/curves.png").is_file()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_the_console_escapes_characters_that_its_encoding_lacks(encoding: str, tmp_path: Path):
    tool = tmp_path / "tool.py"
    body = "print(NAME)\nshow([NAME], [[NAME]], NAME)\nlog.warning(NAME)\nraise UserError(NAME)"
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    tool.write_text(
        "import logging\nfrom detector.core.command import run\nfrom detector.core.errors import UserError\n"
        "from detector.core.tables import show\nlog = logging.getLogger()\nNAME = '图 caf\\udce9'\n\n"
        f"def main():\n{lines}\n\nrun(main)\n",
        **WRITE_TEXT,
    )
    environment = os.environ | {"PYTHONPATH": str(REPO), "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, tool], env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    (done.stdout + done.stderr).decode(encoding)
    assert done.stderr.splitlines()[-1].startswith(b"error: ")
    assert (b"\\u56fe" if encoding != "utf-8" else "图".encode()) in done.stdout
