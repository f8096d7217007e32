"""The contents of the figures, read from matplotlib's artists, against numbers by hand."""

import math
import re
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from criteria import make_targets
from matplotlib import pyplot
from matplotlib.axes import Axes

from detector.core.structures import Predictions, Priors
from detector.evaluation.anatomy import make_anatomy
from detector.evaluation.anchor_scores import AnchorRanking
from detector.evaluation.coco import coco_metrics
from detector.geometry.coders import DeltaCoder
from detector.imbalance.probe import NORM_BINS, Probe
from detector.imbalance.probe_readings import read_outliers
from detector.imbalance.probe_result import ProbeResult
from detector.lab.report import figures, page
from detector.lab.report.figures import drawing
from detector.lab.report.series import MAX_POINTS, Series
from detector.lab.report.sources import read_source
from detector.lab.study.plan import METRICS, Study
from detector.lab.study.results import make_tables
from detector.losses import CLASSIFICATION_LOSSES

DELTAS = DeltaCoder()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[Axes]]:
    """Yield the list of each figure's axes in the order of drawing. The figures stay open after they are written."""
    axes: list[list[Axes]] = []
    monkeypatch.setattr(pyplot, "close", lambda figure: axes.append(figure.axes))
    yield axes
    monkeypatch.undo()
    pyplot.close("all")


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


# score, label (0 foreground, 1 background, -1 ignored): ten anchors, one class
ANCHORS = [(0.91, 0), (0.22, 0), *((p, 1) for p in (0.01, 0.04, 0.11, 0.31, 0.51, 0.61, 0.97)), (0.5, -1)]


@pytest.fixture(scope="module")
def ten() -> ProbeResult:
    logits = torch.tensor([[[math.log(p / (1 - p))] for p, _ in ANCHORS]])
    boxes = torch.tensor([0.0, 0, 8, 8]).expand(len(ANCHORS), 4)
    probe = Probe({name: CLASSIFICATION_LOSSES.build(name) for name in ("cross_entropy", "focal")})
    targets = make_targets(torch.tensor([[label for _, label in ANCHORS]]), boxes[None])
    probe.update(Predictions(logits, torch.zeros(1, len(ANCHORS), 4), Priors(boxes, (len(ANCHORS),)), DELTAS), targets)
    return probe.compute()


def test_the_cumulative_curves_are_sorted_sums(ten, drawn):
    figures.draw_probe(ten)
    for (axes,), label in zip(drawn[3:5], (0, 1), strict=True):
        p_t = [1 - p if label else p for p, its_label in ANCHORS if its_label == label]
        for name, gamma in (("cross_entropy", 0), ("focal", 2)):  # alpha is the same for all of a side
            losses = sorted(-((1 - p) ** gamma) * math.log(p) for p in p_t)
            x, y = lines(axes)[name]
            assert x == pytest.approx([i / len(losses) for i in range(len(losses) + 1)])
            assert y == pytest.approx([0, *(part / sum(losses) for part in accumulate(losses))], abs=1e-6)


def test_the_density_counts_gradient_norms_and_the_weighted_density_adds_up_gradients(ten, drawn):
    figures.draw_probe(ten)
    (density,), (weighted,) = drawn[1:3]
    for patch, label in zip(density.patches, (0, 1), strict=True):
        norms = [p if label else 1 - p for p, y in ANCHORS if y == label]
        counts = [sum(int(g * NORM_BINS) == i for g in norms) for i in range(NORM_BINS)]
        assert sum(counts) == len(norms)
        values, edges, _ = patch.get_data()
        assert list(values) == [max(count, 0.5) for count in counts]  # a logarithmic axis cannot show 0
        assert edges == pytest.approx(np.linspace(0, 1, NORM_BINS + 1))
    norms = [p if y else 1 - p for p, y in ANCHORS if y >= 0]
    shares = [sum(g for g in norms if int(g * NORM_BINS) == i) / sum(norms) for i in range(NORM_BINS)]
    assert lines(weighted)["cross_entropy"][1] == pytest.approx(shares, abs=1e-6)  # the gradient of cross entropy is g


def test_the_bars_of_the_gradient_are_the_shares_of_the_groups(ten, drawn):
    figures.draw_probe(ten)
    (axes,) = drawn[0]
    norms = [p if y else 1 - p for p, y in ANCHORS if y >= 0]
    shares = [0.09 + 0.78, 0, 0.01 + 0.04, 0.11 + 0.31 + 0.51 + 0.61, 0.97]
    assert sum(shares) == pytest.approx(sum(norms))
    row = [label.get_text() for label in axes.get_yticklabels()].index("cross_entropy")
    widths = [bars[row].get_width() for bars in axes.containers]
    assert widths == pytest.approx([share / sum(norms) for share in shares], abs=1e-6)


