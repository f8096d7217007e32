"""The criterion: targets, samplers, quality, normalizers and accumulation."""

import math
from pathlib import Path

import pytest
import torch
from criteria import criterion_of_losses, make_targets
from ranks import run_ranks
from tiny import tiny_trainer
from torch import Tensor
from torchvision.ops import box_iou

from detector.core.structures import IGNORED, Predictions, Priors, Targets
from detector.geometry.coders import DeltaCoder
from detector.losses import BOX_LOSSES, CLASSIFICATION_LOSSES
from detector.losses.base import BoxLoss
from detector.losses.criterion import Criterion

DELTAS = DeltaCoder()

K = 3
ANCHORS = torch.tensor([[0.0, 0, 10, 20], [10, 0, 30, 10], [0, 0, 40, 40], [5, 5, 15, 15], [20, 20, 60, 30]])


def make_criterion(
    classification: str = "cross_entropy",
    box: str = "l1",
    normaliser: str = "global",
    box_weight: float = 1.0,
    sampler: str = "all",
    **sampling: float,
) -> Criterion:
    return criterion_of_losses(
        CLASSIFICATION_LOSSES.build(classification),
        BOX_LOSSES.build(box),
        K,
        normaliser=normaliser,
        box_weight=box_weight,
        sampler=sampler,
        **sampling,
    )


def hand_made() -> tuple[Predictions, Targets]:
    """Return the predictions and targets of two images.

    Every logit is 0, so each of the K cross entropies of an anchor that counts is log 2. Image 0 has five anchors, one
    of them foreground. Image 1 has three foreground anchors and an ignored anchor. Each ground truth is its anchor,
    moved by half its width. So the offset is (0.5, 0, 0, 0), and its L1 distance from a prediction of 0 is 0.5.
    """
    labels = torch.tensor([[0, K, K, K, K], [2, 1, 0, IGNORED, K]])
    widths = ANCHORS[:, 2] - ANCHORS[:, 0]
    boxes = ANCHORS + 0.5 * torch.stack((widths, 0 * widths, widths, 0 * widths), dim=1)
    zeros = torch.zeros(2, 5, K, requires_grad=True), torch.zeros(2, 5, 4, requires_grad=True)
    return Predictions(*zeros, Priors(ANCHORS, (5,)), DELTAS), make_targets(labels, boxes.expand(2, 5, 4))


@pytest.mark.parametrize(
    ("normaliser", "cls", "box"),
    [
        # 9 counted anchors of 3 classes, 4 foreground anchors
        ("global", 27 * math.log(2) / 4, 4 * 0.5 / 4),
        ("local", 27 * math.log(2) / 4, 4 * 0.5 / 4),
        ("ema", 27 * math.log(2) / 4, 4 * 0.5 / 4),  # the mean of the first step is its count
        # the mean of 15 log 2 / 1 and 12 log 2 / 3
        ("image", (15 + 4) / 2 * math.log(2), (0.5 / 1 + 1.5 / 3) / 2),
    ],
)
def test_normalisers_on_numbers_by_hand(normaliser: str, cls: float, box: float):
    predictions, targets = hand_made()
    criterion = make_criterion(normaliser=normaliser, box_weight=3.0)
    num_fg = criterion.count_foreground([targets])
    assert num_fg == 4 and num_fg.dtype == torch.float32
    terms = criterion(predictions, targets, criterion.normalise(num_fg))
    assert terms.weighted["cls"].item() == pytest.approx(cls, rel=1e-6)
    assert terms.weighted["box"].item() == pytest.approx(3 * box, rel=1e-6)
    assert (terms.parts["cls_fg"] + terms.parts["cls_bg"]).item() == pytest.approx(cls, rel=1e-6)
    fg = {"image": (1 / 1 + 3 / 3) / 2}.get(normaliser, 4 / 4) * math.log(2)
    assert terms.parts["cls_fg"].item() == pytest.approx(fg, rel=1e-6)
    assert terms.weighted["cls"].requires_grad and not terms.parts["cls_fg"].requires_grad


