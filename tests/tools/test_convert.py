import re
import shlex
from pathlib import Path

import pytest
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
