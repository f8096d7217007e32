"""Tests of views: boxes are mapped to the pixels of a view and back, and the views of an image agree."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from detector.core.structures import PADDING_COLOR, Batch, Predictions, Priors, Sample
from detector.data.pipeline.batches import collate
from detector.engine.evaluate import detect_batch
from detector.engine.views import PLAIN, View, make_views
from detector.geometry.coders import DeltaCoder
from detector.models.postprocess import Candidates, postprocess

DELTAS = DeltaCoder()

DIVISOR = 32
SIZES = (
    (61, 97),
    (90, 50),
    (64, 128),
)  # each padded to 96 x 128
BOXES = ((5, 11, 43, 30), (0, 60, 50, 90), (100, 2, 128, 57))  # the red rectangle of each image; two touch the border
SETTINGS = {"score_threshold": 0.1, "nms_iou": 0.5, "candidates_per_level": 10, "max_detections": 20}


def make_batch(mirrored: bool = False) -> Batch:
    """Return gray images, each with a red rectangle."""
    samples = []
    for (height, width), (x1, y1, x2, y2) in zip(SIZES, BOXES, strict=True):
        image = np.full((height, width, 3), 60, dtype=np.uint8)
        image[y1:y2, x1:x2] = (255, 0, 0)
        image = image[:, ::-1] if mirrored else image
        nothing = np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool)
        samples.append(Sample(image, *nothing, image_id=0, file_name="", original_size=(height, width)))
    return collate(samples, DIVISOR)


def red_boxes(images: Tensor) -> Tensor:
    """Return (B, 4), the box of the red pixels of each image."""
    boxes = []
    for image in images.int():
        is_red = image[0] - image[1] > 127
        y, x = (is_red.any(dim=d).nonzero().flatten() for d in (1, 0))
        boxes.append([x[0], y[0], x[-1] + 1, y[-1] + 1])
    return torch.tensor(boxes, dtype=torch.float32)


class RedDetector(nn.Module):
    """Detects the red rectangle with a single anchor and two classes. The scores rise with each call.

    The score of class 0 is a little lower than that of class 1.
    """

    size_divisor = DIVISOR

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Predictions:
        anchor = torch.tensor([[0.0, 0, 64, 64]])
        boxes = red_boxes(images)
        sides = boxes[:, 2:] - boxes[:, :2]
        deltas = torch.cat(((boxes[:, :2] + sides / 2 - 32) / 64, (sides / 64).log()), dim=1)[:, None]
        self.calls += 1
        logits = torch.tensor([self.calls - 0.5, float(self.calls)]).expand(len(images), 1, 2)
        return Predictions(logits, deltas, Priors(anchor, (1,)), DELTAS)


def detect(model: nn.Module, batch: Batch, views: list[View], **more: object) -> list:
    where = {"device": torch.device("cpu"), "dtype": torch.float32}
    return detect_batch(model, batch, **where, views=views, **SETTINGS, **more)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.77, 2.0, 1.37])
def test_a_box_in_a_view_is_mapped_back_to_its_position(flip: bool, scale: float):
    batch, view = make_batch(), View(flip, scale)
    images = view.apply(batch.images, batch.sizes, DIVISOR)
    assert images.dtype == torch.uint8 and all(side % DIVISOR == 0 for side in images.shape[2:])
    boxes = red_boxes(images)
    assert (view == PLAIN) == torch.equal(boxes, red_boxes(batch.images))
    labels = torch.zeros(3, dtype=torch.int64)
    candidates = Candidates(boxes, torch.ones(3), labels, torch.arange(3), 1)
    mapped = view.map_back(candidates, (96, 128), batch.sizes)
    # the edges of the red pixels have an error of up to half a pixel of the view
    tolerance = 1e-4 if scale in (1, 2) else 0.5 / scale + 0.01
    torch.testing.assert_close(mapped.boxes, torch.tensor(BOXES).float(), rtol=0, atol=tolerance)


def test_a_mirrored_batch_is_the_batch_of_mirrored_images():
    batch = make_batch()
    assert torch.equal(View(flip=True).apply(batch.images, batch.sizes, DIVISOR), make_batch(mirrored=True).images)
    assert View().apply(batch.images, batch.sizes, DIVISOR) is batch.images


def test_a_resized_batch_equals_that_of_pillow_and_is_padded():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(256, size=(2, 3, 96, 128), dtype=np.uint8))
    resized = View(scale=0.77).apply(images, torch.tensor([[96, 128], [96, 128]]), DIVISOR)
    assert resized.shape == (2, 3, 96, 128)  # 74 x 99 rounded up
    for result, image in zip(resized, images, strict=True):
        reference = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((99, 74), Image.Resampling.BILINEAR)
        difference = result[:, :74, :99].permute(1, 2, 0).int() - torch.from_numpy(np.array(reference)).int()
        assert difference.abs().max() <= 2
        assert (result[:, 74:] == torch.tensor(PADDING_COLOR)[:, None, None]).all()
        assert (result[:, :74, 99:] == torch.tensor(PADDING_COLOR)[:, None, None]).all()


def test_the_views_of_flips_and_scales():
    assert make_views(False, [1.0]) == [PLAIN]
    assert make_views(True, [1.5, 1, 1.0]) == [PLAIN, View(False, 1.5), View(True, 1.0), View(True, 1.5)]


def test_without_augmentation_detections_equal_those_of_a_single_forward_pass():
    batch = make_batch()
    expected = postprocess(RedDetector()(batch.images), batch.sizes, batch.original_sizes, **SETTINGS)
    model = RedDetector()
    for result, reference in zip(detect(model, batch, make_views(False, [1.0])), expected, strict=True):
        names = ("boxes", "scores", "labels")
        assert all(torch.equal(getattr(result, name), getattr(reference, name)) for name in names)
        assert len(result.labels) == 2
    assert model.calls == 1


def test_the_view_with_the_highest_score_gives_the_detection():
    batch, model, observed = make_batch(), RedDetector(), []
    views = make_views(True, [1.0, 2.0, 0.5])
    detections = detect(model, batch, views, observe=lambda *arguments: observed.append(arguments))
    assert model.calls == 6
    for of_image, box in zip(detections, BOXES, strict=True):
        assert of_image.labels.tolist() == [1, 0]  # suppression reduces six boxes of each class to one box
        torch.testing.assert_close(of_image.scores, torch.tensor([6.0, 5.5]).sigmoid())
        torch.testing.assert_close(of_image.boxes, torch.tensor([box] * 2).float(), rtol=0, atol=1.01)
    ((observed_batch, predictions),) = observed  # only the plain view
    assert torch.equal(observed_batch.images, batch.images)
    assert torch.equal(predictions.logits, RedDetector()(batch.images).logits)


def test_only_the_chosen_labels_are_detected():
    batch = make_batch()
    for labels in ([0], [1], [0, 1], []):
        for of_image in detect(RedDetector(), batch, [PLAIN], labels=labels):
            assert of_image.labels.dtype == torch.int64 and sorted(of_image.labels.tolist()) == labels
            expected = torch.tensor([1.0, 0.5])[[1 - label for label in sorted(labels, reverse=True)]].sigmoid()
            torch.testing.assert_close(of_image.scores, expected)
