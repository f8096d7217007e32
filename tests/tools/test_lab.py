"""The instruments one after the other on one tiny run, as a user would call them, and the page in a real browser."""

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from tiny import TINY, names_of_the_library
from tools_run import run_tool

import detector.build  # noqa: F401  (registers the parts that a config names)
from detector.config import load_config
from detector.imbalance.probe_readings import TERMS
from detector.imbalance.vocabulary import GROUPS
from detector.losses import CLASSIFICATION_LOSSES

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A trained run with everything that the instruments write, a census, a small study's tables, and the page."""
    folder = tmp_path_factory.mktemp("lab")
    text = TINY.replace("train: {batch_size: 2", "train: {epochs: 4, meter_every: 2, batch_size: 2, lr: 0.001")
    (folder / "tiny.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        library = {name: CLASSIFICATION_LOSSES._entries[name] for name in names_of_the_library(CLASSIFICATION_LOSSES)}
        patch.setattr(CLASSIFICATION_LOSSES, "_entries", library)  # other tests register parts that do nothing
        cfg, run = folder / "tiny.yaml", folder / "run <script>alert(1)"
        assert run_tool("train", "--cfg", cfg, "--out", run) == 0
        checkpoint = run / "checkpoints/best.pt"
        assert run_tool("evaluate", "--checkpoint", checkpoint) == 0
        assert run_tool("probe", "--checkpoint", checkpoint) == 0
        assert run_tool("census", "--cfg", cfg, "--out", folder / "census") == 0
        (folder / "study").mkdir()
        (folder / "study/tables.json").write_text(json.dumps(study_tables()))
        page = folder / "report.html"
        assert run_tool("report", run, folder / "census", folder / "study", "--out", page) == 0
        other = (folder / "other", "loss.classification=ghm_c", "train.epochs=1")
        assert run_tool("train", "--cfg", cfg, "--out", *other) == 0
        assert run_tool("report", run, folder / "other", "--out", folder / "two.html") == 0
        yield folder


def run_of(lab: Path) -> Path:
    (run,) = lab.glob("run*")
    return run


def study_tables() -> dict:
    cells = [("mild", "focal", 0.5), ("mild", "ohem", 0.55), ("severe", "focal", 0.2), ("severe", "ohem", None)]
    rows = [
        {"level": level, "variant": variant, "n": 0 if mean is None else 3, "seeds": 3, "mean": mean}
        | {"low": mean and mean - 0.02, "high": mean and mean + 0.02}
        for level, variant, mean in cells
    ]
    test = {"level": "mild", "variant": "ohem", "against": "focal", "pairs": 3, "difference": 0.05}
    tests = [test | {"low": -0.01, "high": 0.11, "p": 0.08, "p_holm": 0.08}]
    scores = [("0.01", 0.25, False), ("0.001", 0.5, True), ("1.0", None, False)]
    selection = [
        {"variant": "ohem", "settings": f"train.lr={lr}", "level": level, "n": 0 if mean is None else 1, "seeds": 1}
        | {"mean": mean, "low": None, "high": None, "chosen": chosen}
        for level in ("mild", "severe")
        for lr, mean, chosen in scores
    ]
    tables = {"metric": "AP", "levels": ["mild", "severe"], "variants": ["focal", "ohem"], "rows": rows}
    return tables | {"tests": tests, "selection": selection}


@pytest.mark.slow
def test_the_probe_re_scores_every_loss(lab):
    probe = json.loads((run_of(lab) / "probe_val/probe.json").read_text())
    assert set(names_of_the_library(CLASSIFICATION_LOSSES)) <= set(probe["losses"])
    assert probe["num_images"] == 4 and set(probe["elements"]) == set(GROUPS)
    # rows that count have an element for each of the six classes
    assert sum(probe["elements"].values()) == 6 * (probe["rows"]["foreground"] + probe["rows"]["background"])
    for name, loss in probe["losses"].items():
        assert sum(loss["gradient"].values()) == pytest.approx(1), name
    assert probe["trained_with"]["type"] == "focal"


@pytest.mark.slow
def test_a_part_of_the_split_is_probed(lab, capsys):
    probe = ("probe", "--checkpoint", run_of(lab) / "checkpoints/best.pt", "--out", lab / "some")
    # overrides may stand anywhere
    assert run_tool(*probe, "evaluation.batch_size=1", "--images", "3", "evaluation.nms_iou=0.6") == 0
    assert json.loads((lab / "some/probe.json").read_text())["num_images"] == 3
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.startswith(f"  {term}: ") for line in lines) for term in TERMS)
    elements, first = [line.split("│")[1].strip() for line in lines if line.startswith("│")][:2]
    assert elements == "number of elements" and first == "focal", "the loss of the training is the first loss"
    assert run_tool(*probe, "--images", "0") == 2
    assert capsys.readouterr().err.startswith("error: --images 0")


