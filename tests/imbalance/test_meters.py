"""The meters against loops over single elements, which follow the docstring of `read`."""

import math

import pytest
import torch

from detector.imbalance.meters import gradient_sums, measure, meter_names, read, warnings
from detector.losses import CLASSIFICATION_LOSSES

NUM_CLASSES = 3
LEVELS = (40, 12)
NAMES = meter_names(["P3", "P4"], ["a", "b", "c"])


def reading(seed: int, foreground: bool = True):
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(2, sum(LEVELS), NUM_CLASSES, generator=generator)).requires_grad_()
    labels = torch.randint(-1, NUM_CLASSES + 1, (2, sum(LEVELS)), generator=generator)
    labels = labels if foreground else labels.where(labels < 0, NUM_CLASSES)
    loss = CLASSIFICATION_LOSSES.build("focal")
    loss(logits, labels, 7).backward()
    elements = loss.elements(logits.detach(), labels)
    values = read(measure(logits.detach(), logits.grad, elements, labels, LEVELS))
    return logits.detach(), logits.grad, elements, labels, dict(zip(NAMES, values.tolist(), strict=True))


def each_element(logits, gradient, elements, labels):
    """Yield (target, score, |gradient|, loss, level, class) of each element of a row that is not ignored."""
    for image in range(logits.shape[0]):
        for row in range(logits.shape[1]):
            label = labels[image, row].item()
            for k in range(NUM_CLASSES):
                score = 1 / (1 + math.exp(-logits[image, row, k].item()))
                size, loss = abs(gradient[image, row, k].item()), elements[image, row, k].item()
                if label >= 0:
                    yield label == k, score, size, loss, "P3" if row < LEVELS[0] else "P4", f"class {'abc'[k]}"


@pytest.mark.parametrize("foreground", [True, False], ids=["objects", "empty"])
def test_every_meter_against_loops(foreground):
    logits, gradient, elements, labels, values = reading(0, foreground)
    images = [list(each_element(*(x[i : i + 1] for x in (logits, gradient, elements, labels)))) for i in range(2)]
    rows = [row for image in images for row in image]
    hardest = [sorted((r[3] for r in image if not r[0]), reverse=True)[:2] for image in images]  # 1% of 156, rounded up
    fg, bg = [r for r in rows if r[0]], [r for r in rows if not r[0]]

    def mean(values):
        return sum(values) / len(values) if values else 0

    flat = labels.flatten().tolist()
    expected = {
        "num_bg": flat.count(NUM_CLASSES),
        "num_ignored": flat.count(-1),
        "loss_share_top1": sum(map(sum, hardest)) / sum(r[3] for r in bg),
        "effective_negatives": sum(r[2] for r in bg) ** 2 / sum(r[2] ** 2 for r in bg),
        "mean_p_fg": mean([r[1] for r in fg]),
        "mean_p_bg": mean([r[1] for r in bg]),
        "mean_p_hard_bg": mean([r[1] for r in bg if r[1] >= 0.1]),
    }
    for i in range(10):
        norms = [abs(r[1] - r[0]) for r in rows]
        expected[f"gradient_norm_{i:02d}"] = sum(i / 10 <= g < (i + 1) / 10 for g in norms)
    for part in ("P3", "P4", "class a", "class b", "class c"):
        in_part = [r for r in rows if part in r[4:]]
        expected[f"{part}/num_fg"] = sum(r[0] for r in in_part)
        for kind, column in (("loss", 3), ("gradient", 2)):
            for side, target in (("fg", True), ("bg", False)):
                share = sum(r[column] for r in in_part if r[0] == target) / sum(r[column] for r in rows)
                expected[f"{part}/{kind}_share_{side}"] = share
        # a level counts background anchors; a class counts every anchor that is not of the class
        is_bg = labels[:, slice(*((0, LEVELS[0]) if part == "P3" else (LEVELS[0], None)))] == NUM_CLASSES
        expected[f"{part}/num_bg"] = is_bg.sum().item() if part[0] == "P" else sum(not r[0] for r in in_part)
    assert set(values) == set(expected)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("parts", [("P3", "P4"), ("class a", "class b", "class c")], ids=["levels", "classes"])
def test_the_parts_add_up_to_the_step(parts):
    _, gradient, _, labels, values = reading(1)
    foreground, total = gradient_sums(gradient, labels).tolist()
    assert sum(values[f"{part}/gradient_share_fg"] for part in parts) == pytest.approx(foreground / total, rel=1e-5)
    for kind in ("loss", "gradient"):
        assert sum(values[f"{part}/{kind}_share_{side}"] for part in parts for side in ("fg", "bg")) == pytest.approx(1)
    if parts[0] == "P3":
        assert sum(values[f"{part}/num_bg"] for part in parts) == values["num_bg"]


def test_the_images_of_a_batch_add_up_to_the_batch():
    logits, gradient, elements, labels, _ = reading(1)
    batch, *images = (
        measure(logits[i], gradient[i], elements[i], labels[i], LEVELS) for i in (slice(None), slice(0, 1), slice(1, 2))
    )
    torch.testing.assert_close(sum(images), batch)


HEALTHY = {"num_fg": 30.0, "mean_p_fg": 0.4, "mean_p_bg": 0.02, "fg_gradient_share": 0.5}


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({}, set()),
        ({"mean_p_fg": 0.011, "mean_p_bg": 0.01}, {"collapsed"}),
        ({"fg_gradient_share": 0.01}, {"background"}),
        ({"fg_gradient_share": 0.995}, {"foreground"}),
        ({"num_fg": 0.0, "fg_gradient_share": 0.0, "mean_p_fg": 0.0}, set()),  # without objects there is no warning
    ],
)
def test_warnings_name_each_problem(change, kinds):
    assert set(warnings(HEALTHY | change)) == kinds
