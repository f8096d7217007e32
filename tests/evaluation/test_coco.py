import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.evaluation.coco import coco_metrics, to_coco_results
from detector.structures import Detections

KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
BACKENDS = ["hotcoco", "pycocotools"]


def one_object(box: list[float], **values: Any) -> dict[str, Any]:
    """One 100x100 image, two classes with ids 5 and 2, one object of the first."""
    annotation = {"id": 0, "image_id": 3, "category_id": 5, "bbox": box, "area": box[2] * box[3], "iscrowd": 0} | values
    return {
        "images": [{"id": 3, "file_name": "a.jpg", "width": 100, "height": 100}],
        "annotations": [annotation],
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}],
    }


def detection(box: list[float], score: float = 0.9, category_id: int = 5) -> dict[str, Any]:
    return {"image_id": 3, "category_id": category_id, "bbox": box, "score": score}


def random_set(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Crowds, images with nothing, classes with nothing, equal scores, and more detections an image than counted."""
    rng = np.random.default_rng(seed)
    num_images, category_ids = int(rng.integers(1, 8)), [7, 2, 40, 90][: rng.integers(1, 5)]
    images = [{"id": int(i) * 3 + 1, "width": 300, "height": 200} for i in rng.permutation(num_images)]
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in images:
        for _ in range(rng.integers(0, 12)):
            box = [*rng.uniform(0, 100, 2), *np.exp(rng.uniform(1, 5, 2))]
            area = box[2] * box[3] * rng.uniform(0.5, 1)
            category_id = int(rng.choice(category_ids[:3]))  # a fourth class is never annotated
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image["id"],
                    "category_id": category_id,
                    "bbox": list(map(float, box)),
                    "area": float(area),
                    "iscrowd": int(rng.random() < 0.2),
                }
            )
            for _ in range(rng.integers(0, 25 if seed % 5 == 0 else 4)):
                near = np.array(box) + rng.normal(0, 0.08, 4) * np.tile(box[2:], 2)
                near[2:] = np.maximum(near[2:], 1)
                detections.append(
                    {
                        "image_id": image["id"],
                        "category_id": category_id if rng.random() < 0.8 else int(rng.choice(category_ids)),
                        "bbox": list(map(float, near)),
                        "score": float(np.round(rng.random(), 1)),
                    }
                )
    categories = [{"id": i, "name": f"class {i}"} for i in category_ids]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def assert_identical(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """To the last digit, NaN in the same places."""
    assert json.dumps(ours) == json.dumps(theirs)


def pycocotools_summary(ground_truth: dict[str, Any], detections: list[dict[str, Any]], tmp_path: Path) -> np.ndarray:
    """The twelve numbers that the original prints, through its own files and summary."""
    ground_truth = copy.deepcopy(ground_truth)
    for number, annotation in enumerate(ground_truth["annotations"], 1):
        annotation["id"] = number
    (tmp_path / "ground_truth.json").write_text(json.dumps(ground_truth | {"info": {}}))
    (tmp_path / "results.json").write_text(json.dumps(detections))
    index = COCO(tmp_path / "ground_truth.json")
    evaluation = COCOeval(index, index.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return np.where(evaluation.stats == -1, np.nan, evaluation.stats)


@pytest.mark.parametrize(("seed", "limit"), [(s, 100) for s in range(60)] + [(s, 20) for s in range(0, 60, 5)])
def test_backends_agree_to_the_last_digit_on_random_sets(seed: int, limit: int):
    ground_truth, detections = random_set(seed)
    hot, py = (coco_metrics(ground_truth, detections, backend, limit) for backend in BACKENDS)
    assert_identical(hot, py)


def test_the_random_sets_hold_every_difficulty():
    sets = [random_set(seed) for seed in range(60)]
    assert any(a["iscrowd"] for truth, _ in sets for a in truth["annotations"])
    assert any(len({a["image_id"] for a in truth["annotations"]}) < len(truth["images"]) for truth, _ in sets)
    assert any(len({a["category_id"] for a in truth["annotations"]}) < len(truth["categories"]) for truth, _ in sets)
    assert any(len({d["score"] for d in found}) < len(found) for _, found in sets)
    per_image = [sum(d["image_id"] == image["id"] for d in found) for truth, found in sets for image in truth["images"]]
    assert max(per_image) > 100
    values = [coco_metrics(*pair)["AP"] for pair in sets]
    assert np.nanmin(values) < 0.3 and np.nanmax(values) > 0.3


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_the_original_summary(seed: int, tmp_path: Path):
    ground_truth, detections = random_set(seed + 100)
    metrics = coco_metrics(ground_truth, detections)
    np.testing.assert_array_equal(
        [metrics[key] for key in KEYS], pycocotools_summary(ground_truth, detections, tmp_path)
    )


def test_real_annotations(shared_data: Path, tmp_path: Path):
    ground_truth = json.loads((shared_data / "coco_tiny/annotations/instances_val2017.json").read_text())
    rng = np.random.default_rng(0)
    detections = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"]
            if rng.random() < 0.9
            else int(rng.choice(ground_truth["categories"])["id"]),
            "bbox": (np.array(a["bbox"]) * rng.uniform(0.9, 1.1, 4)).tolist(),
            "score": float(rng.random()),
        }
        for a in ground_truth["annotations"]
    ]
    hot, py = (coco_metrics(ground_truth, detections, backend) for backend in BACKENDS)
    assert_identical(hot, py)
    np.testing.assert_array_equal([hot[key] for key in KEYS], pycocotools_summary(ground_truth, detections, tmp_path))
    assert 0.2 < hot["AP"] < 0.9 and len(hot["per_class"]) == 80
    assert list(hot) == [*KEYS, "per_class"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str):
    """A detection shifted by a fifth of the width has IoU 0.8 / 1.2 = 2/3: it counts at 0.5, 0.55, 0.6, 0.65 of ten."""
    ground_truth = one_object([10.0, 10, 50, 50])  # medium: 2500 square pixels
    metrics = coco_metrics(ground_truth, [detection([20.0, 10, 50, 50])], backend)
    expected = {"AP": 0.4, "AP50": 1, "AP75": 0, "APm": 0.4, "AR1": 0.4, "AR10": 0.4, "AR100": 0.4, "ARm": 0.4}
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, rel=1e-12)
    assert all(math.isnan(metrics[key]) for key in ("APs", "APl", "ARs", "ARl"))
    assert metrics["per_class"]["dog"] == pytest.approx({"AP": 0.4, "AP50": 1}, rel=1e-12)
    assert all(map(math.isnan, metrics["per_class"]["cat"].values()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_annotation_id_of_zero_counts(backend: str):
    metrics = coco_metrics(one_object([10.0, 10, 50, 50]), [detection([10.0, 10, 50, 50])], backend)
    assert metrics["AP"] == pytest.approx(1, rel=1e-12) and metrics["AR1"] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_detections_give_zero_and_no_ground_truth_gives_nan(backend: str):
    ground_truth = one_object([10.0, 10, 50, 50])
    metrics = coco_metrics(ground_truth, [], backend)
    assert {key: metrics[key] for key in ("AP", "AP50", "AP75", "APm", "AR1", "AR10", "AR100", "ARm")} == dict.fromkeys(
        ("AP", "AP50", "AP75", "APm", "AR1", "AR10", "AR100", "ARm"), 0.0
    )
    for nothing in ([], [one_object([1.0, 1, 9, 9], iscrowd=1)["annotations"][0]]):
        for found in ([], [detection([1.0, 1, 9, 9])]):
            metrics = coco_metrics(ground_truth | {"annotations": nothing}, found, backend)
            assert all(math.isnan(metrics[key]) for key in KEYS)
            assert all(math.isnan(value) for scores in metrics["per_class"].values() for value in scores.values())
    no_images = {"images": [], "annotations": [], "categories": ground_truth["categories"]}
    assert math.isnan(coco_metrics(no_images, [], backend)["AP"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_max_detections_limits_every_metric_but_the_first_two_recalls(backend: str):
    """The one right box comes after 149 better-scored wrong ones of its class: rank 150."""
    ground_truth = one_object([10.0, 10, 50, 50])
    wrong = [detection([80.0, 80, 5, 5], score=0.9 - index * 1e-3) for index in range(149)]
    found = [*wrong, detection([10.0, 10, 50, 50], score=0.1)]
    assert coco_metrics(ground_truth, found, backend)["AR100"] == 0
    metrics = coco_metrics(ground_truth, found, backend, max_detections=150)
    assert "AR100" not in metrics and (metrics["AR10"], metrics["AR150"]) == (0, 1)
    assert metrics["AP"] == pytest.approx(1 / 150, rel=1e-12)
    with pytest.raises(ValueError, match="max_detections is 10"):
        coco_metrics(ground_truth, found, backend, max_detections=10)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_detections_that_are_not_finite_or_of_nothing_known_are_refused(bad: float):
    ground_truth = one_object([10.0, 10, 50, 50])
    for found in (detection([10.0, 10, 50, bad]), detection([10.0, 10, 50, 50], score=bad)):
        with pytest.raises(ValueError, match="not finite"):
            coco_metrics(ground_truth, [found])
    for found in (detection([10.0, 10, 50, 50], category_id=9), detection([1.0, 1, 5, 5]) | {"image_id": 4}):
        with pytest.raises(ValueError, match="ground truth lacks"):
            coco_metrics(ground_truth, [found])
    with pytest.raises(ValueError, match="no backend 'cold'"):
        coco_metrics(ground_truth, [], "cold")


@pytest.mark.parametrize("backend", BACKENDS)
def test_silent_and_without_a_trace_in_the_inputs(backend: str, capfd: pytest.CaptureFixture[str]):
    ground_truth, detections = random_set(1)
    before = copy.deepcopy((ground_truth, detections))
    coco_metrics(ground_truth, detections, backend)
    coco_metrics(ground_truth, detections, backend, max_detections=20)
    assert (ground_truth, detections) == before
    assert capfd.readouterr() == ("", "")


def test_to_coco_results():
    boxes = torch.tensor([[0.1, 2.0, 10.7, 5.0], [1.0, 1.0, 3.0, 4.0]])
    detections = Detections(boxes, torch.tensor([0.3, 0.2]), torch.tensor([1, 0]))
    results = to_coco_results(42, detections, (90, 7))
    x1, x2, score = np.float32(0.1), np.float32(10.7), np.float32(0.3)
    assert results == [
        {
            "image_id": 42,
            "category_id": 7,
            "bbox": [float(x1), 2.0, float(x2) - float(x1), 3.0],
            "score": float(score),
        },
        {"image_id": 42, "category_id": 90, "bbox": [1.0, 1.0, 2.0, 3.0], "score": float(np.float32(0.2))},
    ]
    assert json.loads(json.dumps(results)) == results
    assert boxes[0, 2] == np.float32(10.7)  # the detections keep their boxes
    assert to_coco_results(1, Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long()), (1,)) == []
    double = Detections(boxes.double(), detections.scores, detections.labels)
    to_coco_results(1, double, (90, 7))
    assert double.boxes[0, 2] == np.float32(10.7)
