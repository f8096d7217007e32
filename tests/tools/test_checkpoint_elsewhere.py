"""A checkpoint on another machine, without the GPU of the training and without the modules of `imports`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_checkpoint import save_tiny_checkpoint
from tools_run import run_tool

from detector import Detector
from detector.data.images import write_image
from detector.engine.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    write_image(tmp_path / "a.png", pixels)
    return tmp_path / "a.png"


def trained_with(plain: Path, folder: Path, **parts: dict) -> Path:
    """Save the checkpoint with these parts in its config, as if the module `not_installed` had registered them."""
    contents = load_checkpoint(plain)
    values = yaml.safe_load(contents["config"]) | {"imports": ["not_installed"]}
    for key, spec in parts.items():
        *sections, last = key.split("__")
        parent = values
        for section in sections:
            parent = parent[section]
        parent[last] = spec
    path = folder / "checkpoints/best.pt"
    save_checkpoint(path, contents | {"config": yaml.safe_dump(values)})
    return path


@pytest.mark.slow
def test_inference_does_not_need_the_parts_of_the_training(plain: Path, photo: Path, tmp_path: Path, capsys):
    path = trained_with(
        plain,
        tmp_path,
        loss__classification={"type": "mine", "gamma": 3, "names": ["a", None]},
        loss__box={"type": "mine"},
        anchor_sampler={"type": "mine"},
        data__sampler={"type": "mine"},
    )
    (actual,), (expected,) = (Detector.load(p).predict([photo], score_threshold=0.6) for p in (path, plain))
    assert len(actual.boxes) and torch.equal(actual.boxes, expected.boxes)
    assert torch.equal(actual.scores, expected.scores)
    part = Detector.load(path).config.loss.classification
    assert part.to_dict() == {"type": "mine", "gamma": 3, "names": ["a", None]}
    assert run_tool("infer", "--checkpoint", path, photo, "--out", tmp_path / "out", "--score", 0.6) == 0
    assert len(json.loads((tmp_path / "out/detections.json").read_text(encoding="utf-8"))) == len(expected.boxes)
    assert run_tool("export", "--checkpoint", path, "--out", tmp_path / "a.pt2") == 0
    assert run_tool("evaluate", "--checkpoint", path) == 0
    assert (tmp_path / "evaluation_val/metrics.json").is_file()
    capsys.readouterr()
    assert run_tool("probe", "--checkpoint", path) == 2  # a probe needs the losses
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and "not_installed" in errors
    # with losses of the library it succeeds
    assert run_tool("probe", "--checkpoint", path, "loss.classification=focal", "imports=[]", "loss.box=giou",
                    "anchor_sampler=all", "data.sampler=uniform") == 0  # fmt: skip


@pytest.mark.parametrize(
    ("key", "spec"),
    [("assigner", {"type": "mine"}), ("data__val", {"type": "mine", "root": "a"}), ("data__train", {"type": "mine"})],
)
def test_the_error_for_a_part_that_an_evaluation_needs_names_the_module(
    key: str, spec: dict, plain: Path, photo: Path, tmp_path, capsys
):
    path = trained_with(plain, tmp_path, **{key: spec})
    Detector.load(path).predict([photo])
    is_needed = key != "data__train"  # for the evaluation of data.val
    assert run_tool("evaluate", "--checkpoint", path) == (2 if is_needed else 0)
    assert not is_needed or "not_installed" in capsys.readouterr().err
    assert run_tool("evaluate", "--checkpoint", path, "--split", "train") == (2 if key != "data__val" else 0)


def test_known_keys_are_checked_also_in_inference(plain: Path, photo: Path, tmp_path: Path, capsys):
    for override in ("loss.classification.gama=1", "evaluation.nms_iuo=1", "los=1"):
        assert run_tool("export", "--checkpoint", plain, "--out", tmp_path / "a.pt2", override) == 2
        assert override.partition("=")[0] in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_inference_does_not_need_the_gpu_of_the_training(photo: Path, tmp_path: Path, capsys):
    path = save_tiny_checkpoint(tmp_path, "train.device=cuda", "train.precision=fp16")
    assert run_tool("infer", "--checkpoint", path, photo, "--out", tmp_path / "out") == 0
    assert run_tool("evaluate", "--checkpoint", path, "--out", tmp_path / "evaluation") == 0
    assert json.loads((tmp_path / "evaluation/metrics.json").read_bytes())["settings"]["precision"] == "float32"
    assert run_tool("probe", "--checkpoint", path, "--out", tmp_path / "probe") == 0
    assert run_tool("export", "--checkpoint", path, "--out", tmp_path / "a.pt2") == 0
    for tool in ("infer", "evaluate", "probe"):
        capsys.readouterr()
        inputs = [photo] if tool == "infer" else []
        assert run_tool(tool, "--checkpoint", path, *inputs, "--device", "cuda", "--out", tmp_path / "none") == 2
        assert capsys.readouterr().err.startswith("error: device: ") and not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_training_on_a_missing_gpu_is_refused(tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert run_tool("train", "--cfg", "retina_focal.yaml", "--out", out, "train.device=cuda") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: train.device: ") and errors.count("\n") == 1 and not out.exists()