def coco(boxes_of_classes: list[tuple[int, list[float]]], scores: list[float] | None = None) -> list[dict]:
    rows = [{"image_id": 1, "category_id": k, "bbox": box} for k, box in boxes_of_classes]
    if scores is not None:
        return [row | {"score": score} for row, score in zip(rows, scores, strict=True)]
    return [row | {"id": i + 1, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]} for i, row in enumerate(rows)]


def test_the_confusion_matrix_with_background(drawn):
    """An image has a detected cat, a dog detected as a cat, a missed dog and a cat detected on background."""
    boxes = [[0.0, 0, 10, 10], [20.0, 0, 10, 10], [40.0, 0, 10, 10], [60.0, 0, 10, 10]]
    truth = {
        "images": [{"id": 1, "width": 100, "height": 20}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": coco([(1, boxes[0]), (2, boxes[1]), (2, boxes[2])]),
    }
    results = coco([(1, boxes[0]), (1, boxes[1]), (1, boxes[3])], [0.9] * 3)
    ranking = AnchorRanking(roc_auc=0.9, average_precision=0.5)
    settings = {"backend": "hotcoco", "max_detections": 100}
    anatomy = make_anatomy(truth, results, coco_metrics(truth, results), {1: 10.0}, ranking, **settings)
    assert anatomy.confusion.score <= 0.9
    figures.draw_anatomy(anatomy)
    (axes,) = drawn[1]
    shown = {text.get_position(): int(text.get_text()) for text in axes.texts}  # x is the prediction, y is the truth
    expected = {(0, 0): 1, (0, 1): 1, (2, 1): 1, (0, 2): 1}
    assert {position: count for position, count in shown.items() if count} == expected and len(shown) == 9
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "background"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "background"]


def test_the_levels_of_a_study_have_means_with_intervals(drawn):
    values = {("mild", "a"): [0.5, 0.6, 0.7], ("mild", "b"): [0.2, 0.2, 0.5], ("severe", "a"): [0.1, 0.2, 0.3]}
    study = Study(config="x", levels={"mild": {}, "severe": {}}, variants={"a": {}, "b": {}}, against="a")
    rows = [
        {"level": level, "variant": variant, "seed": str(seed)} | dict.fromkeys(METRICS, "") | {"AP": str(ap)}
        for (level, variant), aps in values.items()
        for seed, ap in enumerate(aps)
    ]
    figures.draw_study(make_tables(study, rows))
    (axes,) = drawn[0]
    intervals = {}
    for container in axes.containers:
        line, _, (bars,) = container
        for x, mean, (low, high) in zip(*line.get_data(), bars.get_segments(), strict=True):
            assert low[0] == high[0] == x
            intervals["mild" if x < 0.5 else "severe", container.get_label()] = (mean, low[1], high[1])
    assert intervals.keys() == values.keys()
    for cell, (mean, low, high) in intervals.items():
        expected = sum(values[cell]) / 3
        deviation = math.sqrt(sum((v - expected) ** 2 for v in values[cell]) / 2)
        half = 4.302653 * deviation / math.sqrt(3)  # Student's t, two degrees of freedom, 97.5%
        assert (mean, low, high) == pytest.approx((expected, expected - half, expected + half), rel=1e-5)


def test_the_bars_of_compared_runs_are_their_metrics(drawn):
    sources = [{"AP": 0.25, "AP50": 0.5}, {"AP": 0.75, "AP50": math.nan, "APl": 0.1}]
    figures.draw_comparison(["first", "second"], sources, ("AP", "AP50", "APl"))
    (axes,) = drawn[0]
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in axes.containers}
    assert heights == {"first": [0.25, 0.5, 0], "second": [0.75, pytest.approx(math.nan, nan_ok=True), 0.1]}
    positions = [[bar.get_x() for bar in bars] for bars in axes.containers]
    assert all(a < b < a + 1 for a, b in zip(*positions, strict=True)), "the bars of two runs do not overlap"


