"""The command `export`: an ONNX file with the results of `Detector.predict`, and an exporter of a user."""

import json
import logging
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from tiny import tiny_trainer
from tiny_checkpoint import save_tiny_checkpoint
from tools_run import run_tool

from detector.deploy.export import EXPORTERS
from detector.deploy.predict import Detector
from detector.engine.checkpoint import load_checkpoint, save_checkpoint

OUTSIDE = """
import json

import numpy as np
import torch

from detector.deploy.export import EXPORTERS, Exporter


@EXPORTERS.register("numpy_weights")
class NumpyWeights(Exporter):
    suffix = ".npz"
    requires = ("numpy",)

    def write(self, graph, path, metadata):
        with torch.no_grad():
            results = dict(zip(graph.outputs, graph(*graph.example()), strict=True))
        with path.open("wb") as file:
            np.savez(file, metadata=json.dumps(metadata), boxes=results["boxes"].numpy(), **graph.model.state_dict())
"""


@pytest.mark.slow
def test_a_trained_weight_average_runs_in_onnxruntime(
    tmp_path: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
):
    tiny_trainer(tmp_path, "train.epochs=1", "train.ema_decay=0.9", "model.head.prior=0.2").train()
    checkpoint = tmp_path / "checkpoints/last.pt"
    capfd.readouterr(), caplog.clear()
    options = ("--nms", "--size", 64, 96, "evaluation.score_threshold=0.1")
    with caplog.at_level(logging.INFO):
        assert run_tool("export", "--checkpoint", checkpoint, *options) == 0
    (record,) = (record for record in caplog.records if record.levelno >= logging.INFO)
    assert record.args == (checkpoint.with_suffix(".onnx"), 6, 64, 96) and capfd.readouterr() == ("", "")

    session = onnxruntime.InferenceSession(tmp_path / "checkpoints/last.onnx")
    shapes = {"images": ["batch", 3, 64, 96], "sizes": ["batch", 2]}
    assert {given.name: given.shape for given in session.get_inputs()} == shapes
    metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    detector = Detector.load(checkpoint)
    assert tuple(metadata["class_names"]) == detector.class_names and metadata["score_threshold"] == 0.1
    photo = cv2.GaussianBlur(np.random.default_rng(0).integers(256, size=(90, 120, 3), dtype=np.uint8), (0, 0), 3)
    canvas = np.empty((64, 96, 3), np.uint8)
    canvas[:] = metadata["padding_colour"]
    canvas[:64, :85] = cv2.resize(photo, (85, 64), interpolation=cv2.INTER_AREA)
    inputs = {"images": canvas.transpose(2, 0, 1)[None], "sizes": np.array([[64, 85]])}
    boxes, scores, labels = (torch.from_numpy(x[0]) for x in session.run(None, inputs))

    (expected,) = detector.predict([photo], score_threshold=0.1)
    n = len(expected.labels)
    assert n > 0 and torch.equal(labels[:n], expected.labels) and (labels[n:] == -1).all()
    torch.testing.assert_close(scores[:n], expected.scores, rtol=0, atol=1e-4)
    scale = torch.tensor([120 / 85, 90 / 64] * 2)
    torch.testing.assert_close(boxes[:n] * scale, expected.boxes, rtol=0, atol=1e-2)


def test_a_missing_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert run_tool("export", "--checkpoint", tmp_path / "gone.pt") == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {tmp_path / 'gone.pt'}: ") and errors.count("\n") == 1


@pytest.mark.parametrize("is_in_checkpoint", [True, False])
def test_an_exporter_of_a_user(is_in_checkpoint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / "outside_exporter.py").write_text(OUTSIDE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "outside_exporter", raising=False)
    monkeypatch.setattr(EXPORTERS, "_entries", dict(EXPORTERS._entries))
    checkpoint, out = save_tiny_checkpoint(tmp_path), tmp_path / "a.npz"
    options = ["--checkpoint", checkpoint, "--out", out, "--nms", "--size", 64, 96]
    assert run_tool("export", *options) == 2  # the module is not imported
    assert capsys.readouterr().err.count("\n") == 1 and not out.exists()

    contents = load_checkpoint(checkpoint)
    if is_in_checkpoint:
        config = yaml.safe_load(contents["config"]) | {"imports": ["outside_exporter"]}
        save_checkpoint(checkpoint, contents | {"config": yaml.safe_dump(config)})
    else:
        options.append("imports=[outside_exporter]")
    assert run_tool("export", *options) == 0
    with np.load(out) as file:
        assert json.loads(str(file["metadata"]))["image_size"] == [64, 96] and file["boxes"].shape == (2, 100, 4)
        for name, weight in contents["model"].items():
            np.testing.assert_array_equal(file[name], weight.numpy())
