"""Boxes go through a view's pixels and come back; the views of an image agree."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from detector.core.structures import PADDING_COLOR, Batch, Predictions, Priors, Sample
from detector.data.pipeline.loader import collate
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
BOXES = ((5, 11, 43, 30), (0, 60, 50, 90), (100, 2, 128, 57))  # red, one an image; two touch its border
SETTINGS = {"score_threshold": 0.1, "nms_iou": 0.5, "candidates_per_level": 10, "max_detections": 20}


def make_batch(mirrored: bool = False) -> Batch:
    """Grey pictures, each with a red rectangle."""
    samples = []
    for (height, width), (x1, y1, x2, y2) in zip(SIZES, BOXES, strict=True):
        image = np.full((height, width, 3), 60, dtype=np.uint8)
        image[y1:y2, x1:x2] = (255, 0, 0)
        image = image[:, ::-1] if mirrored else image
        nothing = np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool)
        samples.append(Sample(image, *nothing, image_id=0, file_name="", original_size=(height, width)))
    return collate(samples, DIVISOR)


def red_boxes(images: Tensor) -> Tensor:
    """(B, 4): where each image is more than half red, in its pixels."""
    boxes = []
    for image in images.int():
        is_red = image[0] - image[1] > 127
        y, x = (is_red.any(dim=d).nonzero().flatten() for d in (1, 0))
        boxes.append([x[0], y[0], x[-1] + 1, y[-1] + 1])
    return torch.tensor(boxes, dtype=torch.float32)


class FindsRed(nn.Module):
    """One class and one anchor, which is the red rectangle; each call is surer than the one before. (A second class,
    a little less sure, sees the same.)"""

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
def test_a_box_seen_in_a_view_comes_back_to_its_place(flip: bool, scale: float):
    batch, view = make_batch(), View(flip, scale)
    seen = view.see(batch.images, batch.sizes, DIVISOR)
    assert seen.dtype == torch.uint8 and all(side % DIVISOR == 0 for side in seen.shape[2:])
    there = red_boxes(seen)
    assert (view == PLAIN) == torch.equal(there, red_boxes(batch.images))
    none = torch.zeros(3, dtype=torch.int64)
    found = view.bring_back(Candidates(there, torch.ones(3), none, torch.arange(3), 1), (96, 128), batch.sizes)
    # a red pixel's edge is known to half a pixel of the view
    tolerance = 1e-4 if scale in (1, 2) else 0.5 / scale + 0.01
    torch.testing.assert_close(found.boxes, torch.tensor(BOXES).float(), rtol=0, atol=tolerance)


def test_a_mirrored_batch_is_the_batch_of_mirrored_images():
    batch = make_batch()
    assert torch.equal(View(flip=True).see(batch.images, batch.sizes, DIVISOR), make_batch(mirrored=True).images)
    assert View().see(batch.images, batch.sizes, DIVISOR) is batch.images


def test_a_resized_batch_is_what_pillow_makes_of_it_and_padded():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(256, size=(2, 3, 96, 128), dtype=np.uint8))
    seen = View(scale=0.77).see(images, torch.tensor([[96, 128], [96, 128]]), DIVISOR)
    assert seen.shape == (2, 3, 96, 128)  # 74 x 99 rounded up
    for own, image in zip(seen, images, strict=True):
        reference = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((99, 74), Image.Resampling.BILINEAR)
        difference = own[:, :74, :99].permute(1, 2, 0).int() - torch.from_numpy(np.array(reference)).int()
        assert difference.abs().max() <= 2
        assert (own[:, 74:] == torch.tensor(PADDING_COLOR)[:, None, None]).all()
        assert (own[:, :74, 99:] == torch.tensor(PADDING_COLOR)[:, None, None]).all()


def test_the_views_of_flips_and_scales():
    assert make_views(False, [1.0]) == [PLAIN]
    assert make_views(True, [1.5, 1, 1.0]) == [PLAIN, View(False, 1.5), View(True, 1.0), View(True, 1.5)]


def test_without_augmentation_detections_are_those_of_one_look_bit_for_bit():
    batch = make_batch()
    expected = postprocess(FindsRed()(batch.images), batch.sizes, batch.original_sizes, **SETTINGS)
    model = FindsRed()
    for own, reference in zip(detect(model, batch, make_views(False, [1.0])), expected, strict=True):
        assert all(torch.equal(getattr(own, name), getattr(reference, name)) for name in ("boxes", "scores", "labels"))
        assert len(own.labels) == 2
    assert model.calls == 1


def test_all_views_find_one_object_and_the_surest_has_its_say():
    batch, model, seen = make_batch(), FindsRed(), []
    views = make_views(True, [1.0, 2.0, 0.5])
    found = detect(model, batch, views, observe=lambda *what: seen.append(what))
    assert model.calls == 6
    for own, box in zip(found, BOXES, strict=True):
        assert own.labels.tolist() == [1, 0]  # six boxes a class, suppressed to one
        torch.testing.assert_close(own.scores, torch.tensor([6.0, 5.5]).sigmoid())
        torch.testing.assert_close(own.boxes, torch.tensor([box] * 2).float(), rtol=0, atol=1.01)
    ((observed, predictions),) = seen  # the plain view alone
    assert torch.equal(observed.images, batch.images)
    assert torch.equal(predictions.logits, FindsRed()(batch.images).logits)


def test_only_the_classes_that_are_asked_for():
    batch = make_batch()
    for labels in ([0], [1], [0, 1], []):
        for found in detect(FindsRed(), batch, [PLAIN], labels=labels):
            assert found.labels.dtype == torch.int64 and sorted(found.labels.tolist()) == labels
            expected = torch.tensor([1.0, 0.5])[[1 - label for label in sorted(labels, reverse=True)]].sigmoid()
            torch.testing.assert_close(found.scores, expected)
