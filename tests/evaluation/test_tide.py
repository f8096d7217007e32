"""TIDE against the tidecv package, on random sets and on perturbed real annotations."""

import contextlib
import io
import warnings

import numpy as np
import pytest
from tiny import tiny_config, tiny_trainer

from detector.build import build_dataset
from detector.data.formats.coco import CocoDataset
from detector.engine.outcome import load_evaluation
from detector.evaluation.coco import coco_metrics
from detector.evaluation.tide import match, precision_curve, tide


def reference(ground_truth: dict, detections: list[dict]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the import is slow, and warns: tidecv imports seaborn and pandas
        from tidecv import TIDE, Data

    truth, results = Data("truth"), Data("results")
    for image in ground_truth["images"]:
        truth.add_image(image["id"], str(image["id"]))
        results.add_image(image["id"], str(image["id"]))
    for category in ground_truth["categories"]:
        truth.add_class(category["id"], category["name"])
    for item in ground_truth["annotations"]:
        add = truth.add_ignore_region if item["iscrowd"] else truth.add_ground_truth
        add(item["image_id"], item["category_id"], item["bbox"])
    for item in detections:
        results.add_detection(item["image_id"], item["category_id"], item["score"], item["bbox"])
    tool = TIDE()
    with contextlib.redirect_stdout(io.StringIO()):
        run = tool.evaluate(truth, results, mode=TIDE.BOX)
    errors = {kind.short_name: cost for kind, cost in run.fix_main_errors().items()}
    errors |= {kind.short_name: cost for kind, cost in run.fix_special_errors().items()}
    return {name: cost / 100 for name, cost in errors.items()} | {"AP50": run.ap / 100}


def random_set(seed: int) -> tuple[dict, list[dict]]:
    """Return objects, and detections that are correct, displaced, of a wrong class, duplicate or of background."""
    rng = np.random.default_rng(seed)
    categories = [{"id": 3 * k + 1, "name": f"c{k}"} for k in range(4)]
    images = [{"id": 10 + i, "width": 200, "height": 200} for i in range(25)]
    annotations, detections = [], []
    for image in images:
        for _ in range(rng.integers(0, 6)):
            box = [*rng.uniform(0, 150, 2), *rng.uniform(8, 60, 2)]
            annotations.append(
                {"image_id": image["id"], "category_id": categories[rng.integers(3)]["id"], "bbox": box}
                | {"iscrowd": int(rng.random() < 0.1), "area": box[2] * box[3], "id": len(annotations) + 1}
            )
            for _ in range(rng.integers(0, 4)):
                shift = rng.normal(0, rng.choice([0.02, 0.25, 0.6]), 4) * np.array([box[2], box[3], box[2], box[3]])
                moved = np.array(box) + shift
                moved[2:] = moved[2:].clip(2)
                category = annotations[-1]["category_id"] if rng.random() < 0.7 else categories[rng.integers(4)]["id"]
                detections.append({"image_id": image["id"], "category_id": category, "bbox": moved.tolist()})
        for _ in range(rng.integers(0, 3)):
            box = [*rng.uniform(0, 150, 2), *rng.uniform(8, 60, 2)]
            detections.append({"image_id": image["id"], "category_id": categories[rng.integers(4)]["id"], "bbox": box})
    for detection, rank in zip(detections, rng.permutation(len(detections)), strict=True):
        detection["score"] = (rank + 1) / (len(detections) + 1)  # without ties
    return {"images": images, "annotations": annotations, "categories": categories}, detections


@pytest.mark.parametrize("seed", range(12))
def test_random_sets_agree_with_the_package(seed):
    ground_truth, detections = random_set(seed)
    matches = match(ground_truth, detections)
    assert set(matches.error) == {-1, 0, 1, 2, 3, 4} and matches.is_missed.any(), "each type of error occurs"
    ours = tide(matches, 4)
    theirs = reference(ground_truth, detections)
    assert set(ours) == set(theirs)
    for name, cost in theirs.items():
        assert ours[name] == pytest.approx(cost, abs=1e-12), name


def test_with_equal_scores_the_gains_depend_on_the_order():
    """AP50 is equal for the same order. The gains are close, and the package's gains also change with the order."""
    changes = []
    for seed in range(4):
        ground_truth, detections = random_set(seed)
        for detection in detections:
            detection["score"] = round(detection["score"], 1)
        theirs = [reference(ground_truth, order) for order in (detections, detections[::-1])]
        for order, expected in zip((detections, detections[::-1]), theirs, strict=True):
            ours = tide(match(ground_truth, order), 4)
            assert ours["AP50"] == pytest.approx(expected["AP50"], abs=1e-12)
            assert ours == pytest.approx(expected, abs=0.12)
        changes += [abs(theirs[0][name] - theirs[1][name]) for name in theirs[0]]
    assert max(changes) > 1e-3


def test_perturbed_real_annotations_agree_with_the_package(shared_data):
    folder = shared_data / "coco_tiny"
    dataset = CocoDataset(images=folder / "val2017", annotations=folder / "annotations/instances_val2017.json")
    ground_truth = dataset.ground_truth()
    rng = np.random.default_rng(0)
    ids = [category["id"] for category in ground_truth["categories"]]
    detections = []
    for item in ground_truth["annotations"]:
        for _ in range(rng.integers(0, 3)):
            x, y, w, h = item["bbox"]
            x, y = rng.normal((x, y), 0.15 * np.array([w, h]))
            category = item["category_id"] if rng.random() < 0.8 else int(rng.choice(ids))
            box = [x, y, w * rng.uniform(0.6, 1.5), h * rng.uniform(0.6, 1.5)]
            detections.append(
                {"image_id": item["image_id"], "category_id": category, "bbox": box, "score": rng.random()}
            )
    assert any(item["iscrowd"] for item in ground_truth["annotations"]) and len(detections) > 300
    ours = tide(match(ground_truth, detections), len(ids))
    for name, cost in reference(ground_truth, detections).items():
        assert ours[name] == pytest.approx(cost, abs=1e-12), name


@pytest.mark.slow
def test_a_trained_models_detections_agree_with_the_package(tmp_path):
    """Ten seconds of training detect some objects and give every type of error."""
    recipe = ("model.head.norm=group", "train.optimizer=adamw", "train.lr=0.002", "train.clip_norm=10")
    schedule = ("train.epochs=14", "train.warmup_steps=10", "train.schedule=cosine", "train.evaluate_every=0")
    data = ("data.train.num_images=48", "data.val.num_images=24", "data.val.split=train", "train.batch_size=4")
    trainer = tiny_trainer(tmp_path, *recipe, *schedule, *data, "evaluation.score_threshold=0.02")
    trainer.train()
    dataset = build_dataset(tiny_config(tmp_path, *data), "val")
    ground_truth, (metrics, detections) = dataset.ground_truth(), load_evaluation(tmp_path)
    ours = tide(match(ground_truth, detections), len(dataset.class_names))
    assert metrics["AP50"] > 0.1 and len(detections) > 500
    assert all(ours[kind] > 0 for kind in ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"))
    for name, cost in reference(ground_truth, detections).items():
        assert ours[name] == pytest.approx(cost, abs=1e-9), name


def test_precision_curve_is_cocos():
    ground_truth, detections = random_set(3)
    detections = [detection for detection in detections if detection["category_id"] != 10]  # c3 has no objects
    matches = match(ground_truth, detections)
    metrics = coco_metrics(ground_truth, detections)
    for k in range(3):
        of_class = ~matches.is_ignored & (matches.label == k)
        curve = precision_curve(matches.score[of_class], matches.is_correct[of_class], (matches.truth == k).sum())
        assert curve.mean() == pytest.approx(metrics.per_class[f"c{k}"].AP50, abs=0.01)


def test_no_detections_and_no_objects():
    ground_truth, detections = random_set(0)
    costs = tide(match(ground_truth, []), 4)
    assert costs["AP50"] == 0 and costs["Miss"] == 0  # in TIDE a class without objects does not count
    empty = ground_truth | {"annotations": []}
    costs = tide(match(empty, detections), 4)
    assert costs["AP50"] == 0 and set(costs.values()) == {0.0}
