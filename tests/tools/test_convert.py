"""The command `convert`: the overrides that it logs, its warnings, and the folder that it refuses."""

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image
from tools_run import run_tool

from detector.build import build_dataset
from detector.config import load_config


def logged_overrides(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the overrides that read the written data set, from the last line of the log."""
    return [word for word in shlex.split(caplog.messages[-1]) if word.startswith("data.")]


@pytest.mark.parametrize("target", ["coco", "voc", "yolo"])
def test_the_logged_overrides_read_the_written_data_set(
    target: str, shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    options = ("--cfg", "bccd_focal.yaml", f"data.root={shared_data / 'bccd'}", "--link")
    with caplog.at_level("INFO"):
        assert run_tool("convert", *options, "--to", target, "--out", tmp_path / "out") == 0
    converted = load_config("bccd_focal.yaml", logged_overrides(caplog))
    source = load_config("bccd_focal.yaml", [f"data.root={shared_data / 'bccd'}"])
    for split in ("train", "val"):
        actual, expected = (build_dataset(config, split) for config in (converted, source))
        assert actual.class_names == expected.class_names
        assert actual.class_counts().tolist() == expected.class_counts().tolist()


def test_a_folder_with_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "notes.txt").write_text("mine")
    scenes = ("data.train.num_images=4", "data.val.num_images=4")
    assert run_tool("convert", "--cfg", "retina_focal.yaml", "--to", "coco", "--out", tmp_path, *scenes) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: --out {tmp_path}: ") and errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("target", ["coco", "voc", "yolo"])
def test_a_changed_image_is_logged(target: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The images are an animated GIF and a JPEG with another suffix, and the name of the folder has a space."""
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
    config = load_config("own_images.yaml", logged_overrides(caplog))
    names = [sorted(r.path.name for r in build_dataset(config, split).records) for split in ("train", "val")]
    assert names == [["moving.png", "phone.jpg"], ["moving_2.png", "phone_2.jpg"]]
