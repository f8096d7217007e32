"""The anchors that each sampler chooses, against loops that choose row by row."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from detector.core.errors import UserError
from detector.core.structures import IGNORED
from detector.losses import ANCHOR_SAMPLERS
from detector.losses.mining import highest, keep_hard_background

K = 3


def draw_labels(foreground: int, background: int, ignored: int, seed: int = 0) -> Tensor:
    """Return the labels of an image in random order."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(K, (foreground,), generator=generator)
    labels = torch.cat((classes, torch.full((background,), K), torch.full((ignored,), IGNORED)))
    return labels[torch.randperm(len(labels), generator=generator)]


def counts(labels: Tensor) -> tuple[int, int]:
    """Return the numbers of foreground and background anchors."""
    return int(((labels >= 0) & (labels < K)).sum()), int((labels == K).sum())


def assert_only_ignores_more(sampled: Tensor, labels: Tensor) -> None:
    """Check that each label is unchanged or ignored."""
    assert sampled.shape == labels.shape and sampled.dtype == labels.dtype
    assert ((sampled == labels) | (sampled == IGNORED)).all()


def test_names_and_needs():
    needs = {name: ANCHOR_SAMPLERS.get(name).needs_logits for name in ("all", "random", "hard_negatives")}
    assert needs == {"all": False, "random": False, "hard_negatives": True}


def test_all_changes_no_label():
    labels = torch.stack([draw_labels(3, 20, 5, seed) for seed in range(4)])
    assert torch.equal(ANCHOR_SAMPLERS.build("all", K)(labels, None), labels)


@pytest.mark.parametrize(
    ("available", "options", "expected"),
    [  # (foreground, background) of an image with 7 ignored anchors
        ((100, 400), {"count": 64, "foreground_fraction": 0.25}, (16, 48)),
        ((10, 400), {"count": 64, "foreground_fraction": 0.25}, (10, 54)),  # background replaces missing foreground
        (
            (100, 20),
            {"count": 64, "foreground_fraction": 0.25},
            (16, 20),
        ),  # foreground does not replace missing background
        ((3, 4), {"count": 64, "foreground_fraction": 0.25}, (3, 4)),
        ((0, 400), {"count": 64, "foreground_fraction": 0.25}, (0, 64)),
        ((100, 0), {"count": 64, "foreground_fraction": 0.25}, (16, 0)),
        ((100, 400), {"count": 5, "foreground_fraction": 0.5}, (2, 3)),
        ((100, 400), {"count": 64, "foreground_fraction": 0.0}, (0, 64)),
        ((100, 400), {"count": 64, "foreground_fraction": 1.0}, (64, 0)),
        ((20, 400), {"count": 64, "foreground_fraction": 1.0}, (20, 44)),
        ((200, 400), {}, (128, 128)),
        ((0, 0), {}, (0, 0)),
    ],
)
def test_random_counts(available: tuple[int, int], options: dict, expected: tuple[int, int]):
    labels = draw_labels(*available, ignored=7)[None]
    sampled = ANCHOR_SAMPLERS.build("random", K, **options)(labels, None)
    assert_only_ignores_more(sampled, labels)
    assert counts(sampled) == expected


@pytest.mark.parametrize(("count", "fraction"), [(7, 0.5), (3, 0.5), (1, 0.5), (1, 1.0), (10, 0.25), (9, 0.9)])
def test_random_foreground_is_torchvisions(count: int, fraction: float):
    """A fraction of 0.5 of 7 is rounded down to 3."""
    labels = draw_labels(50, 50, 3)[None]
    sampled = ANCHOR_SAMPLERS.build("random", K, count=count, foreground_fraction=fraction)(labels, None)
    as_theirs = torch.where(labels == K, 0, torch.where(labels >= 0, 1, -1))
    foreground, background = BalancedPositiveNegativeSampler(count, fraction)([*as_theirs])
    assert counts(sampled) == (int(foreground[0].sum()), int(background[0].sum()))
    assert counts(sampled)[0] <= fraction * count


def test_random_counts_image_by_image():
    available = [(0, 60), (2, 58), (30, 30), (60, 0)]
    labels = torch.stack([draw_labels(*each, ignored=5) for each in available])
    sampled = ANCHOR_SAMPLERS.build("random", K, count=20, foreground_fraction=0.5)(labels, None)
    assert [counts(image) for image in sampled] == [(0, 20), (2, 18), (10, 10), (10, 0)]


def test_random_chooses_each_anchor_equally_often_and_pairs_independently():
    """In 4000 equal images, the count of choices of an anchor is binomial: within 5 standard deviations of its mean."""
    n, labels = 4000, draw_labels(6, 24, 4)
    torch.manual_seed(0)
    sampled = ANCHOR_SAMPLERS.build("random", K, count=12, foreground_fraction=0.25)(labels.repeat(n, 1), None)
    is_chosen = (sampled != IGNORED).double()
    for group, p in ((labels < K, 3 / 6), (labels == K, 9 / 24)):
        group = group & (labels != IGNORED)
        frequency = is_chosen[:, group].mean(dim=0)
        assert (frequency - p).abs().max() < 5 * math.sqrt(p * (1 - p) / n)
        assert frequency.std() > 0.2 * math.sqrt(p * (1 - p) / n)  # independent draws, not a rotation
    first, second = is_chosen[:, labels == K][:, :2].unbind(1)
    p = 9 / 24 * 8 / 23  # without replacement
    assert abs((first * second).mean() - p) < 5 * math.sqrt(p * (1 - p) / n)
    assert not is_chosen[:, labels == IGNORED].any()


