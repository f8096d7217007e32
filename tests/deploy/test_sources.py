"""Tests of sources with real image files, and with videos that OpenCV writes."""

import os
from pathlib import Path

import numpy as np
import pytest
from videos import write_video

from detector.core.errors import UserError
from detector.data.images import write_image
from detector.deploy.inference.sources import Picture, Source, find_sources, read_pictures


def read(*inputs: Path | str, max_frames: int | None = None) -> tuple[list[Picture], list[str]]:
    """Return the pictures of the inputs, and the messages of the failures."""
    failures: list[str] = []
    sources = find_sources([str(entry) for entry in inputs])
    pictures = list(read_pictures(sources, max_frames, lambda _, error: failures.append(str(error))))
    assert not any("\n" in line for line in failures)
    return pictures, failures


def test_each_file_and_camera_of_the_inputs_is_a_source_with_a_unique_name(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "a.png", "clip.MP4", "notes.txt", "deep/a.mkv", "deep/b.webm", "3/a_2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"any")
    sources = find_sources([".", "a.png", "deep/*.mkv", "0", "3", "12", "0"])
    assert [str(source) for source in sources] == [
        *("a.jpg", "a.png", "clip.MP4", "deep/a.mkv", "camera 0", "3/a_2.png", "camera 12"),  # 3 is a folder
    ]
    assert [source.drawing for source in sources] == [
        *("a.jpg", "a_2.png", "clip.mp4", "a_3.mp4", "camera_0.mp4", "a_2_2.png", "camera_12.mp4"),
    ]
    for entry in ("notes.txt", "gone.mp4", "*.webm"):
        with pytest.raises(UserError, match=r"\.mp4"):
            find_sources([entry])


def test_every_file_of_a_folder_is_used_or_listed_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    for name in ("a.jpg", "b.mp4", "c.psd", "d.txt", ".hidden", "deep/e.jpg", "empty/f"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"any")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "linked.jpg").symlink_to(tmp_path / "deep/e.jpg")
    sources = find_sources([str(tmp_path)])
    assert [source.file.name for source in sources] == ["a.jpg", "b.mp4", "linked.jpg"]
    # a line for each reason, with the number of files and an example
    assert len(caplog.messages) == 4 and all(str(tmp_path) in line for line in caplog.messages)
    for count, example in ((1, ".hidden"), (2, "c.psd"), (2, "deep"), (1, "gone.jpg")):
        (line,) = (line for line in caplog.messages if example in line)
        assert f": {count} " in line
    caplog.clear()
    find_sources([str(tmp_path / "[a-d]*.*")])  # the log lists only the files that the glob matches
    assert len(caplog.messages) == 1 and "c.psd" in caplog.text
    caplog.clear()
    find_sources([str(tmp_path / "a.jpg"), str(tmp_path / "deep")])
    assert not caplog.messages
    with pytest.raises(UserError):
        find_sources([str(tmp_path / "empty")])
    assert caplog.messages  # the files that are not used


def test_a_hidden_file_is_used_only_if_the_input_is_its_path(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """macOS writes a hidden file `._a.jpg` for each `a.jpg`."""
    caplog.set_level("INFO")
    for name in ("a.jpg", "._a.jpg", "hidden/._b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"any")
    for entry in (tmp_path, tmp_path / "*.jpg", tmp_path / ".*.jpg", tmp_path / "._a.jpg"):
        try:
            names = [source.file.name for source in find_sources([str(entry)])]
        except UserError:
            names = []
        expected = {"*.jpg": ["a.jpg"], ".*.jpg": [], "._a.jpg": ["._a.jpg"]}.get(entry.name, ["a.jpg"])
        assert names == expected
    assert "._a.jpg" in caplog.text
    with pytest.raises(UserError, match=str(tmp_path / "hidden")):
        find_sources([str(tmp_path / "hidden")])


def test_the_copy_of_an_image_is_a_png_if_its_format_cannot_be_written():
    drawings = [Source(Path(name), "a").drawing for name in ("a.gif", "a.JFIF", "a.heic", "a.JPG", "a.webp", "a.mov")]
    assert drawings == ["a.png", "a.png", "a.png", "a.JPG", "a.webp", "a.mp4"]


def test_the_name_of_a_video_can_be_no_utf8(tmp_path: Path):
    """OpenCV ends the process if it opens a path that is not UTF-8."""
    name = os.fsdecode(b"v\xe9.avi")
    write_video(tmp_path / "a.avi", 3)
    (tmp_path / "a.avi").rename(tmp_path / name)
    pictures, failures = read(tmp_path)
    assert len(pictures) == 3 and not failures


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.mov", "mp4v"), ("a.mkv", "XVID")]
)
def test_the_frames_of_a_video_are_in_order_and_in_rgb(name: str, codec: str, tmp_path: Path):
    write_video(tmp_path / name, 12, rate=20, codec=codec)
    pictures, failures = read(tmp_path / name)
    assert not failures and [picture.frame for picture in pictures] == list(range(12))
    for picture in pictures:
        assert picture.image.shape == (48, 64, 3) and picture.rate == 20
        red, green, blue = picture.image.reshape(-1, 3).mean(axis=0)
        assert red == pytest.approx(20 * picture.frame, abs=6) and green < 20 and blue == pytest.approx(200, abs=20)


def test_pictures_are_numbered_over_all_inputs(tmp_path: Path):
    write_image(tmp_path / "a.png", np.zeros((8, 9, 3), np.uint8))
    (tmp_path / "b.png").write_bytes(b"not an image")
    write_video(tmp_path / "c.avi", 10)
    write_image(tmp_path / "d.png", np.zeros((8, 9, 3), np.uint8))
    pictures, failures = read(tmp_path, max_frames=3)
    assert [(picture.source.name, picture.image_id, picture.frame) for picture in pictures] == [
        *(("a", 1, None), ("c", 3, 0), ("c", 4, 1), ("c", 5, 2), ("d", 6, None)),
    ]
    (line,) = failures
    assert str(tmp_path / "b.png") in line


def test_an_unreadable_video_gets_one_line_and_no_other_output(tmp_path: Path, capfd: pytest.CaptureFixture):
    (tmp_path / "a.mp4").write_bytes(b"not a video" * 100)
    (tmp_path / "b.mp4").write_bytes(b"")
    noise = np.random.default_rng(0).integers(256, size=(60, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "intact.avi", 60, rate=10, codec="MJPG", frames=noise)
    data = (tmp_path / "intact.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    pictures, failures = read(*(tmp_path / name for name in ("a.mp4", "b.mp4", "cut.avi", "intact.avi")), "97")
    assert [picture.source.name for picture in pictures].count("intact") == 60
    num_read = len(pictures) - 60
    assert 20 < num_read < 40
    named = [f"{tmp_path}/a.mp4", f"{tmp_path}/b.mp4", f"{tmp_path}/cut.avi", "camera 97"]
    assert [line.partition(":")[0] for line in failures] == named
    assert f"{num_read} of 60" in failures[2]
    assert read(tmp_path / "cut.avi", max_frames=num_read)[1] == []
    assert capfd.readouterr() == ("", "")
