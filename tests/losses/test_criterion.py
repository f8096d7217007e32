"""What the criterion adds to the losses: targets, normalisers, accumulation."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detector.geometry.boxes import decode
from detector.losses import ANCHOR_SAMPLERS, BOX_LOSSES, CLASSIFICATION_LOSSES
from detector.losses.base import BoxLoss
from detector.losses.criterion import Criterion, Normaliser
from detector.structures import IGNORED, Predictions, Targets

K = 3
ANCHORS = torch.tensor([[0.0, 0, 10, 20], [10, 0, 30, 10], [0, 0, 40, 40], [5, 5, 15, 15], [20, 20, 60, 30]])


def make_criterion(
    classification: str = "cross_entropy", box: str = "l1", normaliser: Normaliser = "global", box_weight: float = 1.0
) -> Criterion:
    return Criterion(
        CLASSIFICATION_LOSSES.build(classification),
        BOX_LOSSES.build(box),
        ANCHOR_SAMPLERS.build("all", K),
        num_classes=K,
        box_weight=box_weight,
        normaliser=normaliser,
    )


def hand_made() -> tuple[Predictions, Targets]:
    """Two images. Every logit is 0, so each of a counted anchor's K cross entropies is log 2. Image 0: one foreground
    anchor of five; image 1: three foreground anchors, one ignored. Each ground truth is its anchor moved by half its
    width: the offset is (0.5, 0, 0, 0), its L1 distance from a prediction of 0 is 0.5."""
    labels = torch.tensor([[0, K, K, K, K], [2, 1, 0, IGNORED, K]])
    widths = ANCHORS[:, 2] - ANCHORS[:, 0]
    boxes = ANCHORS + 0.5 * torch.stack((widths, 0 * widths, widths, 0 * widths), dim=1)
    zeros = torch.zeros(2, 5, K, requires_grad=True), torch.zeros(2, 5, 4, requires_grad=True)
    return Predictions(*zeros, ANCHORS, (5,)), Targets(labels, boxes.expand(2, 5, 4))


@pytest.mark.parametrize(
    ("normaliser", "cls", "box"),
    [
        # 9 counted anchors of 3 classes, 4 foreground anchors
        ("global", 27 * math.log(2) / 4, 4 * 0.5 / 4),
        ("local", 27 * math.log(2) / 4, 4 * 0.5 / 4),
        # the mean of 15 log 2 / 1 and 12 log 2 / 3
        ("image", (15 + 4) / 2 * math.log(2), (0.5 / 1 + 1.5 / 3) / 2),
    ],
)
def test_normalisers_on_numbers_by_hand(normaliser: Normaliser, cls: float, box: float):
    predictions, targets = hand_made()
    criterion = make_criterion(normaliser=normaliser, box_weight=3.0)
    num_fg = criterion.count_foreground([targets])
    assert num_fg == 4 and num_fg.dtype == torch.float32
    terms = criterion(predictions, targets, num_fg)
    assert terms["cls"].item() == pytest.approx(cls, rel=1e-6)
    assert terms["box"].item() == pytest.approx(3 * box, rel=1e-6)
    assert (terms["cls_fg"] + terms["cls_bg"]).item() == pytest.approx(cls, rel=1e-6)
    fg = {"image": (1 / 1 + 3 / 3) / 2}.get(normaliser, 4 / 4) * math.log(2)
    assert terms["cls_fg"].item() == pytest.approx(fg, rel=1e-6)
    assert terms["cls"].requires_grad and not terms["cls_fg"].requires_grad


@pytest.mark.slow
def test_global_counts_over_ranks_and_local_does_not(tmp_path: Path):
    """Two processes; rank 0 has 1 foreground anchor, rank 1 has 3."""
    script = f"""
import sys
import torch
import torch.distributed as dist
from detector.losses import ANCHOR_SAMPLERS, BOX_LOSSES, CLASSIFICATION_LOSSES
from detector.losses.criterion import Criterion
from detector.structures import Targets

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://{tmp_path}/rendezvous", rank=rank, world_size=2)
labels = torch.full((2, 4), 3)
labels[0, : 1 + 2 * rank] = 0
for normaliser in ("global", "local"):
    parts = CLASSIFICATION_LOSSES.build("focal"), BOX_LOSSES.build("l1"), ANCHOR_SAMPLERS.build("all", 3)
    criterion = Criterion(*parts, num_classes=3, box_weight=1.0, normaliser=normaliser)
    print(int(criterion.count_foreground([Targets(labels, torch.zeros(2, 4, 4))])), end=" ")
