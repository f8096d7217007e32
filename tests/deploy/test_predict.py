"""Tests of the Python interface: types of images, batches, order, classes."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import CLASS_NAMES, save_tiny_checkpoint

from detector import Detector
from detector.build import build_dataset, build_evaluation
from detector.core.errors import UserError
from detector.core.structures import Detections
from detector.data.images import as_rgb, read_image
from detector.deploy.predict import WINDOW
from detector.evaluation.coco_results import to_coco_results


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), "evaluation.score_threshold=0.5")


@pytest.fixture(scope="module")
def detector(checkpoint: Path) -> Detector:
    return Detector.load(checkpoint)


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[Path]:
    return sorted((shared_data / "coco_tiny/val2017").glob("*.jpg"))[:12]


def same(a: Detections, b: Detections) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("boxes", "scores", "labels"))


def test_every_type_of_image_gives_the_same_boxes(detector: Detector, photos: list[Path], tmp_path: Path):
    pixels = read_image(photos[0])
    file = tmp_path / "a.png"
    Image.fromarray(pixels).save(file)
    opaque = Image.fromarray(pixels).convert("RGBA")
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    mirrored_twice = np.ascontiguousarray(pixels[:, ::-1])[:, ::-1]  # an array with a negative stride
    images = [pixels, file, str(file), Image.open(file), opaque, tensor, tensor.contiguous(), mirrored_twice]
    first, *others = detector.predict(images, batch_size=1)
    assert len(first.boxes) > 10 and all(same(first, other) for other in others)
    height, width = pixels.shape[:2]
    assert (first.boxes >= 0).all() and (first.boxes <= torch.tensor([width, height, width, height])).all()
    assert (first.scores.diff() <= 0).all() and (first.scores > 0.5).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "HSV", "I;16", "RGBA"])
def test_a_pil_image_of_any_mode_has_the_pixels_of_its_file(mode: str, tmp_path: Path):
    rng = np.random.default_rng(0)
    if mode == "I;16":
        picture = Image.fromarray(rng.integers(2**16, size=(30, 40), dtype=np.uint16))
    else:
        colors = Image.fromarray(rng.integers(256, size=(30, 40, 3), dtype=np.uint8))
        picture = (colors.convert("L") if mode == "LA" else colors).convert(mode)
    assert picture.mode == mode
    pixels = as_rgb(picture, "picture")
    assert pixels.shape == (30, 40, 3) and pixels.dtype == np.uint8
    if mode in ("CMYK", "YCbCr", "HSV"):  # PNG does not have these modes
        assert np.array_equal(pixels, np.asarray(picture.convert("RGB")))
    else:
        picture.save(tmp_path / "a.png")
        assert np.array_equal(pixels, read_image(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("image", "facts"),
    [
        (np.zeros((20, 30, 3), np.float32), r"^images\[1\]: .*float32.*\(20, 30, 3\)"),
        (np.zeros((20, 30), np.uint8), r"^images\[1\]: .*\(20, 30\)"),
        (np.zeros((20, 30, 4), np.uint8), r"^images\[1\]: .*\(20, 30, 4\)"),
        (np.zeros((0, 30, 3), np.uint8), r"^images\[1\]: .*\(0, 30, 3\)"),
        (torch.zeros(20, 30, 3, dtype=torch.uint8), r"^images\[1\]: .*torch\.uint8.*\(20, 30, 3\)"),
        (torch.zeros(3, 20, 30), r"^images\[1\]: .*torch\.float32"),
        (Image.fromarray(np.zeros((20, 30), np.float32)), r"^images\[1\]: .*PIL.*float"),
        (None, r"^images\[1\]: .*NoneType"),
        ("gone.png", r"^gone\.png: "),
    ],
)
def test_an_object_that_is_not_an_image_is_refused(detector: Detector, image: object, facts: str):
    with pytest.raises(UserError, match=facts) as error:
        detector.predict([np.zeros((20, 30, 3), np.uint8), image])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "image", ["a.png", np.zeros((20, 30, 3), np.uint8), torch.zeros(3, 20, 30), Image.new("RGB", (30, 20))]
)
def test_a_single_image_is_refused(detector: Detector, image: object):
    with pytest.raises(UserError, match="^images: .*; .*list"):
        detector.predict(image)


def unread() -> Iterator[np.ndarray]:
    """Raise an error if an image is read."""
    raise AssertionError("an image was read")
    yield


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("batch_size", value) for value in (0, -1, 1.5, 2.0, "2", True, [2], np.float32(2), float("nan"))),
        *(("score_threshold", value) for value in (float("nan"), np.float32("nan"), -0.1, 1.1, "0.5", True, [0.5])),
        *(("score_threshold", value) for value in (float("inf"), 0.5j, np.array([0.5, 0.5]))),
        *(("classes", value) for value in ("disc", 3, [0], ["disc", None], [b"disc"], ["Disc"])),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_before_an_image_is_read(detector: Detector, key: str, value: object):
    with pytest.raises(UserError, match=f"^{key}: "):
        detector.predict(unread(), **{key: value})


def test_numbers_of_numpy_and_python_are_accepted(detector: Detector):
    image = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    (expected,) = detector.predict([image], score_threshold=0.6875, batch_size=1, classes=["disc", "star"])
    assert len(expected.boxes)
    for score, size in ((np.float32(0.6875), np.int64(1)), (np.float64(0.6875), np.uint8(1))):
        names = iter(np.array(["star", "disc"]))
        (detections,) = detector.predict([image], score_threshold=score, batch_size=size, classes=names)
        assert same(detections, expected)
    for score in (0, 1, np.int32(1)):
        detector.predict([image], score_threshold=score)


@pytest.mark.parametrize("classes", ["disc", 3, [0], [None]])
def test_labels_of_accepts_only_names(detector: Detector, classes: object):
    with pytest.raises(UserError, match="classes"):
        detector.labels_of(classes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("path", value) for value in (3, None, b"tiny.pt")),
        *(("cfg", value) for value in (3, {"data": {}})),
        *(("overrides", value) for value in ("evaluation.flip=true", 3, {"evaluation.flip": True}, [True])),
        *(("device", value) for value in ("gpu", "", 0, None, ["cpu"], torch.device("cpu"))),
    ],
    ids=str,
)
def test_wrong_arguments_of_load_are_refused(checkpoint: Path, key: str, value: object):
    with pytest.raises(UserError, match=f"^{key}"):
        Detector.load(**{"path": checkpoint, key: value})


def test_a_checkpoint_of_a_gpu_in_half_precision_loads_on_a_cpu(checkpoint: Path, tmp_path: Path, detector: Detector):
    trained = save_tiny_checkpoint(
        tmp_path, "train.device=cuda", "train.precision=fp16", "evaluation.score_threshold=0.5"
    )
    image = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    loaded = Detector.load(trained, device="cpu")
    assert loaded.device.type == "cpu" and loaded.dtype == torch.float32
    assert same(loaded.predict([image])[0], detector.predict([image])[0])
    if not torch.cuda.is_available():
        assert Detector.load(trained).device.type == "cpu"
        with pytest.raises(UserError, match="^device"):
            Detector.load(checkpoint, device="cuda")


def test_batches_have_images_of_similar_shape_and_results_have_the_order_of_the_images(detector: Detector):
    """Two shapes alternate. In a common batch, their padding would change the scores."""
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (128, 64), (64, 64), (128, 64), (64, 64)] * 5
    images = [rng.integers(256, size=(*size, 3), dtype=np.uint8) for size in sizes]
    alone = [detector.predict([image])[0] for image in images]
    assert not any(same(a, alone[0]) for a in alone[1:])
    for batch_size in (1, 3):
        for detections, expected in zip(detector.predict(iter(images), batch_size=batch_size), alone, strict=True):
            assert torch.equal(detections.labels, expected.labels)
            torch.testing.assert_close(detections.boxes, expected.boxes, rtol=0, atol=1e-3)
            torch.testing.assert_close(detections.scores, expected.scores, rtol=0, atol=1e-5)
    assert detector.predict([]) == []


def test_the_memory_does_not_grow_with_the_number_of_images(detector: Detector):
    references: list[weakref.ref] = []
    max_alive = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal max_alive
        for i in range(40):
            image = np.full((64, 64, 3), i, dtype=np.uint8)
            references.append(weakref.ref(image))
            max_alive = max(max_alive, sum(reference() is not None for reference in references))
            yield image
            del image

    assert len(detector.predict(images(), batch_size=2)) == 40
    assert 2 <= max_alive <= 2 * WINDOW + 2


def test_classes_and_score_threshold_select_from_all_detections(checkpoint: Path):
    """The limits on the number of boxes are so high that they have no effect."""
    image = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    limits = ["evaluation.candidates_per_level=9999", "evaluation.max_detections=9999"]
    detector = Detector.load(checkpoint, overrides=limits)
    (every,) = detector.predict([image])
    for classes in (["square"], ["triangle", "disc"], list(CLASS_NAMES), []):
        (detections,) = detector.predict([image], classes=classes, score_threshold=0.55)
        chosen = [
            score > 0.55 and CLASS_NAMES[k] in classes for score, k in zip(every.scores, every.labels, strict=True)
        ]
        chosen = torch.tensor(chosen)
        assert same(detections, Detections(every.boxes[chosen], every.scores[chosen], every.labels[chosen]))
        assert len(detections.labels) > 3 * len(classes) or not classes


def test_an_unknown_class_is_refused_with_the_known_classes(detector: Detector):
    with pytest.raises(UserError) as error:
        detector.predict([], classes=["square", "dsic"])
    assert "'dsic'" in error.value.problem
    assert "'disc'" in error.value.remedy and ", ".join(CLASS_NAMES) in error.value.remedy


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["evaluation.scales=[1.0, 300.0]"], "evaluation.scales"),
        (["data.short_side=20000", "data.long_side=20000"], "data.short_side"),
    ],
)
def test_settings_that_give_too_large_images_are_refused_before_an_image_is_read(
    checkpoint: Path, overrides: list[str], key: str
):
    with pytest.raises(UserError, match=f"^{key}"):
        Detector.load(checkpoint, overrides=overrides)
    # data.long_side does not enlarge images, and the scale is below the limit
    Detector.load(checkpoint, overrides=["data.long_side=1000000", "evaluation.scales=[1.0, 200.0]"])


def test_out_of_memory_names_the_keys_to_lower(checkpoint: Path):
    detector = Detector.load(checkpoint)
    detector.model.register_forward_pre_hook(lambda *_: torch.empty(2**50, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"\b2 images of 64x64") as error:
        detector.predict([np.zeros((64, 64, 3), np.uint8)] * 2)
    for key in ("evaluation.batch_size", "evaluation.scales", "data.short_side"):
        assert key in error.value.remedy
    dataset = build_dataset(detector.config, "val")
    with pytest.raises(UserError, match=r"evaluation\.batch_size"):
        build_evaluation(detector.config, dataset, detector.device, detector.dtype)(detector.model)


@pytest.mark.parametrize("views", [[], ["evaluation.flip=true", "evaluation.scales=[1.0, 1.5]"]])
def test_an_evaluation_has_the_same_detections(checkpoint: Path, views: list[str]):
    detector = Detector.load(checkpoint, overrides=views)
    dataset = build_dataset(detector.config, "val")
    _, results = build_evaluation(detector.config, dataset, detector.device, detector.dtype)(detector.model)
    detections = detector.predict([record.path for record in dataset.records])
    expected = [
        to_coco_results(record.image_id, of_image, dataset.category_ids)
        for record, of_image in zip(dataset.records, detections, strict=True)
    ]
    assert results == [result for results_of_image in expected for result in results_of_image] and len(results) > 20


def test_a_mirrored_image_has_mirrored_boxes(checkpoint: Path, photos: list[Path]):
    """The image has an odd size and padding. It is not resized, because resampling is not exactly symmetric."""
    image = read_image(photos[1])[:64, :97]
    mirrored = np.ascontiguousarray(image[:, ::-1])
    plain, augmented = (Detector.load(checkpoint, overrides=[f"evaluation.flip={flip}"]) for flip in ("false", "true"))

    def is_mirrored(a: Detections, b: Detections) -> bool:
        x1, y1, x2, y2 = b.boxes.unbind(1)
        back = torch.stack((97 - x2, y1, 97 - x1, y2), dim=1)
        is_close = a.boxes.shape == back.shape and torch.allclose(a.boxes, back, rtol=0, atol=1e-3)
        return is_close and torch.equal(a.labels, b.labels) and torch.equal(a.scores, b.scores)

    assert not is_mirrored(*plain.predict([image, mirrored]))
    assert is_mirrored(*augmented.predict([image, mirrored]))
    assert not same(plain.predict([image])[0], augmented.predict([image])[0])
