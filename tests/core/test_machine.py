"""A training uses the fastest settings that were measured for the same config on the same machine."""

import os

import pytest

from detector.core import machine
from detector.core.machine import keep_fastest, take_fastest


@pytest.fixture(autouse=True)
def clean_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in machine.OPENMP:
        monkeypatch.setenv(name, "")  # after the test, monkeypatch restores a variable that it has set
        monkeypatch.delenv(name)


def test_the_same_config_gets_the_latest_record():
    keep_fastest("configs/other.yaml", 0, {"OMP_NUM_THREADS": "8"})
    keep_fastest("configs/mine.yaml", 1, {"OMP_NUM_THREADS": "2"})
    keep_fastest("configs/mine.yaml", 2, {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "passive"})
    assert take_fastest("mine.yaml")["workers"] == 2
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("3", "passive")


def test_another_config_or_machine_gets_no_record(monkeypatch):
    assert take_fastest("mine.yaml") is None
    keep_fastest("mine.yaml", 1, {"OMP_NUM_THREADS": "2"})
    assert take_fastest("other.yaml") is None
    monkeypatch.setattr(machine, "version", lambda package: "another")
    assert take_fastest("mine.yaml") is None
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_variable_of_the_user_or_of_torchrun_has_priority(monkeypatch):
    keep_fastest("mine.yaml", 1, {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert take_fastest("mine.yaml") is None
    assert os.environ["OMP_NUM_THREADS"] == "1" and "OMP_WAIT_POLICY" not in os.environ


def test_a_damaged_file_counts_as_no_record(tmp_path):
    path = keep_fastest("mine.yaml", 1, {})
    assert path.is_relative_to(tmp_path)
    path.write_text(path.read_text()[:-5])
    assert take_fastest("mine.yaml") is None
    keep_fastest("mine.yaml", 3, {})
    assert take_fastest("mine.yaml")["workers"] == 3