@pytest.mark.slow
def test_census_and_probe_count_the_same_anchors(lab, caplog):
    """Two ways to the same number: the annotations alone, and the batches that a model sees."""
    caplog.set_level("INFO")
    arguments = ["--cfg", str(lab / "tiny.yaml"), "data.transforms=[flip, {type: affine}]"]
    assert run_tool("census", *arguments, "--split", "val", "--out", lab / "census_val") == 0
    advise, train = (shlex.split(line, comments=True) for line in caplog.messages[-1].splitlines()[1:])
    assert advise[-6:] == ["advise", "--census", str(lab / "census_val"), *arguments]
    assert train[-4:] == ["train", *arguments]
    census = json.loads((lab / "census_val/census.json").read_text())
    probe = json.loads((run_of(lab) / "probe_val/probe.json").read_text())
    assert census["anchors"] == probe["rows"]


@pytest.mark.slow
def test_the_evaluation_leaves_an_anatomy(lab):
    anatomy = json.loads((run_of(lab) / "evaluation_val/anatomy.json").read_text())
    assert set(anatomy["tide"]) >= {"Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"}
    assert len(anatomy["confusion"]["counts"]) == 7
    assert sum(part["images"] for part in anatomy["by_imbalance"]) <= 4
    probe = json.loads((run_of(lab) / "probe_val/probe.json").read_text())
    assert anatomy["anchor_level"] == pytest.approx(probe["anchor_level"])


@pytest.mark.slow
def test_the_advice_is_a_config(lab):
    out = lab / "advice.yaml"
    arguments = ("--census", lab / "census", "--probe", run_of(lab) / "probe_val", "--cfg", lab / "tiny.yaml")
    assert run_tool("advise", *arguments, "--out", out) == 0
    advised, base = load_config(str(out)), load_config(str(lab / "tiny.yaml"))
    assert advised.data == base.data and "loss" in yaml.safe_load(out.read_text())
    overrides = ["data.root=photos", "loss.box=giou", "loss.classification.gamma=1"]
    assert run_tool("advise", *arguments, *overrides, "--out", out) == 0
    advised = load_config(str(out))
    assert str(advised.data.root) == "photos" and [term.loss.type for term in advised.loss.box] == ["giou"]
    assert advised.loss.classification.parameters["gamma"] == 2, "the advice has priority"
    assert run_tool("advise", *arguments, "--gamma", "0", "--out", out) == 0
    advised = load_config(str(out))
    assert advised.loss.classification.type == "cross_entropy" and advised.anchor_sampler.type == "random"
    assert run_tool("advise", *arguments, "--gamma", "-1", "--out", lab / "none.yaml") == 2
    swapped = ("--census", run_of(lab) / "probe_val/probe.json", "--cfg", lab / "tiny.yaml")
    assert run_tool("advise", *swapped, "--out", lab / "none.yaml") == 2
    assert not (lab / "none.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "metrics.json"),
        ({"probe.json": "{"}, "probe.json"),
        ({"census.json": "[]"}, "detector census"),
        ({"metrics.json": "{}"}, "AP"),
        ({"anatomy.json": '{"tide": {}}'}, "confusion"),
        ({"tables.json": "[]"}, "tables.json"),
    ],
)
def test_a_report_of_something_else_is_refused_in_one_line(tmp_path, capsys, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert run_tool("report", tmp_path, "--out", tmp_path / "r.html") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "r.html").exists()


class Tables(HTMLParser):
    """Each table of a page as its rows of texts, by the heading before it."""

    def __init__(self, page: Path):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.heading = self.inside = ""
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, _: list) -> None:
        if tag in ("h2", "h3", "h4"):
            self.heading = ""
        elif tag == "table":
            self.tables[self.heading] = []
        elif tag == "tr":
            self.tables[self.heading].append([])
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside in ("h2", "h3", "h4"):
            self.heading += data
        elif self.inside in ("th", "td"):
            self.tables[self.heading][-1].append(data)

    def handle_endtag(self, _: str) -> None:
        self.inside = ""


