from pathlib import Path

import pytest

import detector.build  # noqa: F401  (registers the parts that a config names)
from detector.config import load_config
from detector.core.errors import UserError
from detector.lab.study.plan import STUDIES, load_study, make_runs

STUDY = """
config: retina_focal.yaml
common: {train: {epochs: 1}}
levels:
  few: {data: {train: {objects: 1.0}, val: {objects: 1.0}}}
  many: {data: {train: {objects: 8.0}, val: {objects: 8.0}}}
variants:
  Focal (2): {loss: {classification: {type: focal, gamma: 2.0}}}
  GHM: {loss: {classification: ghm_c}}
seeds: [3, 5]
against: GHM
"""


def study_file(folder: Path, text: str) -> str:
    (folder / "study.yaml").write_text(text)
    return str(folder / "study.yaml")


def test_the_grid_is_every_combination_and_changes_only_what_it_says(tmp_path):
    runs = make_runs(load_study(study_file(tmp_path, STUDY)))
    assert [(r.seed, r.level, r.variant) for r in runs] == [
        (seed, level, variant) for seed in (3, 5) for level in ("few", "many") for variant in ("Focal (2)", "GHM")
    ]
    assert len({r.name for r in runs}) == len({r.fingerprint for r in runs}) == 8
    assert runs[0].name == "few-focal_2-3"
    expected = load_config(
        "retina_focal.yaml",
        ["train.epochs=1", "train.seed=5", "data.train.objects=8.0", "data.val.objects=8.0"]
        + ["loss.classification=ghm_c"],
    )
    assert runs[-1].config == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("against: GHM", "against: GHN", "against: 'GHN' is wrong: should be one of the variants"),
        ("seeds: [3, 5]", "seeds: [3, 3]", "seeds: a seed occurs twice"),
        ("seeds: [3, 5]", "seed: [3]", "seed: unknown key; did you mean 'seeds'?"),
        ("  GHM: {", "  focal 2: {", "variants: two names differ in punctuation alone"),
        ("gamma: 2.0", "gama: 2.0", "level 'few', variant 'Focal (2)': loss.classification.gama: unknown key"),
        ("retina_focal.yaml", "retina_vocal.yaml", "no config 'retina_vocal.yaml'"),
    ],
)
def test_wrong_studies_are_refused_in_one_line(tmp_path, old, new, message):
    text = STUDY.replace(old, new)
    if "focal 2" in new:
        text = text.replace("against: GHM", "against: focal 2")
    with pytest.raises(UserError) as refused:
        make_runs(load_study(study_file(tmp_path, text)))
    assert message in str(refused.value)


def test_a_single_variant_is_nothing_to_compare(tmp_path):
    text = STUDY.replace("  Focal (2): {loss: {classification: {type: focal, gamma: 2.0}}}\n", "")
    with pytest.raises(UserError, match="variants: should be at least two, to compare"):
        load_study(study_file(tmp_path, text))


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_is_valid_and_says_its_command(path):
    assert path.read_text().splitlines()[0].startswith("# ")
    assert f"detector study --cfg {path.name}" in path.read_text()
    study = load_study(path.name)
    runs = make_runs(study)
    assert len(runs) == len(study.levels) * len(study.variants) * len(study.seeds)
    by_cell = {(r.level, r.variant): r.config.model_dump() | {"train": None} for r in runs}
    values = list(by_cell.values())
    assert all(a != b for i, a in enumerate(values) for b in values[:i]), "two cells are the same experiment"
