"""The layers run one way: an import leads from a layer to one below it, or stays inside its own package."""

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
    """The package or module directly under detector/, or `tools`."""
    first, *rest = path.relative_to(ROOT).with_suffix("").parts
    return first if first == "tools" else rest[0]


def imported_parts(source: str) -> set[str]:
    """The parts of `detector` that a file imports, inside functions too; relative imports are refused."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole module"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("detector.")}


def forbidden(own: str, imported: set[str]) -> set[str]:
    """What of `imported` the part `own` may not import."""
    wrong = {name for name in imported - {own} if LEVEL[name] >= LEVEL[own]}
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_lead_down(path: Path):
    own, imported = part(path), imported_parts(path.read_text())
    if own == "__init__":
        assert imported <= {"deploy", "training"}, "the package gives what it is asked for, and nothing else"
        return
    unknown = ({own} | imported) - LEVEL.keys()
    assert not unknown, f"give {', '.join(unknown)} a layer"
    assert not forbidden(own, imported), f"{own} may not import {', '.join(sorted(forbidden(own, imported)))}"


def test_importing_the_package_imports_none_of_its_parts():
    """`Detector` comes when it is asked for (tests/test_predict.py), and other names are unknown."""
    program = """
import sys
import detector
own = {name for name in sys.modules if name.startswith("detector")}
assert own == {"detector"} and "torch" not in sys.modules and "numpy" not in sys.modules
assert not hasattr(detector, "Detectr") and "torch" not in sys.modules
from detector.core import errors
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=ROOT)


def test_every_layer_is_seen():
    assert {part(path) for path in FILES} - {"__init__"} == LEVEL.keys()


@pytest.mark.parametrize(
    ("own", "source"),
    [
        ("geometry", "import detector.losses.focal"),
        ("losses", "from detector.models import fpn"),
        ("models", "def f():\n    from detector import config"),
        ("engine", "from detector.config import Config"),
        ("core", "from detector.geometry.boxes import decode"),
        ("build", "from detector.deploy.predict import Detector"),
    ],
)
def test_a_wrong_import_is_found(own: str, source: str):
    assert forbidden(own, imported_parts(source))
