"""Layers: a module may import modules of lower layers and of its package, and no others."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    {"core"},
    {"old_versions"},
    {"geometry", "kernels"},
    {"losses", "models", "data"},
    {"evaluation"},
    {"imbalance"},
    {"engine"},
    {"config"},
    {"build"},
    {"deploy"},
    {"lab"},
    {"benchmarks"},
    {"training"},
    {"cli"},
    {"__main__"},
    {"tools"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = [*ROOT.glob("detector/**/*.py"), *ROOT.glob("tools/*.py")]


def part(path: Path) -> str:
    """Return the package or module directly under detector/, or `tools`."""
    first, *others = path.relative_to(ROOT).with_suffix("").parts
    return first if first == "tools" else others[0]


def imported_parts(source: str) -> set[str]:
    """Return the parts of `detector` that a file imports, also inside functions. Relative imports are refused."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not allowed"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("detector.")}


def forbidden(importer: str, imported: set[str]) -> set[str]:
    """Return the parts in `imported` that the part `importer` must not import."""
    return {name for name in imported - {importer} if LEVEL[name] >= LEVEL[importer]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_lead_to_lower_layers(path: Path):
    importer, imported = part(path), imported_parts(path.read_text())
    if importer == "__init__":
        assert imported <= {"deploy", "training"}, "the package has only the names `Detector` and `train`"
        return
    unknown = ({importer} | imported) - LEVEL.keys()
    assert not unknown, f"add {', '.join(unknown)} to a layer"
    wrong = forbidden(importer, imported)
    assert not wrong, f"{importer} must not import {', '.join(sorted(wrong))}"


def test_importing_the_package_imports_none_of_its_parts():
    """The first access imports `Detector` (tests/test_predict.py), and other names are unknown."""
    program = """
import sys
import detector
parts = {name for name in sys.modules if name.startswith("detector")}
assert parts == {"detector"} and "torch" not in sys.modules and "numpy" not in sys.modules
assert not hasattr(detector, "Detectr") and "torch" not in sys.modules
from detector.core import errors
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=ROOT)


def test_each_layer_has_files():
    assert {part(path) for path in FILES} - {"__init__"} == LEVEL.keys()


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("geometry", "import detector.losses.focal"),
        ("losses", "from detector.models import fpn"),
        ("models", "def f():\n    from detector import config"),
        ("engine", "from detector.config import Config"),
        ("core", "from detector.geometry.boxes import decode"),
        ("build", "from detector.deploy.predict import Detector"),
    ],
)
def test_a_wrong_import_is_detected(importer: str, source: str):
    assert forbidden(importer, imported_parts(source))
