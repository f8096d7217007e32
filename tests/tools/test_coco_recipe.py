"""The recipes for COCO on a few real images of COCO."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def call(monkeypatch, tool, *arguments):
    monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOLS / tool), run_name="__main__")
    assert end.value.code == 0


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["coco_tal_r50_1x", "coco_ghm_r50_1x"])
def test_the_coco_recipes_run_on_real_coco_images(recipe, shared_data, tmp_path, monkeypatch):
    """The models are small and train from random weights for an epoch."""
    call(
        *(monkeypatch, "train.py", "--cfg", recipe, "--out", tmp_path),
        f"data.root={shared_data / 'coco_tiny'}",
        *("imports=[small_resnet]", "model.backbone={type: small_resnet, norm: group, trainable_stages: 5}"),
        *("model.weights=null", "model.width=32", "data.short_side=64", "data.long_side=107", "data.num_workers=0"),
        *("train.epochs=1", "train.log_every=1"),
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert len(metrics["per_class"]) == 80 and 0 <= metrics["AP"] < 0.1
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 80 // 16
    loss = float(rows[1].split(",")[rows[0].split(",").index("loss")])
    assert math.isfinite(loss) and 0 < loss < 10
    categories = {
        c["id"]
        for c in json.loads((shared_data / "coco_tiny/annotations/instances_val2017.json").read_text())["categories"]
    }
    detections = json.loads((tmp_path / "detections.json").read_text())
    assert {d["category_id"] for d in detections} <= categories and max(categories) == 90
