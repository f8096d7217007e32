import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder

from detector.core.structures import Predictions, Priors
from detector.geometry.coders import DeltaCoder, DistanceCoder, DistributionCoder

DELTAS, DISTANCES = DeltaCoder(), DistanceCoder()


def random_boxes(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, generator=generator) * 300
    return torch.cat((corners, corners + 1 + torch.rand(*shape, 2, generator=generator) * 200), dim=-1)


def test_offsets_of_a_known_box():
    anchor = torch.tensor([[10.0, 20, 30, 60]])  # center 20, 40; sides 20, 40
    box = torch.tensor([[20.0, 30, 60, 40]])  # center 40, 35; sides 40, 10
    expected = torch.tensor([[1.0, -0.125, math.log(2), math.log(0.25)]])
    torch.testing.assert_close(DELTAS.encode(box, anchor), expected)


def test_encode_and_decode_equal_torchvision():
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    anchors, boxes = random_boxes(200), random_boxes(200, seed=1)
    torch.testing.assert_close(DELTAS.encode(boxes, anchors), coder.encode_single(boxes, anchors), rtol=1e-5, atol=1e-5)
    deltas = torch.randn(200, 4, generator=torch.Generator().manual_seed(2)) * 3
    deltas[0, 2:] = 50  # clamped
    torch.testing.assert_close(
        DELTAS.decode(deltas, anchors), coder.decode_single(deltas, anchors), rtol=1e-5, atol=1e-3
    )


def test_decode_inverts_encode():
    anchors, boxes = random_boxes(50), random_boxes(4, 50, seed=1)  # a batch and a single set of anchors
    torch.testing.assert_close(DELTAS.decode(DELTAS.encode(boxes, anchors), anchors), boxes, rtol=1e-5, atol=1e-3)


def test_degenerate_boxes_stay_finite():
    anchors = random_boxes(3)
    boxes = torch.tensor([[7.0, 7, 7, 7], [7, 7, 7, 90], [0, 0, 0, 0]])
    assert DELTAS.encode(boxes, anchors).isfinite().all()
    torch.testing.assert_close(DELTAS.decode(DELTAS.encode(boxes, anchors), anchors), boxes, rtol=0, atol=2e-3)
    assert DELTAS.decode(torch.full((3, 4), 1e4), anchors).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_dtype_of_the_boxes(dtype: torch.dtype):
    boxes = random_boxes(4).to(dtype)
    assert DELTAS.encode(boxes, boxes).dtype == DELTAS.decode(boxes, boxes).dtype == dtype


def test_boxes_are_decoded_once_and_keep_their_gradient():
    anchors = random_boxes(3)
    raw = torch.zeros(1, 3, 4, dtype=torch.bfloat16, requires_grad=True)
    predictions = Predictions(torch.zeros(1, 3, 2), raw, Priors(anchors, (3,)), DELTAS)
    with torch.no_grad():
        assert predictions.boxes.dtype == torch.float32  # the first access must not lose the gradient
    torch.testing.assert_close(predictions.boxes[0], anchors)
    assert predictions.boxes is predictions.boxes
    predictions.boxes.sum().backward()
    assert raw.grad.any()
    with torch.inference_mode():
        assert not Predictions(torch.zeros(1, 3, 2), raw.detach(), Priors(anchors, (3,)), DELTAS).boxes.requires_grad


def test_distances_of_a_known_box_in_sides_of_the_prior():
    prior = torch.tensor([[10.0, 20, 18, 36]])  # center 14, 28; sides 8, 16
    box = torch.tensor([[6.0, 32, 30, 60]])  # the center is above the box
    expected = torch.tensor([[1.0, -0.25, 2, 2]])
    torch.testing.assert_close(DISTANCES.encode(box, prior), expected)


def test_distances_equal_torchvision_and_decode_inverts_encode():
    theirs = BoxLinearCoder(normalize_by_size=True)
    priors, boxes = random_boxes(50), random_boxes(4, 50, seed=1)
    encoded = DISTANCES.encode(boxes, priors)
    torch.testing.assert_close(encoded, theirs.encode(priors.expand(4, -1, -1), boxes))
    torch.testing.assert_close(DISTANCES.decode(encoded, priors), boxes, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(DISTANCES.decode(encoded[0], priors), theirs.decode(encoded[0], priors))


def test_a_distribution_has_the_two_values_next_to_the_distance():
    """The distances are clamped to 0..2.99. The reference computes each probability in a loop."""
    coder, priors = DistributionCoder(3), random_boxes(50).double()
    boxes = random_boxes(2, 50, seed=1).double()
    distances = DISTANCES.encode(boxes, priors)
    assert (distances < 0).any() and (distances > 3).any()
    encoded = coder.encode(boxes, priors)
    assert encoded.shape == (2, 50, coder.num_outputs) and coder.num_outputs == 16
    for distance, probabilities in zip(distances.flatten().tolist(), encoded.reshape(-1, 4).tolist(), strict=True):
        clamped = min(max(distance, 0), 2.99)
        expected = [0.0] * 4
        expected[int(clamped)], expected[int(clamped) + 1] = 1 - clamped % 1, clamped % 1
        assert probabilities == pytest.approx(expected, abs=1e-12)


def test_a_distribution_decodes_to_its_expected_value():
    coder, priors = DistributionCoder(16), random_boxes(50)
    raw = torch.randn(2, 50, coder.num_outputs, generator=torch.Generator().manual_seed(2)) * 3
    weights = raw.double().exp().view(2, 50, 4, 17)
    distances = sum(k * weights[..., k] for k in range(17)) / weights.sum(dim=-1)
    expected = DISTANCES.decode(distances, priors).float()
    torch.testing.assert_close(coder.decode(raw, priors), expected, rtol=1e-5, atol=1e-3)
    inside = torch.cat((priors[:, :2] - 5, priors[:, 2:] + 5), dim=-1)  # log of the target probabilities
    torch.testing.assert_close(coder.decode(coder.encode(inside, priors).log(), priors), inside, rtol=1e-5, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(coder.decode(raw, priors), expected, rtol=1e-5, atol=1e-3)
    assert coder.decode(raw.double(), priors.double()).dtype == torch.float64
    assert coder.decode(raw * 1e4, priors).isfinite().all()
