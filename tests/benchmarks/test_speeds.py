"""Every benchmark of speed runs and has the rows that its documentation lists. The speeds themselves do not matter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detector.benchmarks import census, evaluation, inference, loader, steps, threads, training
from detector.config import config_from_text
from detector.core.machine import OPENMP, num_cores

REPO = Path(__file__).parents[2]


def test_both_evaluation_libraries_give_the_same_numbers():
    result = evaluation.run(images=40, detections=20, rounds=1)
    assert [row["name"] for row in result["rows"]] == ["hotcoco", "pycocotools"]
    assert result["detections"] == 800 and 200 < result["boxes"] < 400
    assert result["largest_difference"] < 1e-9
    truth, results = evaluation.draw(40, 20)
    assert 0.05 < evaluation.coco_metrics(truth, results)["AP50"] < 0.9  # some detections are correct, some are wrong


def test_a_census_of_random_annotations():
    result = census.run(images=30, cfg="coco_focal_r50_1x.yaml")
    (row,) = result["rows"]
    assert 100 < result["boxes"] < 500 and 100 < row["ratio"] < 100_000
    assert row["images_s"] == pytest.approx(30 / row["seconds"])
    for record in census.draw(200).records:
        assert (record.boxes >= 0).all() and (record.boxes[:, [2, 3]] <= (record.width, record.height)).all()
        assert (record.area >= census.SIDES[0] ** 2 - 1).all()


@pytest.mark.slow
def test_inference_and_training_against_torchvision(monkeypatch):
    def export_a_smaller_model(batch, config):  # to export a ResNet-50 takes most of the time
        text = "model: {backbone: resnet18, width: 32, head: {type: anchors, depth: 1}}\n"
        small = config_from_text(text + "data: {train: synthetic, val: synthetic}", "small").model
        return onnxruntime_detections(batch, config.model_copy(update={"model": small}))

    onnxruntime_detections = inference.onnxruntime_detections
    monkeypatch.setattr(inference, "onnxruntime_detections", export_a_smaller_model)
    for module, more in ((inference, {}), (training, {"with_compile": False})):
        rows = module.run(side=64, batch_size=1, rounds=1, precision="fp32", **more)["rows"]
        assert rows[0]["name"] == "ours" and rows[0]["times_subject"] == 1
        assert sum("torchvision" in row["name"] for row in rows) >= 2
        assert all(row["images_s"] == pytest.approx(1 / row["median_s"]) for row in rows)
        if module is inference and not torch.cuda.is_available():
            assert any("onnxruntime" in row["name"] for row in rows)
    for row in rows:
        parts = [row[name] for name in ("copies", "concatenations", "optimiser")]
        assert all(part > 0 for part in parts) and sum(parts) < row["outside_convolutions"] < 1


@pytest.mark.slow
def test_the_steps_of_the_variants_of_a_study(tmp_path):
    study = tmp_path / "heads.yaml"
    study.write_text(
        "config: retina_focal.yaml\nlevels: {scenes: {}}\nagainst: anchors\nvariants:\n  anchors: {}\n"
        "  points: {model: {head: points}, assigner: task_aligned}\n"
    )
    overrides = ["data.train.num_images=8", "data.val.num_images=2", "train.device=cpu", "model.width=16"]
    anchors, points = steps.run(cfg=str(study), overrides=overrides, rounds=1)["rows"]
    assert (anchors["name"], anchors["times_subject"], points["name"]) == ("anchors", 1, "points")
    for row in (anchors, points):
        assert 0 < row["assignment_share"] == row["assignment_s"] / row["median_s"] < 1


@pytest.mark.slow
def test_the_loader_against_the_step():
    overrides = ["data.train.num_images=24", "data.val.num_images=2", "train.device=cpu"]
    result = loader.run(cfg="retina_focal.yaml", overrides=overrides, workers=[0, 1], steps=4, rounds=1)
    step, *others = result["rows"]
    assert step["times_step"] == 1 and len(others) == 4
    for row in others:
        assert row["times_step"] == pytest.approx(row["images_s"] / step["images_s"])


@pytest.mark.slow
def test_a_training_starts_with_the_fastest_measured_setting(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(threads, "WAITING", {"passive": {"OMP_WAIT_POLICY": "passive"}})
    names = [f"{count} workers, {n} threads, passive" for count, n in ((0, 4), (1, 4), (1, 3), (5, 4), (5, 1))]
    assert list(threads.candidates([0, 1, 5], cores=4)) == names
    tiny = [*(f"data.{split}.num_images=4" for split in ("train", "val")), "model.width=16"]
    tiny += ["data.train.image_size=64", "data.val.image_size=64", "data.short_side=64", "data.long_side=64"]
    tiny += ["train.device=cpu", "train.batch_size=2"]
    result = threads.run(cfg="retina_focal.yaml", overrides=tiny, workers=[0], steps=1, rounds=1)
    (row,) = result["rows"]
    assert row["name"] == result["fastest"] == f"0 workers, {num_cores()} threads, passive"
    assert row["images_s"] > 0 and row["times_first"] == 1

    trained = subprocess.run(
        [sys.executable, REPO / "tools/train.py", "--cfg", "retina_focal.yaml", "--out", tmp_path / "run", *tiny]
        + ["train.epochs=1", "train.schedule=constant", "train.warmup_steps=0"],
        env={name: value for name, value in os.environ.items() if name not in OPENMP} | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert trained.returncode == 0, trained.stderr
    assert "OMP_WAIT_POLICY" in trained.stderr and "passive" in trained.stderr
    assert "num_workers: 0" in (tmp_path / "run" / "config.yaml").read_text()
