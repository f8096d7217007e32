"""What the tool's tests (tests/tools/test_infer.py) cannot bring about."""

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

FOUND = Detections(torch.tensor([[10.0, 20, 30, 50]]), torch.tensor([0.75]), torch.tensor([1]))
CAMERA = Source(0, "camera_0")


def make_picture(source: Source, frame: int) -> Picture:
    return Picture(source, frame + 1, np.full((61, 97, 3), 128, np.uint8), frame)


def test_frames_of_odd_sides_grow_by_a_pixel_and_lose_none(tmp_path: Path):
    sink = Drawings(tmp_path, ["a", "b"])
    for source in (CAMERA, Source(Path("b.mov"), "b")):
        for frame in range(3):
            sink.write(make_picture(source, frame), FOUND)
    sink.close()
    for name in ("camera_0.mp4", "b.mp4"):
        frames = read_video(tmp_path / name)
        assert [frame.shape for frame in frames] == [(62, 98, 3)] * 3
        assert abs(frames[0][-1].astype(int) - 128).max() < 20  # the last row is the picture's own


def test_a_video_that_cannot_be_written_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"camera_0\.mp4: no video can be written there"):
        Drawings(tmp_path / "gone", ["a", "b"]).write(make_picture(CAMERA, 0), FOUND)


def test_a_video_goes_to_a_folder_whose_name_is_not_utf8(tmp_path: Path):
    folder = tmp_path / os.fsdecode(b"f\xe9")
    folder.mkdir()
    sink = Drawings(folder, ["a", "b"])
    sink.write(make_picture(CAMERA, 0), FOUND)
    sink.close()
    assert os.listdir(folder) == ["camera_0.mp4"] and (folder / "camera_0.mp4").stat().st_size > 100
    (folder / "camera_0.mp4").rename(tmp_path / "a.mp4")
    assert len(read_video(tmp_path / "a.mp4")) == 1


def test_results_appear_whole(tmp_path: Path):
    sink = CocoResults(tmp_path, ["a", "b"], [3, 5])
    sink.write(make_picture(CAMERA, 7), FOUND)
    assert not (tmp_path / "detections.json").exists()
    sink.close()
    assert [path.name for path in tmp_path.iterdir()] == ["detections.json"]
    assert json.loads((tmp_path / "detections.json").read_text()) == [
        {
            **{"image_id": 8, "category_id": 5, "bbox": [10, 20, 20, 30], "score": 0.75},
            **{"file_name": "camera 0", "category": "b", "frame": 7},
        }
    ]