def test_shares_of_levels_and_classes_are_stacked_over_the_training(drawn):
    shares = {"P3": (0.2, 0.3), "P4": (0.4, 0.1), "class a": (0.5, 0.25), "class b": (0.1, 0.15)}
    counts = {"P3": (1, 9), "P4": (0, 5), "class a": (1, 14), "class b": (0, 15)}
    parts = [
        {"step": step, "part": part, "num_fg": counts[part][0], "num_bg": counts[part][1]}
        | {f"{kind}_share_fg": shares[part][0] for kind in ("loss", "gradient")}
        | {f"{kind}_share_bg": shares[part][1] for kind in ("loss", "gradient")}
        for step in (0, 20, 40)
        for part in shares
    ]  # fmt: skip
    steps = [{"step": step, "mean_p_fg": 0.5, "mean_p_hard_bg": 0.1, "mean_p_bg": 0.1, "loss_share_top1": 0.5}
             | {"cls_fg": 1.0, "cls_bg": 1.0, "box": 1.0, "fg_gradient_share": 0.5, "gradient_norm_00": 3.0}
             for step in (0, 20, 40)]  # fmt: skip
    half = [parts[0] | {"step": 60}, {"step": 60, "part": "P4", "num_fg": 3}]  # as a killed run leaves it
    figures.draw_training(steps, parts + half)
    (levels,), (classes,) = drawn[6], drawn[8]  # of the gradient
    for axes, names in ((levels, ("P3", "P4")), (classes, ("class a", "class b"))):
        edges = [0, *accumulate(share for name in names for share in shares[name])]
        for layer, low, high in zip(axes.collections, edges, edges[1:], strict=False):
            (path,) = layer.get_paths()
            assert set(path.vertices[:, 0]) == {0, 20, 40}
            assert {round(y, 6) for y in path.vertices[:, 1]} == {round(low, 6), round(high, 6)}
        assert len(axes.collections) == 4 and edges[-1] == pytest.approx(1)
    ratios = [drawn[9][0], drawn[10][0]]
    for axes, names in zip(ratios, (("P4", "P3"), ("b", "a")), strict=True):
        assert [label.get_text() for label in axes.get_yticklabels()] == list(names)
    assert [bar.get_width() for bar in ratios[0].patches] == [0, 9]  # P4 had no foreground
    assert [bar.get_width() for bar in ratios[1].patches] == [0, 14]
    assert len(figures.draw_training(steps, [])) == 5, "a run without parts.csv"


def test_noisy_curves_are_averages_over_their_pale_readings(drawn):
    values = [1 + (-1) ** step for step in range(100)]
    steps = [{"step": step, "fg_gradient_share": value / 2} for step, value in enumerate(values)]
    figures.draw_training(steps, [])
    (axes,) = drawn[1]
    raw, line = axes.get_lines()
    assert list(raw.get_ydata()) == [value / 2 for value in values] and raw.get_alpha() < 0.5
    means = [sum(values[i - 5 : i + 6]) / 22 for i in range(5, 95)]  # over eleven of a hundred readings
    assert list(line.get_ydata()[5:-5]) == pytest.approx(means)
    many = Series(np.arange(100_000), np.sin(np.arange(100_000)))
    assert len(many.thinned()) == MAX_POINTS and np.abs(many.smoothed().values[1000:]).max() < 0.05


def test_a_curve_settles_where_it_stays_near_its_end():
    values = np.concatenate((np.linspace(9, 1, 80), np.full(320, 1.0)))
    assert Series(np.arange(400), values).settled_at() == pytest.approx(80, abs=15)
    rising = Series(np.arange(400), np.linspace(0, 1, 400))
    assert rising.settled_at() > 360


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", text)]


def test_the_readings_have_the_numbers_of_their_data(ten):
    rows = [{"step": 0, "loss": 4, "fg_gradient_share": 0.9}, {"step": 1, "loss": 1, "fg_gradient_share": 0.25}]
    loss, gradient = figures.draw_training(rows, [])
    assert numbers(loss.reading)[:2] == [4, 1] and numbers(gradient.reading) == [90, 25]
    readings = {figure.title: figure.reading for figure in figures.draw_probe(ten)}
    # two of seven background elements have a norm below 0.1, and no foreground element has 0.9
    assert numbers(readings["Gradient norms of the elements"])[0] == 29
    shares = {name: loss.gradient_foreground for name, loss in ten.losses.items()}
    assert {round(100 * share, 1) for share in shares.values()} <= set(numbers(readings["Shares of the gradient"]))
    outliers = {
        sum(loss.gradient[f"{kind}_outlier"] for kind in ("foreground", "background")) for loss in ten.losses.values()
    }
    assert {round(100 * share) for share in outliers} | {30} <= set(numbers(read_outliers(ten)))


def test_all_colors_can_be_read_on_both_pages():
    css = (Path(page.__file__).parent / "page.css").read_text()
    surfaces = [color for name in ("page", "card") for color in re.findall(f"--{name}: (#......)", css)]
    inks = [color for name in ("ink", "soft", "link") for color in re.findall(f"--{name}: (#......)", css)]
    assert len(surfaces) == 4 and len(inks) == 6
    assert min(contrast(a, b) for a in drawing.COLORS for b in surfaces) > 3
    for scheme in (0, 1):  # light, dark
        assert min(contrast(a, b) for a in inks[scheme::2] for b in surfaces[scheme::2]) > 4.5


def contrast(*colors: str) -> float:
    """The contrast of WCAG 2: (L1 + 0.05) / (L2 + 0.05) of the relative luminances."""
    luminances = []
    for color in colors:
        channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        luminances.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(luminances) / min(luminances)


def test_an_incomplete_number_ends_the_rows(tmp_path: Path):
    (tmp_path / "metrics.csv").write_text("step,loss\n0,1.5\n1,\n2,1.2e-")
    assert read_source(tmp_path).steps == [{"step": 0, "loss": 1.5}, {"step": 1}]
