"""What was measured to be fastest is taken by the next training, on the same machine and of the same config alone."""

import os

import pytest

from detector.core import machine
from detector.core.machine import keep_fastest, take_fastest


@pytest.fixture(autouse=True)
def own_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in machine.OPENMP:
        monkeypatch.setenv(name, "")  # so that it is as before after the test, whatever the test sets
        monkeypatch.delenv(name)


def test_what_was_kept_is_taken_by_the_same_config():
    keep_fastest("configs/other.yaml", 0, {"OMP_NUM_THREADS": "8"})
    keep_fastest("configs/mine.yaml", 1, {"OMP_NUM_THREADS": "2"})
    keep_fastest("configs/mine.yaml", 2, {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "passive"})
    assert take_fastest("mine.yaml")["workers"] == 2
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("3", "passive")


def test_nothing_is_taken_where_nothing_was_measured(monkeypatch):
    assert take_fastest("mine.yaml") is None
    keep_fastest("mine.yaml", 1, {"OMP_NUM_THREADS": "2"})
    assert take_fastest("other.yaml") is None
    monkeypatch.setattr(machine, "version", lambda package: "another")
    assert take_fastest("mine.yaml") is None
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_users_own_choice_stays(monkeypatch):
    keep_fastest("mine.yaml", 1, {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # or torchrun's
    assert take_fastest("mine.yaml") is None
    assert os.environ["OMP_NUM_THREADS"] == "1" and "OMP_WAIT_POLICY" not in os.environ


def test_a_damaged_record_is_none(tmp_path):
    path = keep_fastest("mine.yaml", 1, {})
    assert path.is_relative_to(tmp_path)
    path.write_text(path.read_text()[:-5])
    assert take_fastest("mine.yaml") is None
    keep_fastest("mine.yaml", 3, {})
    assert take_fastest("mine.yaml")["workers"] == 3
