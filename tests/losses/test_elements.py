"""The sums of `elements` equal the results of `split`."""

import copy

import pytest
import torch
from tiny import names_of_the_library

from detector.kernels.reference import binary_targets
from detector.losses import CLASSIFICATION_LOSSES

NUM_CLASSES = 3
LEVELS = (60, 20)
VARIANTS = [(name, {}) for name in names_of_the_library(CLASSIFICATION_LOSSES) if name != "equalized_focal"] + [
    ("equalized_focal", {"num_classes": NUM_CLASSES}),
    ("focal", {"alpha": [0.2, 0.5, 0.9], "class_weights": "inverse_frequency", "class_counts": [9, 3, 1]}),
    ("focal", {"rescale": True}),
    ("cross_entropy", {"alpha": None}),
    ("ghm_c", {"scope": "level", "bins": 7}),
    ("ohem", {"mode": "top_k", "top_k": 11}),
    ("margin_cross_entropy", {"margin": 0.4}),
]


def problem(seed: int, foreground: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits (2, 80, 3) with a large spread, labels with ignored rows, and qualities, NaN in other rows."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(2, sum(LEVELS), NUM_CLASSES, generator=generator)
    labels = torch.randint(-1, NUM_CLASSES + 1, (2, sum(LEVELS)), generator=generator)
    if not foreground:
        labels = labels.where(labels < 0, NUM_CLASSES)
    quality = torch.rand(labels.shape, generator=generator)
    return logits, labels, quality.where((labels >= 0) & (labels < NUM_CLASSES), torch.nan)


def trained(name: str, parameters: dict) -> torch.nn.Module:
    """Return a loss after two training steps, which change its buffers, if there are any."""
    loss = CLASSIFICATION_LOSSES.build(name, **parameters)
    for seed in (10, 11):
        logits, labels, quality = problem(seed)
        loss(logits.requires_grad_(), labels, 5, level_sizes=LEVELS, quality=quality)
    return loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("foreground", [True, False], ids=["objects", "empty"])
@pytest.mark.parametrize(("name", "parameters"), VARIANTS, ids=str)
def test_elements_add_up_to_the_loss(name, parameters, foreground, dtype):
    loss = trained(name, parameters).train()
    buffers = copy.deepcopy(loss.state_dict())
    logits, labels, quality = problem(0, foreground)
    logits = logits.to(dtype)
    elements = loss.elements(logits, labels, level_sizes=LEVELS, quality=quality)
    for key, before in buffers.items():
        assert torch.equal(loss.state_dict()[key], before), f"the call changed {key}"

    assert elements.shape == logits.shape
    assert elements.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (elements[labels < 0] == 0).all()
    targets = binary_targets(labels, NUM_CLASSES)
    sums = torch.stack((elements[targets].sum(), elements[~targets].sum()))
    expected = loss.eval().split(logits, labels, 1, level_sizes=LEVELS, quality=quality)
    torch.testing.assert_close(sums, expected.detach(), rtol=2e-5, atol=1e-6, check_dtype=False)
    assert sums.sum() > 0 or not foreground
