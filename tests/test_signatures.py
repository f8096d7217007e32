"""What is read from the source is what the parts say of themselves once they are imported."""

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
SCRIPT = """
import sys
from detector.core import registry
from detector.signatures import declare_parts

registries = {name: value for name, value in vars(registry).items() if isinstance(value, registry.Registry)}


def look():
    return {
        (name, part): (found.model_json_schema(), getattr(registries[name].get(part), "mines", None))
        for name in registries
        for part in registries[name].names()
        for found in [registries[name]._parts[part].schema]
    }


declare_parts()
declared = look()
assert "torch" not in sys.modules and "numpy" not in sys.modules
import detector.build

registered = look()
for key in declared.keys() | registered.keys():
    assert not registries[key[0]]._parts[key[1]].declared, key
    assert declared[key][0] == registered[key][0] and bool(declared[key][1]) == bool(registered[key][1]), key
assert len(registered) >= 30
print("same")
"""


def test_declared_signatures_are_the_registered_ones():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=REPO, check=False)
    assert (done.stdout, done.stderr) == ("same\n", "")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("nope=1", "error: nope: unknown key"),
        ("loss.classification.gama=1", "error: loss.classification.gama: unknown key; did you mean 'gamma'?"),
        ("data.train.type=cocoo", "error: data.train.type: no data set 'cocoo'; did you mean 'coco'?"),
        ("assigner.foreground=2", "error: assigner.foreground: 2 is wrong: should be less than or equal to 1"),
    ],
)
def test_a_wrong_config_does_not_wait_for_torch(override: str, line: str):
    command = [sys.executable, "-X", "importtime", "tools/train.py", "--cfg", "retina_focal.yaml", override]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 2
    said = done.stderr.splitlines()
    assert [text for text in said if not text.startswith("import time:")] == [said[-1]] and said[-1].startswith(line)
    imported = {text.rpartition("|")[2].strip() for text in said}
    assert "pydantic" in imported and not imported & {"torch", "numpy"}
