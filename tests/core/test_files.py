"""Files are replaced atomically, and all text files are UTF-8, also with names that UTF-8 cannot encode."""

import ast
import csv
import json
import os
from pathlib import Path

import pytest

from detector.core.errors import UserError
from detector.core.files import csv_line, replacing, unique_names, write_bytes, write_json, write_text

ROOT = Path(__file__).parents[2]
SOURCES = [*ROOT.glob("detector/**/*.py"), *ROOT.glob("tools/*.py")]
NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path: Path):
    path = tmp_path / "deep/a.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
        raise KeyError
    assert path.read_text(encoding="utf-8") == "old"
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(path.parent) == ["a.txt"]
    longest = tmp_path / f"{'图' * 83}a.txt"
    write_text(longest, "new")
    assert longest.read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize(
    "write", [lambda p: write_text(p, "a"), lambda p: write_json(p, 1), lambda p: write_bytes(p, b"")]
)
def test_a_folder_is_not_replaced_by_a_file(write, tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError) as error:
        write(tmp_path / "out")
    assert str(tmp_path / "out") in error.value.problem and error.value.remedy
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == []


def test_a_value_that_json_cannot_encode_writes_no_file(tmp_path: Path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert os.listdir(tmp_path) == []


def test_a_name_that_is_not_utf8_survives_in_json_and_is_escaped_in_text(tmp_path: Path):
    write_json(tmp_path / "a.json", [NOT_UTF8, "图"])
    assert json.loads((tmp_path / "a.json").read_bytes()) == [NOT_UTF8, "图"]
    write_text(tmp_path / "a.txt", f"{NOT_UTF8} 图")
    assert (tmp_path / "a.txt").read_bytes().decode("utf-8") == r"caf\udce9.png 图"


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a\rb", "a\nb", "a\r\nb", " a ", "", "图", "$|<"])
def test_a_csv_line_can_contain_any_text(name: str, tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text(csv_line(["x", "y"]) + csv_line([name, None]) + csv_line([1, 0.5]), encoding="utf-8", newline="")
    assert path.read_bytes().startswith(b"x,y\n")
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["x", "y"], [name, ""], ["1", "0.5"]]


def test_names_of_files_are_unique_and_short_enough(tmp_path: Path):
    given = ["a", "a", "a_2", "a", "图" * 85, "图" * 85, "b" * 255]
    names = unique_names(given)
    assert names[:4] == ["a", "a_2", "a_2_2", "a_3"] and len(set(names)) == len(given)
    for name in names:
        (tmp_path / f"{name}.000001.txt").write_bytes(b"")


def without_encoding(source: str) -> list[int]:
    """Return the numbers of the lines that open, read or write a text file in the encoding of the locale."""
    lines = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = getattr(getattr(call.func, "value", None), "id", "")
        if name not in ("open", "read_text", "write_text") or owner in ("os", "Image"):
            continue
        if isinstance(call.func, ast.Name) and name == "write_text":  # the function of detector.core.files
            continue
        constants = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        is_binary = name == "open" and any(isinstance(value, str) and "b" in value for value in constants)
        has_encoding = any(keyword.arg in ("encoding", None) for keyword in call.keywords)  # None is **WRITE_TEXT
        if not is_binary and not has_encoding:
            lines.append(call.lineno)
    return lines


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_file_uses_the_encoding_of_the_locale(path: Path):
    assert without_encoding(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("source", ["open('a')", "p.open('w')", "p.read_text()", "p.write_text('b')", "open(p, 'a')"])
def test_a_call_without_encoding_is_detected(source: str):
    assert without_encoding(source) == [1]
