import errno
import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.config import CONFIGS, load_config
from detector.core.errors import UserError
from detector.deploy.predict import Detector
from detector.engine.checkpoint import is_whole, load_checkpoint, newest_whole, save_checkpoint
from detector.lab.study.plan import STUDIES, load_study
from detector.old_versions import CHECKPOINT_VERSION


def contents(seed: int = 0) -> dict:
    weights = {"weight": torch.randn(20, 30, generator=torch.Generator().manual_seed(seed))}
    return {
        "version": CHECKPOINT_VERSION,
        "config": "data: {}",
        "class_names": ["a", "b"],
        "category_ids": [3, 1],
        "model": weights,
        "training": {"best_ap": float("-inf"), "random": [("MT19937", torch.arange(4)), [1, None]]},
    }


class Marker:
    """Unpickling it would leave a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Interrupted:
    def __reduce__(self):
        raise KeyboardInterrupt


def test_round_trip_and_replacement(tmp_path: Path):
    path = tmp_path / "checkpoints" / "last.pt"
    for seed in (0, 1):
        save_checkpoint(path, contents(seed))
        loaded = load_checkpoint(path)
        assert torch.equal(loaded.pop("model")["weight"], contents(seed)["model"]["weight"])
        training = loaded.pop("training")
        assert training["best_ap"] == float("-inf") and torch.equal(training["random"][0][1], torch.arange(4))
        assert loaded == {k: v for k, v in contents().items() if k not in ("model", "training")}
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode  # as readable as any other file of the run


@pytest.mark.parametrize(
    ("spoiler", "raised"),
    [
        (lambda: None, (pickle.PicklingError, AttributeError)),
        (Interrupted(), KeyboardInterrupt),
        (open, None),
    ],
    ids=["unpicklable", "interrupted", "foreign object"],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(spoiler: object, raised: type | None, tmp_path: Path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, contents())
    before = path.read_bytes()
    if raised is None:  # written, but not to be read back: a reader takes tensors and plain containers alone
        save_checkpoint(tmp_path / "other.pt", contents() | {"extra": spoiler})
        with pytest.raises(UserError, match=r"other\.pt: not a readable checkpoint"):
            load_checkpoint(tmp_path / "other.pt")
        return
    with pytest.raises(raised):
        save_checkpoint(path, contents(1) | {"extra": spoiler})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _text(path: Path) -> None:
    path.write_text("weights\n")


def _saved(value: object) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path)


def _without(key: str) -> Callable[[Path], None]:
    return _saved({k: v for k, v in contents().items() if k != key})


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: None, "no such weights file"),
        (Path.mkdir, "a folder, not a checkpoint"),
        (Path.touch, "not a readable checkpoint"),
        (_text, "not a readable checkpoint"),
        (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "not a readable checkpoint"),
        (lambda path: path.write_bytes(pickle.dumps(contents()["class_names"], protocol=2)), "x.pt: "),
        (_saved([1, 2]), "holds a list, not a state dict"),
        (_saved({"weight": torch.zeros(2)}), "a foreign checkpoint .no category_ids, class_names, config, model, ver"),
        (_without("class_names"), "a foreign checkpoint .no class_names"),
        (
            _saved(contents() | {"version": CHECKPOINT_VERSION + 1}),
            f"checkpoint version {CHECKPOINT_VERSION + 1}, this release reads",
        ),
    ],
)
def test_what_is_no_checkpoint_of_ours_is_named_in_one_line(write: Callable, said: str, tmp_path: Path):
    path = tmp_path / "x.pt"
    write(path)
    with pytest.raises(UserError, match=said) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("writer", ["torch", "legacy torch", "pickle"])
def test_code_in_a_file_is_never_run(writer: str, tmp_path: Path):
    marker, path = tmp_path / "marker", tmp_path / "x.pt"
    value = contents() | {"model": Marker(marker)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(value, protocol=2))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(UserError, match=r"x\.pt: not a readable checkpoint") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value) and not marker.exists()
    torch.load(path, weights_only=False) if writer != "pickle" else pickle.loads(path.read_bytes())
    assert marker.exists()  # so the file did hold what it should not


def test_truncated_and_damaged_files(tmp_path: Path):
    """Not one byte may differ."""
    path = tmp_path / "x.pt"
    save_checkpoint(path, contents())
    whole = path.read_bytes()
    damages = [whole[:length] for length in range(0, len(whole), 97)] + [whole[:-1], whole + b"0"]
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        position = rng.integers(len(whole))
        damaged[position] ^= 1 << rng.integers(8)
        damages.append(bytes(damaged))
    for damaged in damages:
        path.write_bytes(damaged)
        assert not is_whole(path)
        with pytest.raises(UserError) as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value)
    path.write_bytes(whole)
    assert is_whole(path)
    load_checkpoint(path)


def test_pytorch_itself_reads_a_checkpoint_and_its_hash_is_the_archives_comment(tmp_path: Path):
    path = tmp_path / "x.pt"
    save_checkpoint(path, contents())
    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        assert torch.equal(loaded["model"]["weight"], contents()["model"]["weight"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.decode() == hashlib.sha256(path.read_bytes()[:-64]).hexdigest()


def seeds(folder: Path) -> dict[str, int]:
    """Which contents the files hold."""
    return {path.name: load_checkpoint(path)["seed"] for path in sorted(folder.iterdir())}


def test_the_last_k_are_kept_and_the_newest_whole_one_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "last.pt"
    assert newest_whole(path) is None
    for seed in range(5):
        save_checkpoint(path, contents(seed) | {"seed": seed}, keep=3)
    assert seeds(tmp_path) == {"last.1.pt": 3, "last.2.pt": 2, "last.pt": 4}
    assert newest_whole(path) == path
    (tmp_path / "last.pt.tmp").write_bytes(path.read_bytes()[:1000])  # a killed writer's
    for damaged, left in (("last.pt", "last.1.pt"), ("last.1.pt", "last.2.pt")):
        (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:-100])
        assert newest_whole(path) == tmp_path / left
        assert f"{damaged} is damaged: looking for an older checkpoint" in caplog.text
    path.unlink()  # as between two renames
    assert newest_whole(path) == tmp_path / "last.2.pt"
    save_checkpoint(path, contents(9) | {"seed": 9}, keep=3)
    assert newest_whole(path) == path and load_checkpoint(path)["seed"] == 9


@pytest.mark.parametrize(
    ("keep", "damaged", "end"),
    [
        (2, "last.pt", {"last.pt": 3, "last.1.pt": 1}),
        (2, "last.1.pt", {"last.pt": 3, "last.1.pt": 2}),
        (3, "last.pt", {"last.pt": 3, "last.2.pt": 1}),
        (3, "last.1.pt", {"last.pt": 3, "last.1.pt": 2, "last.2.pt": 0}),
    ],
)
@pytest.mark.parametrize("renames", range(4))
def test_killed_between_any_two_renames_a_damaged_file_has_replaced_no_whole_one(
    renames: int, keep: int, damaged: str, end: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "last.pt"
    for seed in range(3):
        save_checkpoint(path, contents(seed) | {"seed": seed}, keep)
    (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:-100])
    before = load_checkpoint(newest_whole(path))["seed"]
    replace, left = os.replace, iter(range(renames))

    def dying(*arguments: object) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(*arguments)

    monkeypatch.setattr(os, "replace", dying)
    try:
        save_checkpoint(path, contents(3) | {"seed": 3}, keep)
    except KeyboardInterrupt:
        assert load_checkpoint(newest_whole(path))["seed"] == before
    else:
        assert seeds(tmp_path) == end


def test_a_full_device_says_so(tmp_path: Path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, contents())
    before = path.read_bytes()
    (tmp_path / "last.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError) as error:
        save_checkpoint(path, contents(1))
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# The wrong kind of thing


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name in ("best", "last"):
        save_checkpoint(folder / f"checkpoints/{name}.pt", {})
    (folder / "config.yaml").write_text("data: {}\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["", "checkpoints", "config.yaml"])
def test_what_is_no_checkpoint_names_the_one_that_was_meant(run: Path, name: str):
    for load in (load_checkpoint, Detector.load, lambda path: Detector.load(str(path))):
        with pytest.raises(UserError) as error:
            load(run / name)
        line = str(error.value)
        assert line.startswith(f"{run / name}: ") and str(run / "checkpoints/best.pt") in line


@pytest.mark.parametrize("name", ["model.onnx", "metrics.json", "a.jpg", "empty"])
def test_what_is_no_checkpoint_and_has_none_beside_it(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / name).touch() if name != "empty" else None
    with pytest.raises(UserError) as error:
        load_checkpoint(tmp_path / name)
    assert "not a checkpoint" in str(error.value) and "best.pt" in str(error.value)


@pytest.mark.parametrize("name", ["", "checkpoints", "checkpoints/best.pt"])
def test_what_is_no_config_names_the_one_that_was_meant(run: Path, name: str):
    with pytest.raises(UserError) as error:
        load_config(str(run / name))
    line = str(error.value)
    assert line.startswith(f"{run / name}: ") and str(run / "config.yaml") in line
    assert ("--checkpoint" in line) == name.endswith(".pt")


def test_a_study_and_a_config_are_not_each_other(tmp_path: Path):
    with pytest.raises(UserError, match="detector study"):
        load_config(str(STUDIES / "losses.yaml"))
    with pytest.raises(UserError, match="a config, not a study"):
        load_study(str(CONFIGS / "retina_focal.yaml"))


def test_a_tilde_is_the_home_folder(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(run.parent))
    with pytest.raises(UserError, match="a foreign checkpoint"):  # it was found
        Detector.load("~/run/checkpoints/best.pt")
