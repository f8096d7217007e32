from pathlib import Path

import pytest

import detector.build  # noqa: F401  (registers the parts that a config names)
from detector.config import load_config
from detector.core.errors import UserError
from detector.lab.study.plan import STUDIES, load_study, make_runs
from detector.lab.study.selection import combinations, make_selection_runs

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


def test_the_grid_has_every_combination_and_changes_only_the_given_keys(tmp_path):
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
    ("old", "new", "facts"),
    [
        ("against: GHM", "against: GHN", ["study.yaml: against: ", "'GHN'", "'GHM'"]),
        ("seeds: [3, 5]", "seeds: [3, 3]", ["study.yaml: seeds: ", "[3, 3]"]),
        ("seeds: [3, 5]", "seed: [3]", ["study.yaml: seed: ", "'seeds'"]),
        ("  GHM: {", "  focal 2: {", ["study.yaml: variants: "]),
        ("gamma: 2.0", "gama: 2.0", ["level 'few', variant 'Focal (2)': ", "loss.classification.gama: "]),
        ("retina_focal.yaml", "retina_vocal.yaml", ["'retina_vocal.yaml'"]),
        ("  Focal (2): {loss: {classification: {type: focal, gamma: 2.0}}}\n", "", ["study.yaml: variants: "]),
    ],
)
def test_wrong_studies_are_refused_with_the_key_and_the_value(tmp_path, old, new, facts):
    text = STUDY.replace(old, new)
    if "focal 2" in new:
        text = text.replace("against: GHM", "against: focal 2")
    with pytest.raises(UserError) as error:
        make_runs(load_study(study_file(tmp_path, text)))
    assert all(fact in str(error.value) for fact in facts)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_is_valid_and_contains_its_command(path):
    assert path.read_text().splitlines()[0].startswith("# ")
    assert f"detector study --cfg {path.name}" in path.read_text()
    study = load_study(path.name)
    first = {cell: values[0] for cell in study.cells() if (values := combinations(study, cell[1]))}
    runs = make_runs(study, first)
    selection_runs = make_selection_runs(study)
    assert (len(selection_runs) > 0) == (study.select is not None)
    assert len(runs) == len(study.levels) * len(study.variants) * len(study.seeds)
    by_cell = {(r.level, r.variant): r.config.model_dump() for r in runs}  # of the last seed
    values = list(by_cell.values())
    assert all(a != b for i, a in enumerate(values) for b in values[:i]), "two cells are the same experiment"
