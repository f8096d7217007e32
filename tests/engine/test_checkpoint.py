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
from detector.engine.checkpoint import is_intact, load_checkpoint, newest_intact, save_checkpoint
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
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Interrupted:
    """Raises KeyboardInterrupt when it is pickled."""

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
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode  # the permissions of a new file


@pytest.mark.parametrize(
    ("spoiler", "raised"),
    [
        (lambda: None, (pickle.PicklingError, AttributeError)),
        (Interrupted(), KeyboardInterrupt),
        (open, None),
    ],
    ids=["unpicklable", "interrupted", "foreign object"],
)
def test_a_failed_write_changes_no_file(spoiler: object, raised: type | None, tmp_path: Path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, contents())
    before = path.read_bytes()
    if raised is None:  # the write succeeds, but a reader accepts only tensors and plain containers
        save_checkpoint(tmp_path / "other.pt", contents() | {"extra": spoiler})
        with pytest.raises(UserError, match=r"other\.pt"):
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
    ("write", "facts"),
    [
        (lambda path: None, ""),
        (Path.mkdir, ""),
        (Path.touch, ""),
        (_text, ""),
        (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), ""),
        (lambda path: path.write_bytes(pickle.dumps(contents()["class_names"], protocol=2)), ""),
        (_saved([1, 2]), "list"),
        (_saved({"weight": torch.zeros(2)}), "category_ids, class_names, config, model, version"),
        (_without("class_names"), "class_names"),
        (_saved(contents() | {"version": CHECKPOINT_VERSION + 1}), str(CHECKPOINT_VERSION + 1)),
    ],
)
def test_a_file_that_is_not_a_checkpoint_gets_one_line(write: Callable, facts: str, tmp_path: Path):
    path = tmp_path / "x.pt"
    write(path)
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert error.value.problem.startswith(f"{path}: ") and facts in error.value.problem
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("writer", ["torch", "legacy torch", "pickle"])
def test_code_in_a_file_is_not_executed(writer: str, tmp_path: Path):
    marker, path = tmp_path / "marker", tmp_path / "x.pt"
    value = contents() | {"model": Marker(marker)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(value, protocol=2))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(UserError, match=r"x\.pt") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value) and not marker.exists()
    torch.load(path, weights_only=False) if writer != "pickle" else pickle.loads(path.read_bytes())
    assert marker.exists()  # the file contained executable code


def test_truncated_and_damaged_files_are_detected(tmp_path: Path):
    path = tmp_path / "x.pt"
    save_checkpoint(path, contents())
    intact = path.read_bytes()
    damages = [intact[:length] for length in range(0, len(intact), 97)] + [intact[:-1], intact + b"0"]
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(intact)
        position = rng.integers(len(intact))
        damaged[position] ^= 1 << rng.integers(8)
        damages.append(bytes(damaged))
    for damaged in damages:
        path.write_bytes(damaged)
        assert not is_intact(path)
        with pytest.raises(UserError) as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value)
    path.write_bytes(intact)
    assert is_intact(path)
    load_checkpoint(path)


def test_pytorch_reads_a_checkpoint_and_the_archive_comment_is_its_hash(tmp_path: Path):
    path = tmp_path / "x.pt"
    save_checkpoint(path, contents())
    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        assert torch.equal(loaded["model"]["weight"], contents()["model"]["weight"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.decode() == hashlib.sha256(path.read_bytes()[:-64]).hexdigest()


def seeds(folder: Path) -> dict[str, int]:
    """Return the seed in each file."""
    return {path.name: load_checkpoint(path)["seed"] for path in sorted(folder.iterdir())}


def test_the_last_k_checkpoints_are_kept_and_the_newest_intact_one_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "last.pt"
    assert newest_intact(path) is None
    for seed in range(5):
        save_checkpoint(path, contents(seed) | {"seed": seed}, keep=3)
    assert seeds(tmp_path) == {"last.1.pt": 3, "last.2.pt": 2, "last.pt": 4}
    assert newest_intact(path) == path
    (tmp_path / "last.pt.tmp").write_bytes(path.read_bytes()[:1000])  # of a killed writer
    for damaged, newest in (("last.pt", "last.1.pt"), ("last.1.pt", "last.2.pt")):
        (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:-100])
        caplog.clear()
        assert newest_intact(path) == tmp_path / newest
        assert damaged in caplog.text
    path.unlink()  # a process can be killed between two renames
    assert newest_intact(path) == tmp_path / "last.2.pt"
    save_checkpoint(path, contents(9) | {"seed": 9}, keep=3)
    assert newest_intact(path) == path and load_checkpoint(path)["seed"] == 9


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
def test_a_damaged_file_never_replaces_an_intact_file_if_a_writer_is_killed_between_renames(
    renames: int, keep: int, damaged: str, end: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "last.pt"
    for seed in range(3):
        save_checkpoint(path, contents(seed) | {"seed": seed}, keep)
    (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:-100])
    before = load_checkpoint(newest_intact(path))["seed"]
    replace, remaining = os.replace, iter(range(renames))

    def replace_or_die(*arguments: object) -> None:
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        replace(*arguments)

    monkeypatch.setattr(os, "replace", replace_or_die)
    try:
        save_checkpoint(path, contents(3) | {"seed": 3}, keep)
    except KeyboardInterrupt:
        assert load_checkpoint(newest_intact(path))["seed"] == before
    else:
        assert seeds(tmp_path) == end


def test_a_full_disk_raises_its_os_error(tmp_path: Path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, contents())
    before = path.read_bytes()
    (tmp_path / "last.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError) as error:
        save_checkpoint(path, contents(1))
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# Paths of other kinds


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name in ("best", "last"):
        save_checkpoint(folder / f"checkpoints/{name}.pt", {})
    (folder / "config.yaml").write_text("data: {}\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["", "checkpoints", "config.yaml"])
def test_a_run_folder_and_its_config_name_the_checkpoint_to_use(run: Path, name: str):
    for load in (load_checkpoint, Detector.load, lambda path: Detector.load(str(path))):
        with pytest.raises(UserError) as error:
            load(run / name)
        line = str(error.value)
        assert line.startswith(f"{run / name}: ") and str(run / "checkpoints/best.pt") in line


@pytest.mark.parametrize("name", ["model.onnx", "metrics.json", "a.jpg", "empty"])
def test_a_file_that_is_not_a_checkpoint_gets_the_name_of_a_checkpoint(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / name).touch() if name != "empty" else None
    with pytest.raises(UserError) as error:
        load_checkpoint(tmp_path / name)
    assert str(tmp_path / name) in error.value.problem and "best.pt" in str(error.value)


@pytest.mark.parametrize("name", ["", "checkpoints", "checkpoints/best.pt"])
def test_a_run_folder_and_its_checkpoint_name_the_config_to_use(run: Path, name: str):
    with pytest.raises(UserError) as error:
        load_config(str(run / name))
    line = str(error.value)
    assert line.startswith(f"{run / name}: ") and str(run / "config.yaml") in line
    assert ("--checkpoint" in line) == name.endswith(".pt")


def test_a_study_is_not_a_config_and_a_config_is_not_a_study(tmp_path: Path):
    with pytest.raises(UserError, match="detector study"):
        load_config(str(STUDIES / "losses.yaml"))
    with pytest.raises(UserError, match="retina_focal.yaml.*study"):
        load_study(str(CONFIGS / "retina_focal.yaml"))


def test_a_tilde_is_the_home_folder(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(run.parent))
    with pytest.raises(UserError, match="class_names"):  # the file exists, but lacks this key
        Detector.load("~/run/checkpoints/best.pt")