def test_random_follows_the_seed():
    labels = torch.stack([draw_labels(20, 200, 5, seed) for seed in range(2)])
    sampler = ANCHOR_SAMPLERS.build("random", K, count=32)
    torch.manual_seed(3)
    first, second = sampler(labels, None), sampler(labels, None)
    torch.manual_seed(3)
    assert torch.equal(sampler(labels, None), first)
    assert not torch.equal(first, second)


def hard_by_loop(labels: Tensor, logits: Tensor, ratio: float) -> Tensor:
    sampled = labels.clone()
    for image, scores in zip(sampled, logits.amax(dim=-1), strict=True):
        allowed = math.floor(counts(image)[0] * ratio)
        background = [row for row in range(len(image)) if image[row] == K]
        for row in sorted(background, key=lambda row: -float(scores[row]))[allowed:]:  # noqa: B023
            image[row] = IGNORED
    return sampled


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 2.9, 3.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_hard_negatives_are_those_of_highest_score(ratio: float, dtype: torch.dtype):
    """bf16 scores have ties. The first anchors of a tie count."""
    available = [(0, 60), (1, 59), (7, 53), (30, 30), (60, 0)]
    labels = torch.stack([draw_labels(*each, ignored=9, seed=i) for i, each in enumerate(available)])
    logits = torch.randn(5, 69, K, generator=torch.Generator().manual_seed(1)).to(dtype)
    sampled = ANCHOR_SAMPLERS.build("hard_negatives", K, ratio=ratio)(labels, logits)
    assert torch.equal(sampled, hard_by_loop(labels, logits, ratio))
    assert_only_ignores_more(sampled, labels)
    foreground = (labels >= 0) & (labels < K)
    assert torch.equal(sampled[foreground], labels[foreground])
    expected = [(fg, min(bg, math.floor(fg * ratio))) for fg, bg in available]
    assert [counts(image) for image in sampled] == expected


def test_hard_negatives_by_hand_at_the_default_of_three_to_one():
    labels = torch.tensor([[0, K, K, K, K, K, IGNORED], [K] * 7])
    top = torch.tensor([0.0, 5, -1, 3, 4, 2, 9]).expand(2, 7)
    logits = torch.stack((top - 1, top, top - 20), dim=-1)  # the highest class score of an anchor counts
    expected = [[0, K, IGNORED, K, K, IGNORED, IGNORED], [IGNORED] * 7]
    assert ANCHOR_SAMPLERS.build("hard_negatives", K)(labels, logits).tolist() == expected


def test_hard_negatives_give_no_gradient_and_do_not_change_their_input():
    labels = draw_labels(2, 20, 2)[None]
    before = labels.clone()
    logits = torch.randn(1, 24, K, generator=torch.Generator().manual_seed(0), requires_grad=True)
    sampled = ANCHOR_SAMPLERS.build("hard_negatives", K)(labels, logits)
    assert torch.equal(labels, before) and not torch.equal(sampled, before) and not sampled.requires_grad


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("random", {"count": 0}),
        ("random", {"foreground_fraction": 1.5}),
        ("hard_negatives", {"ratio": 0.0}),
        ("hard_negatives", {"ratio": -1.0}),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict):
    with pytest.raises(UserError) as error:
        ANCHOR_SAMPLERS.build(name, K, **options)
    assert error.value.problem.startswith(f"{name}.{next(iter(options))}: ")


@pytest.mark.parametrize("count", [0, 1, 3, 100, torch.tensor([[0, 2], [5, 100]])], ids=str)
def test_highest_against_sorting(count: Tensor | int):
    generator = torch.Generator().manual_seed(2)
    scores = torch.randint(8, (2, 2, 12), generator=generator).float()  # with ties; the first row of a tie is chosen
    is_candidate = torch.rand(2, 2, 12, generator=generator) < 0.6
    expected = torch.zeros_like(is_candidate)
    for i in range(2):
        for j in range(2):
            rows = [row for row in range(12) if is_candidate[i, j, row]]
            n = int(torch.as_tensor(count).expand(2, 2)[i, j])
            expected[i, j, sorted(rows, key=lambda row: -scores[i, j, row])[:n]] = True  # noqa: B023
    assert torch.equal(highest(scores, is_candidate, count), expected)


def test_the_lowest_score_can_be_chosen():
    """The candidate has the logit -inf, after rows that are no candidates."""
    scores, is_candidate = (
        torch.tensor([-torch.inf, 1, -torch.inf, -torch.inf]),
        torch.tensor([False, True, True, True]),
    )
    assert highest(scores, is_candidate, 2).tolist() == [False, True, True, False]


def test_highest_without_rows_or_candidates():
    assert highest(torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool), 5).shape == (3, 0)
    assert not highest(torch.ones(4), torch.zeros(4, dtype=torch.bool), 2).any()


def test_keep_hard_background_takes_any_number_of_dimensions():
    labels = torch.stack([draw_labels(4, 30, 3, seed) for seed in range(6)])
    scores = torch.randn(6, 37, generator=torch.Generator().manual_seed(4))
    flat = keep_hard_background(labels, scores, K, 2.0)
    assert torch.equal(flat, hard_by_loop(labels, scores[..., None], 2.0))
    assert torch.equal(keep_hard_background(labels.view(2, 3, 37), scores.view(2, 3, 37), K, 2.0).view(6, 37), flat)
    assert torch.equal(keep_hard_background(labels[0], scores[0], K, 2.0), flat[0])
