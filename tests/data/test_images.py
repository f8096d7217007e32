import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from refusals import refused

from detector.core.errors import UserError
from detector.data import headers
from detector.data.images import FORMATS, as_rgb, bits_of, find_images, read_header, read_image, write_image


@pytest.fixture
def scene() -> np.ndarray:
    """Return a smooth image whose three channels differ, so that swapped channels are detected."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (9, 9), 3) // np.array([1, 2, 3], dtype=np.uint8)


def encoded(picture: Image.Image, kind: str, exif: Image.Exif | None = None) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, exif=exif if exif is not None else Image.Exif())
    return buffer.getvalue()


def assert_refused(path: Path, *facts: str) -> None:
    with refused(str(path), *facts):
        read_image(path)


def test_rgb_order_matches_another_library(tmp_path: Path, scene: np.ndarray):
    Image.fromarray(scene).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    np.testing.assert_array_equal(image, scene)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".PNG"])
def test_lossless_round_trip(tmp_path: Path, scene: np.ndarray, suffix: str):
    write_image(tmp_path / f"a{suffix}", scene)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), scene)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"a{suffix}")), scene)


def test_grey_alpha_palette_and_16_bit_become_three_channels(tmp_path: Path, scene: np.ndarray):
    grey = scene[..., 0]
    alpha = np.full_like(grey, 100)
    cases = {
        "grey": (Image.fromarray(grey), np.stack([grey] * 3, -1)),
        "grey_alpha": (Image.fromarray(np.stack([grey, alpha], -1), "LA"), np.stack([grey] * 3, -1)),
        "alpha": (Image.fromarray(np.dstack([scene, alpha]), "RGBA"), scene),
        "16_bit": (Image.fromarray(grey.astype(np.uint16) * 257), np.stack([grey] * 3, -1)),
    }
    palette = Image.fromarray(scene).quantize(16)
    cases["palette"] = (palette, np.asarray(palette.convert("RGB")))
    for name, (picture, expected) in cases.items():
        picture.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.png"), expected, err_msg=name)


def test_exif_orientation_is_not_applied(tmp_path: Path, scene: np.ndarray):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    for name, tags in (("turned", exif), ("plain", None)):
        (tmp_path / f"{name}.jpg").write_bytes(encoded(Image.fromarray(scene), "JPEG", tags))
    assert cv2.imread(tmp_path / "turned.jpg").shape == (90, 60, 3)  # OpenCV applies the orientation of the file
    np.testing.assert_array_equal(read_image(tmp_path / "turned.jpg"), read_image(tmp_path / "plain.jpg"))


def test_missing_folder_empty_and_foreign_files(tmp_path: Path):
    assert_refused(tmp_path / "absent.jpg", "No such file")
    assert_refused(tmp_path, "directory")
    for name, data in (("empty.jpg", b""), ("text.jpg", b"not a picture" * 99)):
        (tmp_path / name).write_bytes(data)
        assert_refused(tmp_path / name)


@pytest.mark.parametrize("options", [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]])
def test_truncated_jpeg_is_refused_at_every_length(tmp_path: Path, scene: np.ndarray, options: list[int]):
    data = cv2.imencode(".jpg", scene, options)[1].tobytes()
    path = tmp_path / "a.jpg"
    for end in [*range(1, len(data) - 1, 97), len(data) - 2, len(data) - 1]:
        path.write_bytes(data[:end])
        assert_refused(path)
    for complete in (data, data + bytes(5), data + b"trailer \xff\xda of a motion photo"):
        path.write_bytes(complete)
        assert read_image(path).shape == scene.shape


def test_the_end_marker_of_a_thumbnail_does_not_count(tmp_path: Path, scene: np.ndarray):
    thumbnail = encoded(Image.fromarray(scene[:8, :8]), "JPEG")
    data = encoded(Image.fromarray(scene), "JPEG")
    payload = b"Exif\0\0" + thumbnail
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + data[2:]
    (tmp_path / "a.jpg").write_bytes(data)
    assert read_image(tmp_path / "a.jpg").shape == scene.shape
    (tmp_path / "a.jpg").write_bytes(data[:-2])
    assert_refused(tmp_path / "a.jpg", "JPEG")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize("fraction", [0.3, 0.9])
def test_other_truncated_formats_are_refused(tmp_path: Path, scene: np.ndarray, suffix: str, fraction: float):
    data = cv2.imencode(suffix, scene)[1].tobytes()
    (tmp_path / f"a{suffix}").write_bytes(data[: int(len(data) * fraction)])
    assert_refused(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("side", [13_350, 16_000])  # slightly over the limit, and over the limit of Pillow
def test_decompression_bomb_is_refused_from_its_header(tmp_path: Path, side: int):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # one bit per pixel, gray
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(data)
    assert len(data) < 50_000
    assert_refused(tmp_path / "bomb.png", "178")  # the limit of either library is about 178 million pixels


def test_real_images_have_the_size_of_their_header(shared_data: Path):
    paths = find_images([str(shared_data / "coco_tiny/val2017")])
    assert len(paths) == 80
    for path in paths:
        with Image.open(path) as header:
            assert read_image(path).shape == (header.height, header.width, 3)


def test_find_images_takes_files_folders_and_patterns_once_and_in_order(tmp_path: Path, scene: np.ndarray):
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/c.jpg", "[x].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"any")

    def find(*inputs: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in find_images([str(tmp_path / entry) for entry in inputs])]

    assert find("") == ["[x].jpg", "a.PNG", "b.jpg"]
    assert find("b.jpg", "") == ["b.jpg", "[x].jpg", "a.PNG"]
    assert find("[ab].*") == ["a.PNG", "b.jpg"]
    assert find("**/*.jpg") == ["[x].jpg", "b.jpg", "deep/c.jpg"]
    assert find("[x].jpg") == ["[x].jpg"]  # the name of a file has priority over a pattern


@pytest.mark.parametrize("entry", ["notes.txt", "empty", "absent.jpg", "*.gif", "notes.*"])
def test_find_images_refuses_an_input_without_images(tmp_path: Path, entry: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("any")
    with refused(entry):
        find_images([str(tmp_path / entry)])


def test_write_image_refuses_an_unknown_suffix(tmp_path: Path, scene: np.ndarray):
    with refused("a.xyz", "'.xyz'", remedy=".png"):
        write_image(tmp_path / "a.xyz", scene)


def test_an_image_that_is_too_large_for_its_format(tmp_path: Path):
    with refused("a.webp", "16400x1"):
        write_image(tmp_path / "a.webp", np.zeros((1, 16400, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_other_formats_than_opencvs(tmp_path: Path, scene: np.ndarray):
    """The first image of an animation, JPEG with another suffix, and the format of telephones."""
    first, second = Image.fromarray(scene).quantize(256), Image.fromarray(255 - scene).quantize(256)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif"), np.asarray(first.convert("RGB")))
    Image.fromarray(scene).save(tmp_path / "a.jfif", "JPEG", quality=95)
    assert np.abs(read_image(tmp_path / "a.jfif").astype(int) - scene).mean() < 3
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.fromarray(scene)).save(tmp_path / "a.heic", quality=95)
    assert np.abs(read_image(tmp_path / "a.heic").astype(int) - scene).mean() < 3
    assert len(find_images([str(tmp_path)])) == 3
    for path in tmp_path.iterdir():
        header = read_header(path)
        assert (header.width, header.height) == (90, 60) and header.format in FORMATS[path.suffix]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("highest", [255, 1000, 4095, 65535])
def test_16_bit_images_are_scaled_by_the_bits_of_their_data_set(tmp_path: Path, suffix: str, highest: int):
    path = tmp_path / f"a{suffix}"
    values = np.random.default_rng(0).integers(highest + 1, size=(20, 30), dtype=np.uint16)
    values[0, 0] = highest
    cv2.imwrite(str(path), values)
    bits = max(8, int(np.ceil(np.log2(highest + 1))))
    assert read_header(path).is_deep and bits_of(path) == bits
    expected = np.repeat((values.astype(int) * 256 // 2**bits)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(path, bits=bits), expected)
    np.testing.assert_array_equal(read_image(path, bits=None), expected)
    np.testing.assert_array_equal(read_image(path, bits=8), np.minimum(values, 255)[..., None].repeat(3, axis=2))
    with Image.open(path) as picture:
        np.testing.assert_array_equal(as_rgb(picture, "", bits), expected)
        np.testing.assert_array_equal(as_rgb(path, "", bits), expected)


def test_hot_pixels_do_not_decide_the_range(tmp_path: Path):
    values = np.random.default_rng(0).integers(4096, size=(100, 100), dtype=np.uint16)
    values[0, :3] = 65535
    cv2.imwrite(str(tmp_path / "a.png"), values)
    assert bits_of(tmp_path / "a.png") == 12
    assert read_image(tmp_path / "a.png", bits=None)[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("kind", [np.int32, np.int16])
def test_tiffs_of_integers(tmp_path: Path, kind: type):
    values = np.arange(600, dtype=kind).reshape(20, 30)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert read_header(tmp_path / "a.tif").is_deep and bits_of(tmp_path / "a.tif") == 10
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", bits=10)[..., 0], values // 4)


def test_16_bit_channels_keep_their_order(tmp_path: Path, scene: np.ndarray):
    cv2.imwrite(str(tmp_path / "a.png"), scene[..., ::-1].astype(np.uint16) * 16)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", bits=12), scene)


def test_images_of_floats_are_refused(tmp_path: Path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError):
        read_image(tmp_path / "a.tif")


def test_headers_are_read_once_until_a_file_changes(tmp_path: Path, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = [tmp_path / name for name in ("a.png", "b.jpg", "text.png", "gone.png")]
    write_image(paths[0], scene)
    write_image(paths[1], scene)
    paths[2].write_text("text")
    first = headers.read_headers(paths)
    assert [header.width for header in first[:2]] == [90, 90] and all(isinstance(error, str) for error in first[2:])
    opened, read = [], headers.read_header
    monkeypatch.setattr(headers, "read_header", lambda path: opened.append(path.name) or read(path))
    assert headers.read_headers(paths) == first and sorted(opened) == ["gone.png", "text.png"]
    write_image(paths[0], scene[:30])
    assert headers.read_headers(paths)[0].height == 30
    assert headers.read_headers([]) == []
