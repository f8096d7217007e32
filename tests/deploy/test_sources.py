"""What inputs name, and what comes of them: real image files and videos written by OpenCV."""

import os
from pathlib import Path

import numpy as np
import pytest
from videos import write_video

from detector.core.errors import UserError
from detector.data.images import write_image
from detector.deploy.inference.sources import Picture, Source, find_sources, read_pictures


def read(*inputs: Path | str, max_frames: int | None = None) -> tuple[list[Picture], list[str]]:
    left_out: list[str] = []
    sources = find_sources([str(entry) for entry in inputs])
    pictures = list(read_pictures(sources, max_frames, lambda _, error: left_out.append(str(error))))
    assert not any("\n" in line for line in left_out)
    return pictures, left_out


def test_files_folders_globs_and_cameras_each_once_and_with_a_name_of_its_own(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "a.png", "clip.MP4", "notes.txt", "deep/a.mkv", "deep/b.webm", "3/a_2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"any")
    found = find_sources([".", "a.png", "deep/*.mkv", "0", "3", "12", "0"])
    assert [str(source) for source in found] == [
        *("a.jpg", "a.png", "clip.MP4", "deep/a.mkv", "camera 0", "3/a_2.png", "camera 12"),  # 3 is a folder here
    ]
    assert [source.drawing for source in found] == [
        *("a.jpg", "a_2.png", "clip.mp4", "a_3.mp4", "camera_0.mp4", "a_2_2.png", "camera_12.mp4"),
    ]
    for entry in ("notes.txt", "gone.mp4", "*.webm"):
        with pytest.raises(UserError, match=r"image.*\.mp4"):
            find_sources([entry])


def test_every_file_of_a_folder_is_used_or_listed_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    for name in ("a.jpg", "b.mp4", "c.psd", "d.txt", ".hidden", "deep/e.jpg", "empty/f"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"any")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "linked.jpg").symlink_to(tmp_path / "deep/e.jpg")
    found = find_sources([str(tmp_path)])
    assert [source.file.name for source in found] == ["a.jpg", "b.mp4", "linked.jpg"]
    # the reason with its number and its first example
    assert len(caplog.messages) == 4 and all(str(tmp_path) in line for line in caplog.messages)
    for count, example in ((1, ".hidden"), (2, "c.psd"), (2, "deep"), (1, "gone.jpg")):
        (line,) = (line for line in caplog.messages if example in line)
        assert f": {count} " in line
    caplog.clear()
    find_sources([str(tmp_path / "[a-d]*.*")])  # of what a pattern matches, files alone
    assert len(caplog.messages) == 1 and "c.psd" in caplog.text
    caplog.clear()
    find_sources([str(tmp_path / "a.jpg"), str(tmp_path / "deep")])
    assert not caplog.messages
    with pytest.raises(UserError):
        find_sources([str(tmp_path / "empty")])
    assert caplog.messages  # what is there instead


def test_hidden_files_are_used_only_by_their_own_names(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A copy from macOS has a hidden `._a.jpg` beside each `a.jpg`."""
    caplog.set_level("INFO")
    for name in ("a.jpg", "._a.jpg", "hidden/._b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"any")
    for entry in (tmp_path, tmp_path / "*.jpg", tmp_path / ".*.jpg", tmp_path / "._a.jpg"):
        try:
            found = [source.file.name for source in find_sources([str(entry)])]
        except UserError:
            found = []
        expected = {"*.jpg": ["a.jpg"], ".*.jpg": [], "._a.jpg": ["._a.jpg"]}.get(entry.name, ["a.jpg"])
        assert found == expected
    assert "._a.jpg" in caplog.text
    with pytest.raises(UserError, match="hidden"):
        find_sources([str(tmp_path / "hidden")])


def test_copies_of_images_that_cannot_be_written_are_pngs():
    drawings = [Source(Path(name), "a").drawing for name in ("a.gif", "a.JFIF", "a.heic", "a.JPG", "a.webp", "a.mov")]
    assert drawings == ["a.png", "a.png", "a.png", "a.JPG", "a.webp", "a.mp4"]


def test_videos_whose_names_are_not_utf8(tmp_path: Path):
    """OpenCV ends the process at them."""
    name = os.fsdecode(b"v\xe9.avi")
    write_video(tmp_path / "a.avi", 3)
    (tmp_path / "a.avi").rename(tmp_path / name)
    pictures, left_out = read(tmp_path)
    assert len(pictures) == 3 and not left_out


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.mov", "mp4v"), ("a.mkv", "XVID")]
)
def test_the_frames_of_a_video_in_order_and_in_rgb(name: str, codec: str, tmp_path: Path):
    write_video(tmp_path / name, 12, rate=20, codec=codec)
    pictures, left_out = read(tmp_path / name)
    assert not left_out and [picture.frame for picture in pictures] == list(range(12))
    for picture in pictures:
        assert picture.image.shape == (48, 64, 3) and picture.rate == 20
        red, green, blue = picture.image.reshape(-1, 3).mean(axis=0)
        assert red == pytest.approx(20 * picture.frame, abs=6) and green < 20 and blue == pytest.approx(200, abs=20)


def test_pictures_are_numbered_over_all_inputs(tmp_path: Path):
    write_image(tmp_path / "a.png", np.zeros((8, 9, 3), np.uint8))
    (tmp_path / "b.png").write_bytes(b"not an image")
    write_video(tmp_path / "c.avi", 10)
    write_image(tmp_path / "d.png", np.zeros((8, 9, 3), np.uint8))
    pictures, left_out = read(tmp_path, max_frames=3)
    assert [(picture.source.name, picture.image_id, picture.frame) for picture in pictures] == [
        *(("a", 1, None), ("c", 3, 0), ("c", 4, 1), ("c", 5, 2), ("d", 6, None)),
    ]
    (line,) = left_out
    assert "b.png: not an image" in line


def test_what_cannot_be_read_is_said_in_our_words_alone(tmp_path: Path, capfd: pytest.CaptureFixture):
    (tmp_path / "a.mp4").write_bytes(b"not a video" * 100)
    (tmp_path / "b.mp4").write_bytes(b"")
    noise = np.random.default_rng(0).integers(256, size=(60, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "whole.avi", 60, rate=10, codec="MJPG", frames=noise)
    data = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    pictures, left_out = read(*(tmp_path / name for name in ("a.mp4", "b.mp4", "cut.avi", "whole.avi")), "97")
    assert [picture.source.name for picture in pictures].count("whole") == 60
    num_kept = len(pictures) - 60
    assert 20 < num_kept < 40
    assert [line.removeprefix(f"{tmp_path}/") for line in left_out] == [
        "a.mp4: cannot be opened as a video; replace or remove it",
        "b.mp4: cannot be opened as a video; replace or remove it",
        f"cut.avi: only {num_kept} of 60 frames can be read; the file is damaged or cut short",
        "camera 97: cannot be opened as a video; check that it is connected and free",
    ]
    assert read(tmp_path / "cut.avi", max_frames=num_kept)[1] == []
    assert capfd.readouterr() == ("", "")
