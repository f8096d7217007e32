"""Overrides on the command line: the types that a key accepts decide how its value is read."""

from pathlib import Path

import pytest

import detector.build  # noqa: F401  (registers the parts that a config names)
from detector.config import Config, config_from_text, load_config
from detector.core.errors import UserError
from detector.core.overrides import read_overrides

DATA = "data: {train: {type: voc, images: a, annotations: b}, val: {type: yolo, annotations: c.yaml, split: val}}"
TEXTS = ["set #2", "2024", "1.50", "007", "a: b", "a: b: c", "[x", "{", "*.jpg", "@x", "!x", "&x", "it's", "true", "no",
         "- a", "a=b", "x ", "%", "| a", "> b", "a\\b", "é 漢", "0x1f", "1e5", ".inf"]  # fmt: skip


def config_of(*overrides: str) -> Config:
    return config_from_text(DATA, "DATA", overrides)


@pytest.mark.parametrize("text", TEXTS)
def test_a_path_or_a_text_is_read_verbatim(text: str):
    keys = ("data.root", "data.cache", "data.train.images", "data.train.annotations", "data.train.split",
            "data.val.images", "model.weights")  # fmt: skip
    config = config_of(*(f"{key}={text}" for key in keys))
    assert (config.data.root, config.data.cache) == (Path(text), Path(text))
    assert [config.data.train.parameters[key] for key in ("images", "annotations", "split")] == [str(Path(text))] * 3
    assert config.data.val.parameters["images"] == str(Path(text)) and config.model.weights == text


@pytest.mark.parametrize("text", ["null", "Null", ""])
def test_null_is_null_for_a_key_that_accepts_null(text: str):
    config = config_of(f"data.cache={text}", f"data.train.split={text}", f"model.weights={text}")
    assert (config.data.cache, config.data.train.parameters["split"], config.model.weights) == (None, None, None)
    assert config_of("data.root=null").data.root == Path("null")


def test_a_text_may_have_the_quotes_of_yaml():
    config = config_of("data.root='set #2'", 'data.train.images="a: b"', "model.weights='null'", "data.cache='")
    assert (config.data.root, config.data.train.parameters["images"]) == (Path("set #2"), "a: b")
    assert (config.model.weights, config.data.cache) == ("null", Path("'"))


def test_other_keys_are_read_as_yaml():
    values = read_overrides(
        ["train.lr=1e-3", "data.num_workers=auto", "data.num_workers=2", "train.channels_last=true", "data.split=0.5",
         "data.train={type: voc, images: 2024}", "data.val=null", "loss.box.beta=0.5", "data.train.one_based=false",
         "imports=[a]", "no.such.key=1"],
        Config,
    )  # fmt: skip
    assert values == {
        "train": {"lr": 0.001, "channels_last": True},
        "data": {
            "num_workers": 2,
            "split": 0.5,
            "val": None,
            "train": {"type": "voc", "images": 2024, "one_based": False},
        },
        "loss": {"box": {"beta": 0.5}},
        "imports": ["a"],
        "no": {"such": {"key": 1}},
    }
    with pytest.raises(UserError) as error:
        config_of("train.lr=[x")
    assert "'train.lr=[x'" in error.value.problem and error.value.remedy


def test_the_order_of_overrides_does_not_matter():
    for overrides in (["data.val.type=voc", "data.val.split=007"], ["data.val.split=007", "data.val.type=voc"]):
        spec = config_of(*overrides, "data.val.images=1", "data.val.annotations=2").data.val
        paths = [spec.parameters[key] for key in ("split", "images", "annotations")]
        assert (spec.type, paths) == ("voc", ["007", "1", "2"])


def test_the_paths_of_an_imported_part_are_read_verbatim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "override_parts.py").write_text(
        "from pathlib import Path\nfrom detector.data import DATASETS\n\n"
        "@DATASETS.register('test_overrides')\ndef drawn(*, folder: Path, size: int = 4): ...\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = "imports: [override_parts]\ndata: {train: test_overrides, val: test_overrides}\n"
    config = config_from_text(text, "TEXT", ["data.train.folder=2024", "data.val.folder=~/x", "data.val.size=5"])
    assert config.data.train.to_dict() == {"type": "test_overrides", "folder": "2024", "size": 4}
    assert config.data.val.to_dict() == {"type": "test_overrides", "folder": str(Path.home() / "x"), "size": 5}


def test_a_tilde_is_the_home_folder_on_the_command_line_and_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = config_of("data.root=~", "data.cache=~/c", "data.train.images=~/i", "data.val.images=~no_such_user/i")
    assert (config.data.root, config.data.cache) == (tmp_path, tmp_path / "c")
    assert (config.data.train.parameters["images"], config.data.val.parameters["images"]) == (
        f"{tmp_path}/i",
        "~no_such_user/i",
    )
    (tmp_path / "below.yaml").write_text(DATA + "\n", encoding="utf-8")
    (tmp_path / "top.yaml").write_text("base: ~/below.yaml\ndata: {root: ~/data, cache: ~}\n", encoding="utf-8")
    config = load_config("~/top")
    assert (config.data.root, config.data.cache) == (tmp_path / "data", None)  # in YAML, ~ without a path is null
