"""Every command and every Python example of the guides runs, in the order of the text, unless the text says why not."""

import sys
from pathlib import Path

import numpy as np
import pytest
import ranks
from documents import REPO, blocks
from tiny import names_of_the_library
from tools_run import run_tool
from videos import write_video

import detector.config
import detector.training
from detector.build.reference import as_markdown, keys, parts, registries
from detector.cli import main
from detector.config import load_config
from detector.data.images import write_image
from detector.lab.study.plan import load_study
from detector.lab.study.selection import make_selection_runs

DOCUMENTS = ("README.md", "tools/README.md", "configs/README.md", "tools/benchmarks/README.md", "CONTRIBUTING.md")
SHORT = ("train.epochs=1", "train.device=cpu", "train.batch_size=2", "data.num_workers=0", "model.width=64")
SHORT += ("data.short_side=64", "data.long_side=96", "train.log_every=1", "model.weights=null")
SHORT += ("imports=[small_resnet]", "model.backbone={type: small_resnet, norm: batch, trainable_stages: 5}")
SCENES = tuple(f"data.{split}.{key}" for split in ("train", "val") for key in ("image_size=64", "num_images=8"))


def run_command(words: list[str]) -> int:
    """Run `detector NAME ...`, or `tools/NAME.py ...`, in this process, and return the exit code."""
    words = words[2:] if words[:2] == ["uv", "run"] else words
    if words[0].startswith("tools/"):
        return run_tool(Path(words[0]).stem, *words[1:])
    assert words[0] == "detector", words
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", words)
        main()
    return stopped.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user: photos with annotations, new pictures, a video."""
    folder = tmp_path_factory.mktemp("user")
    options = ["--cfg", "retina_focal.yaml", "--to", "voc", "--out", folder / "photos", *SCENES]
    assert run_tool("convert", *options) == 0
    (folder / "photos/JPEGImages").rename(folder / "photos/images")
    (folder / "photos/Annotations").rename(folder / "photos/annotations")
    (folder / "photos/more").mkdir()
    rng = np.random.default_rng(0)
    for name in ("new.jpg", "a.jpg", "b.jpg", "photo.jpg", "photos/more/c.jpg"):
        write_image(folder / name, rng.integers(256, size=(64, 80, 3), dtype=np.uint8))
    write_video(folder / "clip.mp4", 3)
    return folder


@pytest.fixture
def at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the folder the working folder, and every training short."""

    def load(path, overrides=(), *arguments, **options):
        is_drawn = "retina_focal" in path and not any(text.startswith("data.") for text in overrides)
        return load_config(path, [*overrides, *SHORT, *(SCENES if is_drawn else ())], *arguments, **options)

    monkeypatch.chdir(folder)
    monkeypatch.setattr(detector.config, "load_config", load)
    monkeypatch.setattr(detector.training, "load_config", load)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_examples_run(document: str, at_home: None):
    for block in blocks(document):
        if block.reason:
            continue
        if block.language == "bash":
            for words in block.commands:
                words = words[words.index("&&") + 1 :] if "&&" in words else words
                assert run_command(words) == 0, words
        elif block.language == "python":
            exec(compile(block.text, document, "exec"), {})
        elif block.language == "yaml":
            (Path.cwd() / "mine.yaml").write_text(block.text)
            if "variants:" in block.text:
                assert make_selection_runs(load_study("./mine.yaml"))
            else:
                load_config("./mine.yaml")
        else:
            pytest.fail(f"{document}: a block of {block.language}")


@pytest.mark.slow
def test_the_reference_of_the_keys_is_that_of_the_code(tmp_path: Path):
    text = (REPO / "configs/README.md").read_text(encoding="utf-8")
    (tmp_path / "copy.md").write_text(text, encoding="utf-8")
    # in a process of its own: other tests register parts
    ended = ranks.run_command(tmp_path, "keys", "--update", "copy.md")
    assert ended.code == 0, ended.errors
    assert (tmp_path / "copy.md").read_text(encoding="utf-8") == text, "run `detector keys --update configs/README.md`"


def test_every_key_and_every_part_has_a_description():
    missing = [key.path for key in keys() if not key.meaning]
    for path, registry in registries().items():
        for part in (part for part in parts(registry) if part.name in names_of_the_library(registry)):
            missing += [f"{path}={part.name}"] * (not part.summary)
            missing += [f"{path}={part.name}: {key.path}" for key in part.parameters if not key.meaning]
    assert not missing


def test_the_reference_names_values_and_defaults():
    reference = {key.path: key for key in keys()}
    assert reference["data.split"].values == "number above 0 below 1 or null"
    assert reference["train.epochs"].values == "integer from 1" and reference["train.epochs"].default == "12"
    assert reference["data.train"].default == "" and "loss.classification" in registries()
    focal = next(part for part in parts(registries()["loss.classification"]) if part.name == "focal")
    assert {key.path: key.default for key in focal.parameters}["gamma"] == "2.0"
    assert "`focal.gamma`" in as_markdown()