EMA_COUNTS = [4.0, 10.0, 1.0, 0.0]
EMA_MEANS = [  # momentum 0.9: sum of 0.9^age count / sum of 0.9^age
    4,
    (0.9 * 4 + 10) / 1.9,
    (0.81 * 4 + 0.9 * 10 + 1) / 2.71,
    (0.729 * 4 + 0.81 * 10 + 0.9 * 1 + 0) / 3.439,
]


def means(criterion: Criterion, counts: list[float]) -> list[float]:
    return [criterion.normalise(torch.tensor(count)).item() for count in counts]


def test_ema_is_the_running_mean_of_the_counts_without_bias():
    assert means(make_criterion(normaliser="ema"), EMA_COUNTS) == pytest.approx(EMA_MEANS, rel=1e-6)
    assert means(make_criterion(normaliser="ema"), [7.0] * 50) == pytest.approx([7.0] * 50, rel=1e-5)


def test_ema_goes_with_the_state_dict():
    first, second = make_criterion(normaliser="ema"), make_criterion(normaliser="ema")
    means(first, EMA_COUNTS[:2])
    second.load_state_dict(first.state_dict())
    assert means(second, EMA_COUNTS[2:]) == means(first, EMA_COUNTS[2:]) == pytest.approx(EMA_MEANS[2:], rel=1e-6)
    for other in ("global", "local", "image"):
        assert not make_criterion(normaliser=other).state_dict()


def test_ema_learns_in_training_mode_only():
    criterion = make_criterion(normaliser="ema")
    means(criterion, EMA_COUNTS[:2])
    before = {name: value.clone() for name, value in criterion.state_dict().items()}
    assert means(criterion.eval(), [1000.0, 3.0]) == pytest.approx([EMA_MEANS[1]] * 2, rel=1e-6)
    assert before.keys() == criterion.state_dict().keys() and before
    assert all(torch.equal(value, before[name]) for name, value in criterion.state_dict().items())
    assert means(criterion.train(), EMA_COUNTS[2:]) == pytest.approx(EMA_MEANS[2:], rel=1e-6)


@pytest.mark.parametrize("normaliser", ["global", "local", "image"])
def test_the_other_normalisers_have_no_state(normaliser: str):
    minimum = 1 if normaliser == "local" else 0  # the count of a rank is clamped before the ranks are averaged
    assert means(make_criterion(normaliser=normaliser), EMA_COUNTS) == [max(n, minimum) for n in EMA_COUNTS]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_training_step_updates_ema_once_for_any_number_of_batches(accumulation: int, tmp_path: Path):
    overrides = ("loss.normaliser=ema", f"train.accumulation={accumulation}", "train.batch_size=2")
    trainer = tiny_trainer(tmp_path, *overrides)
    batches, counts = iter(trainer.loader), []
    for _ in range(2):
        counts.append(trainer.step([next(batches) for _ in range(accumulation)])["num_fg"].item())
    assert trainer.criterion.steps == 2 and counts[0] != counts[1]
    assert trainer.criterion.normalise(torch.tensor(5.0)).item() == pytest.approx(
        (0.81 * counts[0] + 0.9 * counts[1] + 5) / 2.71, rel=1e-6
    )


def test_ema_divides_the_loss():
    predictions, targets = hand_made()
    criterion = make_criterion(normaliser="ema")
    means(criterion, [10.0])
    terms = criterion(predictions, targets, criterion.normalise(criterion.count_foreground([targets])))
    num_fg = (0.9 * 10 + 4) / 1.9
    assert terms.weighted["cls"].item() == pytest.approx(27 * math.log(2) / num_fg, rel=1e-6)
    assert terms.weighted["box"].item() == pytest.approx(4 * 0.5 / num_fg, rel=1e-6)


