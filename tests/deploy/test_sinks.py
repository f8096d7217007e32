"""Tests of sinks that the tests of the command (tests/tools/test_infer.py) do not include."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from videos import read_video

from detector.core.errors import UserError
from detector.core.structures import Detections
from detector.deploy.inference.sinks import CocoResults, Drawings
from detector.deploy.inference.sources import Picture, Source

DETECTIONS = Detections(torch.tensor([[10.0, 20, 30, 50]]), torch.tensor([0.75]), torch.tensor([1]))
CAMERA = Source(0, "camera_0")


def make_picture(source: Source, frame: int) -> Picture:
    return Picture(source, frame + 1, np.full((61, 97, 3), 128, np.uint8), frame)


def test_frames_with_odd_sides_grow_by_a_pixel(tmp_path: Path):
    sink = Drawings(tmp_path, ["a", "b"])
    for source in (CAMERA, Source(Path("b.mov"), "b")):
        for frame in range(3):
            sink.write(make_picture(source, frame), DETECTIONS)
    sink.close()
    for name in ("camera_0.mp4", "b.mp4"):
        frames = read_video(tmp_path / name)
        assert [frame.shape for frame in frames] == [(62, 98, 3)] * 3
        assert abs(frames[0][-1].astype(int) - 128).max() < 20  # the last row is a copy of the last row of the picture


def test_a_video_that_cannot_be_written_gets_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"camera_0\.mp4"):
        Drawings(tmp_path / "gone", ["a", "b"]).write(make_picture(CAMERA, 0), DETECTIONS)


def test_the_folder_of_a_video_can_have_a_name_that_is_not_utf8(tmp_path: Path):
    folder = tmp_path / os.fsdecode(b"f\xe9")
    folder.mkdir()
    sink = Drawings(folder, ["a", "b"])
    sink.write(make_picture(CAMERA, 0), DETECTIONS)
    sink.close()
    assert os.listdir(folder) == ["camera_0.mp4"] and (folder / "camera_0.mp4").stat().st_size > 100
    (folder / "camera_0.mp4").rename(tmp_path / "a.mp4")
    assert len(read_video(tmp_path / "a.mp4")) == 1


def test_the_results_appear_only_when_they_are_complete(tmp_path: Path):
    sink = CocoResults(tmp_path, ["a", "b"], [3, 5])
    sink.write(make_picture(CAMERA, 7), DETECTIONS)
    assert not (tmp_path / "detections.json").exists()
    sink.close()
    assert [path.name for path in tmp_path.iterdir()] == ["detections.json"]
    assert json.loads((tmp_path / "detections.json").read_text()) == [
        {
            **{"image_id": 8, "category_id": 5, "bbox": [10, 20, 20, 30], "score": 0.75},
            **{"file_name": "camera 0", "category": "b", "frame": 7},
        }
    ]