dist.destroy_process_group()
"""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=60)[0].split() for process in ranks]
    assert said == [[b"4", b"1"], [b"4", b"3"]]


def random_step() -> tuple[Tensor, Tensor, Targets]:
    """Logits, deltas and targets of four images with 0, 1, 3 and 5 foreground anchors of 40."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.full((4, 40), K)
    labels[:, -3:] = IGNORED
    for image, n in enumerate((0, 1, 3, 5)):
        labels[image, :n] = torch.randint(K, (n,), generator=generator)
    boxes = ANCHORS.repeat(8, 1) + torch.rand(4, 40, 4, generator=generator) * 4
    logits = torch.randn(4, 40, K, generator=generator)
    return logits, torch.randn(4, 40, 4, generator=generator), Targets(labels, boxes)


def gradients(criterion: Criterion, parts: list[slice]) -> tuple[float, Tensor, Tensor]:
    """Loss and gradient of a step whose four images come in these batches."""
    logits, deltas, targets = random_step()
    logits.requires_grad_()
    deltas.requires_grad_()
    batches = [Targets(targets.labels[part], targets.boxes[part]) for part in parts]
    num_fg = criterion.count_foreground(batches)
    loss = 0.0
    for part, batch in zip(parts, batches, strict=True):
        predictions = Predictions(logits[part], deltas[part], ANCHORS.repeat(8, 1), (30, 10))
        terms = criterion(predictions, batch, num_fg, num_batches=len(parts))
        (terms["cls"] + terms["box"]).backward()
        loss += (terms["cls"] + terms["box"]).item()
    return loss, logits.grad, deltas.grad


WHOLE, HALVES = [slice(0, 4)], [slice(0, 2), slice(2, 4)]


@pytest.mark.parametrize("normaliser", ["global", "local", "image"])
def test_accumulated_batches_are_the_whole_batch(normaliser: Normaliser):
    criterion = make_criterion("focal", normaliser=normaliser)
    for whole, halves in zip(gradients(criterion, WHOLE), gradients(criterion, HALVES), strict=True):
        torch.testing.assert_close(halves, whole, rtol=1e-5, atol=1e-7)


def test_self_normalised_losses_average_over_accumulated_batches():
    def criterion() -> Criterion:
        losses = CLASSIFICATION_LOSSES.build("ghm_c", momentum=0.0), BOX_LOSSES.build("ghm_r", momentum=0.0)
        return Criterion(*losses, ANCHOR_SAMPLERS.build("all", K), num_classes=K, box_weight=1.0, normaliser="global")

    loss, logits, deltas = gradients(criterion(), HALVES)
    alone = [gradients(criterion(), [part]) for part in HALVES]
    assert loss == pytest.approx(sum(one[0] for one in alone) / 2)
    torch.testing.assert_close(logits, sum(one[1] for one in alone if one[1] is not None) / 2)
    torch.testing.assert_close(deltas, sum(one[2] for one in alone if one[2] is not None) / 2)


@pytest.mark.parametrize("normaliser", ["global", "local", "image"])
@pytest.mark.parametrize(("classification", "box"), [("focal", "smooth_l1"), ("ghm_c", "ghm_r")])
def test_no_foreground(classification: str, box: str, normaliser: Normaliser):
    logits, deltas, targets = random_step()
    logits.requires_grad_()
    deltas.requires_grad_()
    targets = Targets(torch.full_like(targets.labels, K), torch.zeros_like(targets.boxes))
    criterion = make_criterion(classification, box, normaliser)
    num_fg = criterion.count_foreground([targets])
    terms = criterion(Predictions(logits, deltas, ANCHORS.repeat(8, 1), (30, 10)), targets, num_fg)
    (terms["cls"] + terms["box"]).backward()
    assert num_fg == 0 and terms["box"] == 0 and terms["cls_fg"] == 0
    assert terms["cls"].isfinite() and terms["cls"] > 0
    assert logits.grad.isfinite().all() and logits.grad.any()
    assert not deltas.grad.any()


def test_a_loss_on_boxes_gets_them_decoded():
    class CornerDistance(BoxLoss):
        on_boxes = True

        def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
            return (predicted - target).abs()

    logits, deltas, targets = random_step()
    criterion = Criterion(
        CLASSIFICATION_LOSSES.build("focal"),
        CornerDistance(),
        ANCHOR_SAMPLERS.build("all", K),
        num_classes=K,
        box_weight=1.0,
        normaliser="global",
    )
    anchors = ANCHORS.repeat(8, 1)
    terms = criterion(Predictions(logits, deltas, anchors, (40,)), targets, criterion.count_foreground([targets]))
    foreground = (targets.labels != K) & (targets.labels != IGNORED)
    distance = (decode(deltas, anchors) - targets.boxes)[foreground].abs().sum()
    torch.testing.assert_close(terms["box"], distance / 9)


def test_half_precision_predictions_give_fp32_losses():
    predictions, targets = hand_made()
    half = Predictions(predictions.logits.bfloat16(), predictions.deltas.bfloat16(), ANCHORS, (5,))
    criterion = make_criterion("focal")
    terms = criterion(half, targets, criterion.count_foreground([targets]))
    assert terms["cls"].dtype == terms["box"].dtype == torch.float32