@pytest.mark.parametrize(
    ("normaliser", "sampler", "sampling", "num_fg", "rows", "cls", "box"),
    [
        # one foreground and one background anchor in each image
        ("global", "random", {"count": 2}, 2, 4, 12 / 2, 2 / 2),
        ("image", "random", {"count": 2}, 2, 4, (6 / 1 + 6 / 1) / 2, (1 + 1) / 2),
        # one background anchor in each image
        ("global", "random", {"count": 1}, 0, 2, 6 / 1, 0),
        # 1 + 1 and 3 + 1 anchors: image 1 has a single background anchor
        ("global", "hard_negatives", {"ratio": 1.0}, 4, 6, 18 / 4, 4 / 4),
        ("image", "hard_negatives", {"ratio": 1.0}, 4, 6, (6 / 1 + 12 / 3) / 2, (1 + 1) / 2),
    ],
)
def test_anchors_that_a_sampler_ignores_do_not_count_in_the_loss_and_its_normaliser(
    normaliser: str, sampler: str, sampling: dict, num_fg: int, rows: int, cls: float, box: float
):
    predictions, targets = hand_made()
    criterion = make_criterion(normaliser=normaliser, sampler=sampler, **sampling)
    sampled = criterion.sample(targets)
    assert criterion.count_foreground([sampled]) == num_fg
    terms = criterion(predictions, sampled, criterion.count_foreground([sampled]))
    assert terms.weighted["cls"].item() == pytest.approx(cls * math.log(2), rel=1e-6)
    assert terms.weighted["box"].item() == pytest.approx(box * 0.5, rel=1e-6)
    terms.weighted["cls"].backward()
    assert int(predictions.logits.grad.any(dim=-1).sum()) == rows


@pytest.mark.slow
def test_global_and_ema_count_over_ranks_and_local_does_not():
    """Rank 0 has 1 foreground anchor and rank 1 has 3. In the second step they have 2 and 6."""
    script = """
import torch
from detector.core.distributed import process_group, rank
from detector.losses import ANCHOR_SAMPLERS, BOX_LOSSES, CLASSIFICATION_LOSSES
from detector.losses.criterion import Criterion
from detector.losses.settings import LossSettings
from detector.core.structures import Targets

with process_group(torch.device("cpu")):
    labels = torch.full((2, 4), 3)
    labels[0, : 1 + 2 * rank()] = 0
    targets = Targets(labels, torch.zeros(2, 4, 4), torch.zeros_like(labels))
    for normaliser in ("global", "local", "ema"):
        settings, losses = LossSettings(normaliser=normaliser), [BOX_LOSSES.build("l1")]
        sampler = ANCHOR_SAMPLERS.build("all", 3)
        criterion = Criterion(settings, CLASSIFICATION_LOSSES.build("focal"), losses, sampler, 3)
        for batches in (1, 2):
            print(f"{criterion.normalise(criterion.count_foreground([targets] * batches)):.4f}", end=" ")
"""
    mean = f"{(0.9 * 4 + 8) / 1.9:.4f}"
    for num_fg, output in zip((1, 3), run_ranks(script, 2), strict=True):
        # times the two ranks, because their losses are added
        local = [f"{2 * num_fg}.0000", f"{4 * num_fg}.0000"]
        assert output.split() == ["4.0000", "8.0000", *local, "4.0000", mean]


