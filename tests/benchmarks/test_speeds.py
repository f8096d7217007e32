"""Each benchmark of a speed runs and measures what it says; how fast, is no matter here."""

import pytest
import torch

from detector.benchmarks import census, evaluation, inference, loader, training


def test_scoring_the_same_numbers_by_both_tools():
    result = evaluation.run(images=40, detections=20, rounds=1)
    assert [row["name"] for row in result["rows"]] == ["hotcoco", "pycocotools"]
    assert result["detections"] == 800 and 200 < result["boxes"] < 400
    assert result["largest_difference"] < 1e-9
    truth, found = evaluation.draw(40, 20)
    assert 0.05 < evaluation.coco_metrics(truth, found)["AP50"] < 0.9  # there is something to score


def test_a_census_of_drawn_annotations():
    result = census.run(images=30, cfg="coco_focal_r50_1x.yaml")
    (row,) = result["rows"]
    assert 100 < result["boxes"] < 500 and 100 < row["ratio"] < 100_000
    assert row["images_s"] == pytest.approx(30 / row["seconds"])
    for record in census.draw(200).records:
        assert (record.boxes >= 0).all() and (record.boxes[:, [2, 3]] <= (record.width, record.height)).all()
        assert (record.area >= census.SIDES[0] ** 2 - 1).all()


@pytest.mark.slow
def test_inference_and_training_against_torchvision():
    for module, more in ((inference, {}), (training, {"with_compile": False})):
        rows = module.run(side=64, batch_size=1, rounds=1, precision="fp32", **more)["rows"]
        assert rows[0]["name"] == "ours" and rows[0]["times_subject"] == 1
        assert sum("torchvision" in row["name"] for row in rows) >= 2
        assert all(row["images_s"] == pytest.approx(1 / row["median_s"]) for row in rows)
        if module is inference and not torch.cuda.is_available():
            assert any("onnxruntime" in row["name"] for row in rows)
    assert all(0 < row["outside_convolutions"] < 1 for row in rows)


@pytest.mark.slow
def test_the_loader_against_the_step():
    overrides = ["data.train.num_images=24", "data.val.num_images=2", "train.device=cpu"]
    result = loader.run(cfg="retina_focal.yaml", overrides=overrides, workers=[0, 1], steps=4, rounds=1)
    step, *others = result["rows"]
    assert step["times_step"] == 1 and len(others) == 4
    for row in others:
        assert row["times_step"] == pytest.approx(row["images_s"] / step["images_s"])
