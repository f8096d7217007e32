import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from tools_run import run_tool

from detector.build import build_dataset
from detector.config import load_config


@pytest.mark.parametrize("target", ["coco", "voc", "yolo"])
def test_what_it_says_reads_what_it_wrote(
    target: str, shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    options = ("--cfg", "bccd_focal.yaml", f"data.root={shared_data / 'bccd'}", "--link")
    with caplog.at_level("INFO"):
        assert run_tool("convert", *options, "--to", target, "--out", tmp_path / "out") == 0
    (words,) = re.findall(r"to train on it: (.*)", caplog.text)
    converted = load_config("bccd_focal.yaml", shlex.split(words))
    source = load_config("bccd_focal.yaml", [f"data.root={shared_data / 'bccd'}"])
    for split in ("train", "val"):
        ours, expected = (build_dataset(config, split) for config in (converted, source))
        assert ours.class_names == expected.class_names
        assert ours.class_counts().tolist() == expected.class_counts().tolist()


def test_a_folder_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "notes.txt").write_text("mine")
    scenes = ("data.train.num_images=4", "data.val.num_images=4")
    assert run_tool("convert", "--cfg", "retina_focal.yaml", "--to", "coco", "--out", tmp_path, *scenes) == 2
    assert re.fullmatch(r"error: --out .*: not empty; choose a new folder\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("target", ["coco", "voc", "yolo"])
def test_what_it_changes_is_listed(target: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A moving GIF and a JPEG of another suffix, in a folder with blanks."""
    folder = tmp_path / "my set"
    folder.mkdir()
    Image.new("P", (64, 48)).save(folder / "moving.gif", save_all=True, append_images=[Image.new("P", (64, 48), 3)])
    Image.new("RGB", (64, 48)).save(folder / "phone.jfif", format="JPEG")
    images = [{"id": i, "file_name": n, "width": 64, "height": 48} for i, n in ((1, "moving.gif"), (2, "phone.jfif"))]
    annotations = [{"id": i, "image_id": i, "category_id": 1, "bbox": [2, 3, 20, 20]} for i in (1, 2)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "on"}]}
    (folder / "a.json").write_text(json.dumps(content), encoding="utf-8")
    section = f"{{type: coco, images: '{folder}', annotations: '{folder / 'a.json'}'}}"
    options = ("--cfg", "own_images.yaml", "data.split=null", f"data.train={section}", f"data.val={section}")
    with caplog.at_level("INFO"):
        assert run_tool("convert", *options, "--to", target, "--out", tmp_path / "my out") == 0
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("moving.gif" in line for line in warnings)
    (words,) = re.findall(r"to train on it: (.*)", caplog.text)
    config = load_config("own_images.yaml", shlex.split(words))
    found = [sorted(r.path.name for r in build_dataset(config, split).records) for split in ("train", "val")]
    assert found == [["moving.png", "phone.jpg"], ["moving_2.png", "phone_2.jpg"]]