def random_step() -> tuple[Tensor, Tensor, Targets]:
    """Return logits, offsets and targets of four images with 40 anchors, 0, 1, 3 and 5 of them foreground."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.full((4, 40), K)
    labels[:, -3:] = IGNORED
    for image, n in enumerate((0, 1, 3, 5)):
        labels[image, :n] = torch.randint(K, (n,), generator=generator)
    boxes = ANCHORS.repeat(8, 1) + torch.rand(4, 40, 4, generator=generator) * 4
    logits = torch.randn(4, 40, K, generator=generator)
    return logits, torch.randn(4, 40, 4, generator=generator), make_targets(labels, boxes)


def gradients(criterion: Criterion, parts: list[slice]) -> tuple[float, Tensor, Tensor]:
    """Return the loss and the gradients of a step whose four images are in these batches."""
    logits, deltas, targets = random_step()
    logits.requires_grad_()
    deltas.requires_grad_()
    batches = [make_targets(targets.labels[part], targets.boxes[part]) for part in parts]
    num_fg = criterion.normalise(criterion.count_foreground(batches))
    loss = 0.0
    for part, batch in zip(parts, batches, strict=True):
        predictions = Predictions(logits[part], deltas[part], Priors(ANCHORS.repeat(8, 1), (30, 10)), DELTAS)
        terms = criterion(predictions, batch, num_fg, num_batches=len(parts))
        (terms.weighted["cls"] + terms.weighted["box"]).backward()
        loss += (terms.weighted["cls"] + terms.weighted["box"]).item()
    return loss, logits.grad, deltas.grad


FULL, HALVES = [slice(0, 4)], [slice(0, 2), slice(2, 4)]


@pytest.mark.parametrize("normaliser", ["global", "local", "image", "ema"])
def test_accumulated_batches_equal_the_full_batch(normaliser: str):
    criteria = [make_criterion("focal", normaliser=normaliser) for _ in range(2)]
    for criterion in criteria:
        criterion.normalise(torch.tensor(30.0))  # the history of ema
    for full, halves in zip(gradients(criteria[0], FULL), gradients(criteria[1], HALVES), strict=True):
        torch.testing.assert_close(halves, full, rtol=1e-5, atol=1e-7)


def test_self_normalised_losses_average_over_accumulated_batches():
    def criterion() -> Criterion:
        losses = CLASSIFICATION_LOSSES.build("ghm_c", momentum=0.0), BOX_LOSSES.build("ghm_r", momentum=0.0)
        return criterion_of_losses(*losses, K)

    loss, logits, deltas = gradients(criterion(), HALVES)
    single = [gradients(criterion(), [part]) for part in HALVES]
    assert loss == pytest.approx(sum(step[0] for step in single) / 2)
    torch.testing.assert_close(logits, sum(step[1] for step in single if step[1] is not None) / 2)
    torch.testing.assert_close(deltas, sum(step[2] for step in single if step[2] is not None) / 2)


@pytest.mark.parametrize("normaliser", ["global", "local", "image", "ema"])
@pytest.mark.parametrize(("classification", "box"), [("focal", "smooth_l1"), ("ghm_c", "ghm_r")])
def test_no_foreground(classification: str, box: str, normaliser: str):
    logits, deltas, targets = random_step()
    logits.requires_grad_()
    deltas.requires_grad_()
    targets = make_targets(torch.full_like(targets.labels, K), torch.zeros_like(targets.boxes))
    criterion = make_criterion(classification, box, normaliser)
    num_fg = criterion.normalise(criterion.count_foreground([targets]))
    terms = criterion(Predictions(logits, deltas, Priors(ANCHORS.repeat(8, 1), (30, 10)), DELTAS), targets, num_fg)
    (terms.weighted["cls"] + terms.weighted["box"]).backward()
    assert num_fg == (normaliser == "local") and terms.weighted["box"] == 0 and terms.parts["cls_fg"] == 0
    assert terms.weighted["cls"].isfinite() and terms.weighted["cls"] > 0
    assert logits.grad.isfinite().all() and logits.grad.any()
    assert not deltas.grad.any()


def test_a_loss_on_boxes_gets_decoded_boxes():
    class CornerDistance(BoxLoss):
        on_boxes = True

        def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
            return (predicted - target).abs()

    logits, deltas, targets = random_step()
    criterion = criterion_of_losses(CLASSIFICATION_LOSSES.build("focal"), CornerDistance(), K)
    anchors = ANCHORS.repeat(8, 1)
    terms = criterion(
        Predictions(logits, deltas, Priors(anchors, (40,)), DELTAS), targets, criterion.count_foreground([targets])
    )
    foreground = (targets.labels != K) & (targets.labels != IGNORED)
    distance = (DELTAS.decode(deltas, anchors) - targets.boxes)[foreground].abs().sum()
    torch.testing.assert_close(terms.weighted["box"], distance / 9)


def shifted_predictions() -> tuple[Predictions, Targets]:
    """Return `hand_made`, with the boxes of image 0 predicted half way to the truth.

    Their IoU is 0.75 / 1.25 = 0.6. The other boxes are predicted at their anchors, with an IoU of 0.5 / 1.5 = 1/3.
    """
    predictions, targets = hand_made()
    with torch.no_grad():
        predictions.raw[0, :, 0] = 0.25
    return predictions, targets


@pytest.mark.parametrize(
    ("normaliser", "expected"),
    [  # |y - 1/2|^2 log 2 for each of 15 elements of image 0 (1 foreground) and 12 elements of image 1 (3 foreground)
        ("global", (0.1**2 + 3 / 6**2 + (14 + 9) / 4) / 4),
        ("image", ((0.1**2 + 14 / 4) / 1 + (3 / 6**2 + 9 / 4) / 3) / 2),
    ],
)
def test_quality_is_the_iou_of_the_predicted_box_with_its_truth(normaliser: str, expected: float):
    predictions, targets = shifted_predictions()
    criterion = make_criterion("quality_focal", normaliser=normaliser)
    terms = criterion(predictions, targets, criterion.count_foreground([targets]))
    assert terms.weighted["cls"].item() == pytest.approx(expected * math.log(2), rel=1e-5)
    terms.weighted["cls"].backward()
    assert predictions.raw.grad is None  # no gradient goes through the quality to the boxes


@pytest.mark.parametrize("normaliser", ["global", "image"])
@pytest.mark.parametrize("box", ["l1", "giou"])
@pytest.mark.parametrize("name", ["quality_focal", "varifocal", "rank_sort"])
def test_every_quality_loss_gets_the_quality_with_any_box_loss(name: str, box: str, normaliser: str):
    logits, deltas, targets = random_step()
    anchors = ANCHORS.repeat(8, 1)
    quality = torch.stack(
        [box_iou(*image).diag() for image in zip(DELTAS.decode(deltas, anchors), targets.boxes, strict=True)]
    )
    criterion, loss = make_criterion(name, box, normaliser), CLASSIFICATION_LOSSES.build(name)
    terms = criterion(
        Predictions(logits, deltas, Priors(anchors, (40,)), DELTAS), targets, criterion.count_foreground([targets])
    )
    if normaliser == "global" or loss.self_normalised:
        expected = loss(logits, targets.labels, 9, quality=quality)
    else:
        images = zip(logits, targets.labels, (0, 1, 3, 5), quality, strict=True)
        expected = sum(loss(*image, quality=q) for *image, q in images) / 4
    torch.testing.assert_close(terms.weighted["cls"], expected, rtol=1e-5, atol=0)


def test_half_precision_predictions_give_fp32_losses():
    predictions, targets = hand_made()
    half = Predictions(predictions.logits.bfloat16(), predictions.raw.bfloat16(), Priors(ANCHORS, (5,)), DELTAS)
    criterion = make_criterion("focal")
    terms = criterion(half, targets, criterion.count_foreground([targets]))
    assert terms.weighted["cls"].dtype == terms.weighted["box"].dtype == torch.float32


@pytest.mark.parametrize(("classification", "box"), [("ghm_c", "ghm_r"), ("rank_sort", "ghm_r")])
def test_image_does_not_change_self_normalised_losses(classification: str, box: str):
    by_image, by_step = (gradients(make_criterion(classification, box, n), FULL) for n in ("image", "global"))
    assert by_image[0] == by_step[0]
    assert torch.equal(by_image[1], by_step[1]) and torch.equal(by_image[2], by_step[2])


@pytest.mark.parametrize("normaliser", ["global", "local", "image", "ema"])
@pytest.mark.parametrize(("classification", "box"), [("focal", "smooth_l1"), ("ghm_c", "ghm_r"), ("rank_sort", "giou")])
@pytest.mark.parametrize("sampler", ["all", "random", "hard_negatives"])
@pytest.mark.parametrize(("num_images", "num_anchors"), [(0, 5), (2, 0), (0, 0)])
def test_without_images_or_anchors(
    num_images: int, num_anchors: int, sampler: str, classification: str, box: str, normaliser: str
):
    criterion = make_criterion(classification, box, normaliser, sampler=sampler)
    logits, deltas = (torch.zeros(num_images, num_anchors, n, requires_grad=True) for n in (K, 4))
    targets = make_targets(torch.full((num_images, num_anchors), K), torch.zeros(num_images, num_anchors, 4))
    targets = criterion.sample(targets)
    predictions = Predictions(logits, deltas, Priors(ANCHORS[:num_anchors], (num_anchors,)), DELTAS)
    terms = criterion(predictions, targets, criterion.normalise(criterion.count_foreground([targets])))
    assert [value.item() for value in (terms.weighted | terms.parts).values()] == [0, 0, 0, 0]
    (terms.weighted["cls"] + terms.weighted["box"]).backward()
    assert logits.grad.shape == logits.shape and deltas.grad.shape == deltas.shape
