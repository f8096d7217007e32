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

from detector.core.errors import UserError
from detector.core.structures import Detections
from detector.data.formats.coco import CocoDataset
from detector.evaluation.coco import coco_metrics
from detector.evaluation.coco_results import to_coco_results
from detector.evaluation.metrics import Metrics

KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
BACKENDS = ["hotcoco", "pycocotools"]


def one_object(box: list[float], **values: Any) -> dict[str, Any]:
    """Return a 100x100 image, two classes with ids 5 and 2, and an object of the first class."""
    annotation = {"id": 0, "image_id": 3, "category_id": 5, "bbox": box, "area": box[2] * box[3], "iscrowd": 0} | values
    return {
        "images": [{"id": 3, "file_name": "a.jpg", "width": 100, "height": 100}],
        "annotations": [annotation],
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}],
    }


def detection(box: list[float], score: float = 0.9, category_id: int = 5) -> dict[str, Any]:
    return {"image_id": 3, "category_id": category_id, "bbox": box, "score": score}


def random_set(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return ground truth and detections with the difficult cases.

    The cases are crowds, images and classes without objects, equal scores, and more detections in an image than count.
    There is at least one detection, because pycocotools cannot read a file without detections.
    """
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
                    "id": len(annotations) + 1,  # pycocotools does not count a match with id 0
                    "image_id": image["id"],
                    "category_id": category_id,
                    "bbox": list(map(float, box)),
                    "area": float(area),
                    "iscrowd": int(rng.random() < 0.2),
                }
            )
            for _ in range(rng.integers(0, 25 if seed % 20 == 0 else 4)):
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
    detections.append({"image_id": images[0]["id"], "category_id": 7, "bbox": [0.0, 0, 9, 9], "score": 0.5})
    categories = [{"id": i, "name": f"class {i}"} for i in category_ids]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def original(ground_truth: Path, results: Path, limit: int = 100) -> dict[str, Any]:
    """Return the numbers of pycocotools, called as in its documentation, from file to file."""
    index = COCO(ground_truth)
    evaluation = COCOeval(index, index.loadRes(str(results)), "bbox")
    evaluation.params.maxDets = [1, 10, limit]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    numbers = dict(zip([*KEYS[:8], f"AR{limit}", *KEYS[9:]], evaluation.stats, strict=True))
    if limit != 100:  # pycocotools still looks for the limit 100, and returns -1
        assert numbers["AP"] == -1
        numbers["AP"] = mean(precision)
    numbers = {name: math.nan if value == -1 else float(value) for name, value in numbers.items()}
    names = [index.cats[i]["name"] for i in sorted(index.cats)]
    per_class = {n: {"AP": mean(precision[:, :, k]), "AP50": mean(precision[0, :, k])} for k, n in enumerate(names)}
    return numbers | {"per_class": per_class}


def mean(values: np.ndarray) -> float:
    return float(np.mean(values[values > -1])) if (values > -1).any() else math.nan


def assert_identical(ours: Metrics, theirs: dict[str, Any]) -> None:
    """Compare to the last digit, with NaN at the same names."""
    assert json.dumps(ours.to_json()) == json.dumps(theirs | {"settings": {}})


@pytest.mark.parametrize("first", range(0, 200, 25))
def test_200_random_sets_equal_the_original_to_the_last_digit(first: int, tmp_path: Path):
    for seed in range(first, first + 25):
        ground_truth, detections = random_set(seed)
        (tmp_path / "truth.json").write_text(json.dumps(ground_truth | {"info": {}}))
        (tmp_path / "results.json").write_text(json.dumps(detections))
        for limit in (100, 20) if seed % 20 == 0 else (100,):
            theirs = original(tmp_path / "truth.json", tmp_path / "results.json", limit)
            for backend in BACKENDS:
                assert_identical(coco_metrics(ground_truth, detections, backend, limit), theirs)


def test_the_random_sets_have_every_difficult_case():
    sets = [random_set(seed) for seed in range(60)]
    assert any(a["iscrowd"] for truth, _ in sets for a in truth["annotations"])
    assert any(len({a["image_id"] for a in truth["annotations"]}) < len(truth["images"]) for truth, _ in sets)
    assert any(len({a["category_id"] for a in truth["annotations"]}) < len(truth["categories"]) for truth, _ in sets)
    assert any(len({d["score"] for d in results}) < len(results) for _, results in sets)
    per_image = [
        sum(d["image_id"] == image["id"] for d in results) for truth, results in sets for image in truth["images"]
    ]
    assert max(per_image) > 100
    values = [coco_metrics(*pair)["AP"] for pair in sets]
    assert np.nanmin(values) < 0.3 and np.nanmax(values) > 0.3


def mistaken(ground_truth: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Return detections with every kind of error, many with equal scores.

    The errors are displaced boxes, wrong classes, duplicates, misses, background and parts of crowds.
    """
    rng = np.random.default_rng(seed)
    category_ids = [category["id"] for category in ground_truth["categories"]]
    detections = []

    def add(image_id: int, category_id: int, box: Any) -> None:
        score = float(np.round(rng.random(), 2))
        detections.append({"image_id": image_id, "category_id": category_id, "bbox": box.tolist(), "score": score})

    for annotation in ground_truth["annotations"]:
        box, category_id = np.array(annotation["bbox"], dtype=float), annotation["category_id"]
        for _ in range(4 if annotation["iscrowd"] else rng.choice([0, 1, 1, 1, 2])):
            spread = rng.choice([0, 0.03, 0.1, 0.4])
            corner, sides = box[:2] + spread * rng.normal(size=2) * box[2:], box[2:] * rng.uniform(1 - spread, 1, 2)
            near = np.concatenate((corner, sides * (0.3 if annotation["iscrowd"] else 1)))
            add(annotation["image_id"], int(rng.choice(category_ids)) if rng.random() < 0.1 else category_id, near)
    for image in ground_truth["images"]:
        for _ in range(rng.integers(3)):
            box = rng.uniform(0, 0.5, 4) * np.tile([image["width"], image["height"]], 2)
            add(image["id"], int(rng.choice(category_ids)), box)
    return detections


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_annotations_equal_the_original_to_the_last_digit(split: str, shared_data: Path, tmp_path: Path):
    """The ground truth is the file's content, and our data set's version of it. Both include crowds."""
    coco = shared_data / "coco_tiny"
    file = coco / f"annotations/instances_{split}.json"
    raw = json.loads(file.read_text())
    assert sum(annotation["iscrowd"] for annotation in raw["annotations"]) >= 6
    detections = mistaken(raw, 0)
    (tmp_path / "detections.json").write_text(json.dumps(detections))
    theirs = original(file, tmp_path / "detections.json")
    ours = CocoDataset(images=coco / split, annotations=file).ground_truth()
    for backend in BACKENDS:
        assert_identical(coco_metrics(raw, detections, backend), theirs)
        assert_identical(coco_metrics(ours, detections, backend), theirs)
    assert 0.2 < theirs["AP"] < 0.9 and len(theirs["per_class"]) == 80
    assert list(coco_metrics(raw, detections).to_json()) == [*KEYS, "per_class", "settings"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_detections_in_real_crowds_do_not_count(backend: str, shared_data: Path):
    coco = shared_data / "coco_tiny"
    dataset = CocoDataset(images=coco / "val2017", annotations=coco / "annotations/instances_val2017.json")
    truth = dataset.ground_truth()
    crowds = [annotation for annotation in truth["annotations"] if annotation["iscrowd"]]
    objects = [annotation for annotation in truth["annotations"] if not annotation["iscrowd"]]
    assert len(crowds) == 11
    keys = ("image_id", "category_id", "bbox")
    correct = [{key: annotation[key] for key in keys} | {"score": 0.5} for annotation in objects]
    in_crowds = []
    for crowd in crowds:
        x, y, w, h = crowd["bbox"]
        slits = [[x + w * i / 5, y, w / 50, h] for i in range(5)]  # too thin for any object
        in_crowds += [{key: crowd[key] for key in keys} | {"bbox": slit, "score": 0.9} for slit in slits]
    assert coco_metrics(truth, correct + in_crowds, backend)["AP"] == pytest.approx(1, rel=1e-12)
    without = coco_metrics(truth | {"annotations": objects}, correct + in_crowds, backend)
    assert without["AP"] < 0.999  # without the crowds the detections count


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_size_of_an_object_is_the_area_in_its_annotation(backend: str):
    """A medium box of 50 x 50 pixels with a small segment counts as small, as COCO defines it."""
    metrics = coco_metrics(one_object([10.0, 10, 50, 50], area=900.0), [detection([10.0, 10, 50, 50])], backend)
    assert metrics["APs"] == pytest.approx(1, rel=1e-12) and math.isnan(metrics["APm"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str):
    """A detection shifted by a fifth of the width has IoU 2/3. It is correct at 0.5, 0.55, 0.6 and 0.65 of ten."""
    ground_truth = one_object([10.0, 10, 50, 50])  # medium: 2500 square pixels
    metrics = coco_metrics(ground_truth, [detection([20.0, 10, 50, 50])], backend)
    expected = {"AP": 0.4, "AP50": 1, "AP75": 0, "APm": 0.4, "AR1": 0.4, "AR10": 0.4, "AR100": 0.4, "ARm": 0.4}
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, rel=1e-12)
    assert all(math.isnan(metrics[key]) for key in ("APs", "APl", "ARs", "ARl"))
    assert metrics.per_class["dog"].to_json() == pytest.approx({"AP": 0.4, "AP50": 1}, rel=1e-12)
    assert all(map(math.isnan, metrics.per_class["cat"].to_json().values()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_annotation_ids_do_not_matter(backend: str):
    """The ids are zero, equal or missing. pycocotools would count no match for id 0 and drop equal ids."""
    boxes = [10.0, 10, 50, 50], [70.0, 70, 20, 20]
    detections = [detection(box) for box in boxes]
    ids: list[dict[str, int]]
    for ids in ([{"id": 0}, {"id": 1}], [{"id": 5}, {"id": 5}], [{}, {}]):
        annotations = [one_object(box)["annotations"][0] for box in boxes]
        annotations = [{k: v for k, v in a.items() if k != "id"} | i for a, i in zip(annotations, ids, strict=True)]
        metrics = coco_metrics(one_object(boxes[0]) | {"annotations": annotations}, detections, backend)
        assert metrics["AP"] == pytest.approx(1, rel=1e-12) and metrics["AR10"] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_detections_give_zero_and_no_ground_truth_gives_nan(backend: str):
    ground_truth = one_object([10.0, 10, 50, 50])
    metrics = coco_metrics(ground_truth, [], backend)
    assert {key: metrics[key] for key in ("AP", "AP50", "AP75", "APm", "AR1", "AR10", "AR100", "ARm")} == dict.fromkeys(
        ("AP", "AP50", "AP75", "APm", "AR1", "AR10", "AR100", "ARm"), 0.0
    )
    for nothing in ([], [one_object([1.0, 1, 9, 9], iscrowd=1)["annotations"][0]]):
        for detections in ([], [detection([1.0, 1, 9, 9])]):
            metrics = coco_metrics(ground_truth | {"annotations": nothing}, detections, backend)
            assert all(math.isnan(metrics[key]) for key in KEYS)
            assert all(math.isnan(scores.AP) and math.isnan(scores.AP50) for scores in metrics.per_class.values())
    no_images = {"images": [], "annotations": [], "categories": ground_truth["categories"]}
    assert math.isnan(coco_metrics(no_images, [], backend)["AP"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_max_detections_limits_every_metric_except_ar1_and_ar10(backend: str):
    """The correct box has rank 150, after 149 wrong boxes of its class with higher scores."""
    ground_truth = one_object([10.0, 10, 50, 50])
    wrong = [detection([80.0, 80, 5, 5], score=0.9 - index * 1e-3) for index in range(149)]
    detections = [*wrong, detection([10.0, 10, 50, 50], score=0.1)]
    assert coco_metrics(ground_truth, detections, backend)["AR100"] == 0
    metrics = coco_metrics(ground_truth, detections, backend, max_detections=150)
    assert "AR100" not in metrics.numbers and (metrics["AR10"], metrics["AR150"]) == (0, 1)
    assert metrics["AP"] == pytest.approx(1 / 150, rel=1e-12)
    with pytest.raises(ValueError, match=r"max_detections\b.*\b10\b"):
        coco_metrics(ground_truth, detections, backend, max_detections=10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "bad",
    [
        *(detection([10.0, 10, 50, value]) for value in (math.nan, math.inf, -1)),
        *(detection([10.0, 10, value, 50]) for value in (math.nan, math.inf, -1)),
        *(detection([value, 10, 50, 50]) for value in (math.nan, -math.inf)),
        *(detection([10.0, 10, 50, 50], score=value) for value in (math.nan, math.inf)),
    ],
    ids=str,
)
def test_a_detection_that_is_not_finite_or_has_a_negative_side_is_refused(bad: dict[str, Any], backend: str):
    good = detection([10.0, 10, 50, 50])
    with pytest.raises(UserError) as error:
        coco_metrics(one_object([10.0, 10, 50, 50]), [good, bad], backend)
    problem = error.value.problem
    assert problem.startswith("image 3: ") and str(bad["bbox"]) in problem and str(bad["score"]) in problem
    assert "train.precision" in error.value.remedy and "\n" not in str(error.value)
    flat = detection([99.0, 10, 0, 50])  # the result of clipping a box outside the image counts as a wrong detection
    assert coco_metrics(one_object([10.0, 10, 50, 50]), [flat, good], backend)["AP"] == pytest.approx(0.5)


def test_detections_of_unknown_images_or_categories_and_unknown_backends_are_refused():
    ground_truth = one_object([10.0, 10, 50, 50])
    for unknown in (detection([10.0, 10, 50, 50], category_id=9), detection([1.0, 1, 5, 5]) | {"image_id": 4}):
        with pytest.raises(ValueError) as error:
            coco_metrics(ground_truth, [unknown])
        assert str(unknown) in str(error.value)
    with pytest.raises(ValueError, match="'cold'"):
        coco_metrics(ground_truth, [], "cold")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_metrics_print_nothing_and_do_not_change_the_inputs(backend: str, capfd: pytest.CaptureFixture[str]):
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
    assert boxes[0, 2] == np.float32(10.7)  # the boxes of the detections do not change
    assert to_coco_results(1, Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long()), (1,)) == []
    double = Detections(boxes.double(), detections.scores, detections.labels)
    to_coco_results(1, double, (90, 7))
    with pytest.raises(UserError, match="image 1: "):
        to_coco_results(1, Detections(boxes, torch.tensor([0.5, math.nan]), detections.labels), (90, 7))
    assert double.boxes[0, 2] == np.float32(10.7)