@pytest.mark.slow
def test_the_page_says_what_the_census_the_anatomy_and_the_study_found(lab):
    tables = Tables(lab / "report.html").tables
    census = json.loads((lab / "census/census.json").read_text())
    anatomy = json.loads((run_of(lab) / "evaluation_val/anatomy.json").read_text())
    scores = anatomy["anchor_level"]
    anchors = [f"{scores[name]:.4f}" for name in ("roc_auc", "average_precision")]
    assert tables["Anchors, foreground against background"][1] == anchors
    touching, total = anatomy["at_border"]["objects"]
    assert tables["At the picture's border"][1][0] == f"{touching} of {total}"
    assert tables["AP by object size"][1][0] == f"{anatomy['by_size']['small']:.3f}"
    assert tables["Crowding"][1][0] == f"{census['crowding']['mean_max_iou']:.3f}"
    alphas = census["remedies"]["alpha"]
    assert tables["Remedies: alpha that balances the gradient at the start"] == [
        [f"gamma {gamma}" for gamma in alphas],
        [f"{alpha:.3f}" for alpha in alphas.values()],
    ]
    classes = tables["Remedies: class weights and repeat factors"][1:]
    assert [row[0] for row in classes] == census["class_names"]
    weights = census["remedies"]["class_weights"]["inverse_frequency"]
    assert [row[3] for row in classes] == [f"{weight:.3f}" for weight in weights]
    factors = census["remedies"]["repeat_factors"]["0.1"]["classes"]
    assert [row[-1] for row in classes] == [f"{factor:.2f}" for factor in factors]
    assert sum(int(row[2]) for row in tables["Object sizes"][1:]) == census["anchors"]["foreground"]
    scores = tables["Selection of the settings"][1:]
    assert [row[:2] for row in scores] == [["ohem", f"train.lr={lr}"] for lr in ("0.01", "0.001", "1.0")]
    assert [("chosen" in row[2], row[2][:5]) for row in scores] == [(False, "0.250"), (True, "0.500"), (False, "none")]


@pytest.mark.slow
def test_two_runs_side_by_side(lab):
    tables = Tables(lab / "two.html").tables
    differences = {row[0]: row[1:] for row in tables["Where the configs differ"][1:]}
    assert differences["loss.classification.type"] == ["focal", "ghm_c"]
    assert differences["train.epochs"] == ["4", "1"]
    assert all(key.startswith(("loss.classification.", "train.epochs")) for key in differences)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (run_of(lab), lab / "other")]
    assert [row[1] for row in tables["Comparison"][1:]] == [f"{one['AP']:.3f}" for one in metrics]
    page = (lab / "two.html").read_text()
    assert page.count('aria-label="COCO metrics side by side"') == 1
    assert sum(len(data) for data in re.findall('data:image/jpeg;base64,([^"]*)', page)) < 1_500_000
    assert page.count("data:image/jpeg") == 2 * 4, "two best and two worst of four images, of each run"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; install it, or set CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield started
        started.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1200])
def test_the_page_in_a_browser(lab, browser, scheme, width, tmp_path):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((lab / "report.html").as_uri())
    assert not problems
    assert all(url.startswith(("file:", "data:")) for url in requests), requests
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert page.locator("script").count() == 0, "a folder's name came out as a script"

    figures = page.locator("figure.chart")
    # anatomy, classes, training with two levels and six classes, probe, census, study
    assert figures.count() == 6 + 1 + 5 + 3 + 3 + 7 + 4 + 2
    for i in range(figures.count()):
        picture = tmp_path / f"{i}.png"
        figures.nth(i).locator("svg").screenshot(path=picture)
        pixels = cv2.imread(str(picture)).astype(int)
        paper = np.median(pixels.reshape(-1, 3), axis=0)
        ink = (np.abs(pixels - paper).sum(axis=2) > 90).mean()
        assert ink > 0.005, f"figure {i}: {ink:.1%} of its pixels are drawn"
        assert pixels.shape[1] > 0.8 * (width if width < 960 else 400) - 60
    paper = cv2.imread(str(tmp_path / "0.png"))[2, 2]  # a corner, without ink
    assert (paper.mean() < 60) == (scheme == "dark")
    names = [figures.nth(i).locator("svg").get_attribute("aria-label") for i in range(figures.count())]
    assert len(set(names)) == len(names) and all(names)

    levels = [int(tag[1]) for tag in page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(h => h.tagName)")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False)), "a heading skips a level"
    links = page.eval_on_selector_all("nav a", "all => all.map(a => a.hash.slice(1))")
    assert links and all(page.locator(f"[id='{link}']").count() == 1 for link in links)
    pictures = page.locator(".pictures svg")
    assert pictures.count() == 4
    assert page.locator(".pictures rect.missed").count() == sum(
        int(pictures.nth(i).get_attribute("aria-label").split(", ")[-1].split()[0]) for i in range(4)
    )
    page.close()
