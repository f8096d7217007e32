"""The examples of detector/README.md train, evaluate and export from files outside the package."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from guides import CONFIGS, EXAMPLES, write_examples
from ranks import run_command
from tiny import tiny_config

from detector.build import build_dataset
from detector.config import load_config
from detector.core.overrides import merge

RUN = """
data: {short_side: 64, num_workers: 0}
model: {levels: [3, 4], width: 16, weights: null}
train: {epochs: 1, batch_size: 2, device: cpu, precision: fp32, meter_every: 1}
"""


def joined_config() -> dict:
    """Return the YAML lines of all examples as one config."""
    values, imports = yaml.safe_load(RUN), []
    for text in CONFIGS:
        section = yaml.safe_load(text)
        imports += section.pop("imports")
        values = merge(values, section)
    return values | {"imports": imports}


def write_table(folder: Path, split: str) -> None:
    """Write a table of drawn scenes, in the format of the example."""
    dataset = build_dataset(tiny_config(folder), split)
    with (folder / f"{split}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "width", "height", "class", "x1", "y1", "x2", "y2"])
        for record in dataset.records:
            for box, label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
                writer.writerow([record.path, record.width, record.height, dataset.class_names[label], *box])


def detector(folder: Path, *arguments: str) -> None:
    """Run a command in the folder, as a user does."""
    ended = run_command(folder, *arguments)
    assert ended.code == 0, ended.errors


def test_each_kind_of_part_has_an_example_of_at_most_30_lines():
    kinds = ("loss", "backbone", "head", "assigner", "transform", "format", "exporter", "logger")
    assert EXAMPLES.keys() == {f"my_{kind}" for kind in kinds}
    for name, source in EXAMPLES.items():
        assert source.count("\n") + 1 <= 30, name  # and the line that names the file


@pytest.mark.slow
def test_the_examples_train_evaluate_and_export(tmp_path: Path):
    write_examples(tmp_path)
    for split in ("train", "val"):
        write_table(tmp_path, split)
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(joined_config()), encoding="utf-8")
    detector(tmp_path, "train", "--cfg", "./all.yaml", "--out", "run")

    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text(encoding="utf-8"))
    chosen = [config["loss"]["classification"], config["model"]["backbone"], config["model"]["head"]]
    chosen += [
        config["assigner"],
        config["data"]["transforms"][1],
        config["data"]["train"],
        config["train"]["loggers"][1],
    ]
    names = ["hinge", "plain", "squares", "best_fits", "gray", "table", "json_lines"]
    assert [part["type"] for part in chosen] == names
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 6 and all(np.isfinite(line["loss"]) and line["num_fg"] > 0 for line in steps)
    assert sum("val/AP" in line for line in lines) == 1

    checkpoint = "run/checkpoints/best.pt"
    detector(tmp_path, "evaluate", "--checkpoint", checkpoint, "--out", "evaluation")
    assert json.loads((tmp_path / "evaluation/metrics.json").read_text())["AP"] is not None
    detector(tmp_path, "probe", "--checkpoint", checkpoint, "--out", "probe")
    assert json.loads((tmp_path / "probe/probe.json").read_text())["rows"]["foreground"] > 0
    detector(tmp_path, "export", "--checkpoint", checkpoint, "--out", "weights.npz", f"imports=[{', '.join(EXAMPLES)}]")
    with np.load(tmp_path / "weights.npz") as weights:
        assert "head.class_branch.output.bias" in weights and "class_names" in json.loads(str(weights["metadata"]))


def test_the_loss_is_its_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_examples(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_loss", raising=False)
    (tmp_path / "hinge.yaml").write_text("data: {train: synthetic, val: synthetic}\n" + CONFIGS[0])
    loss = load_config(str(tmp_path / "hinge.yaml")).loss.classification.build()

    logits = torch.tensor([[4.0, -1.0], [0.5, -3.5]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2])  # the first row's class is 0, the second is background; the margin is 3
    expected = F.softplus(torch.tensor([-1.0, 0.5])).sum() / 1  # right by 4 and 3.5: not counted
    assert loss(logits, labels, 1).item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, 1), logits)
