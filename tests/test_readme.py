import ast
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import detector.build  # noqa: F401  (registers every part)
from detector.config import load_config

REPO = Path(__file__).parents[1]
README = (REPO / "README.md").read_text()


def block(language: str) -> str:
    (code,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return code


def test_the_loss_it_shows_trains_from_its_yaml_line(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hinge.yaml").write_text("data: {train: synthetic, val: synthetic}\n" + block("yaml"))
    loss = load_config(str(tmp_path / "hinge.yaml")).loss.classification.build()

    logits = torch.tensor([[4.0, -1.0], [0.5, -3.5]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2])  # the first row's class is 0, the second is background; the margin is 3
    expected = F.softplus(torch.tensor([-1.0, 0.5])).sum() / 1  # right by 4 and 3.5: not counted
    assert loss(logits, labels, 1).item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, 1), logits)


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
