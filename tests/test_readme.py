import ast
import re
from pathlib import Path

import pytest

from detector.config import load_config

REPO = Path(__file__).parents[1]
README = (REPO / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((REPO / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_valid_and_says_its_command(path):
    load_config(path.name)
    header = path.read_text().splitlines()[0]
    assert header.startswith("# ")


def test_every_room_is_in_the_guide_and_every_file_says_what_it_is():
    guide = (REPO / "detector" / "README.md").read_text()
    for folder in (REPO / "detector").iterdir():
        if (folder / "__init__.py").is_file():
            assert f"{folder.name}/" in guide, f"{folder.name} is missing in detector/README.md"
    for file in (REPO / "detector").rglob("*.py"):
        assert ast.get_docstring(ast.parse(file.read_text())), f"{file} does not say what it is"
    for path in re.findall(r"tools/(\w+\.py)", README):
        assert (REPO / "tools" / path).is_file()
