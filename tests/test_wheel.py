"""The built wheel in a bare environment: the command runs from an empty folder, with the configs that it carries."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
SMALL = (
    *("data.train.num_images=8", "data.val.num_images=4", "data.train.image_size=64", "data.val.image_size=64"),
    *("data.short_side=64", "train.epochs=1", "model.width=16"),
)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv builds the wheel and the environment; pip install uv")
def test_the_wheel_trains_from_an_empty_folder(tmp_path: Path):
    variables = os.environ | {"UV_COMPILE_BYTECODE": "0"}  # most of the packages' modules are not imported
    variables.pop("XDG_CACHE_HOME")  # the tests' own: uv would download all packages again

    def uv(*arguments: object) -> None:
        command = ["uv", *map(str, arguments)]
        subprocess.run(command, cwd=tmp_path, env=variables, check=True, capture_output=True, timeout=600)

    uv("build", "--wheel", "--out-dir", tmp_path / "dist", REPO)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {str(path.relative_to(REPO)) for path in (REPO / "configs").rglob("*.yaml")}
    assert {f"detector/{name}" for name in configs} | {"detector/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests/", "tools/", "configs/"))]

    uv("venv", "--python", sys.executable, "environment")
    uv("pip", "install", "--python", "environment/bin/python", wheel)
    (tmp_path / "empty").mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [tmp_path / "environment/bin/detector", "train", "--cfg", "retina_focal.yaml", *SMALL],
        cwd=tmp_path / "empty",
        env=environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (metrics,) = (tmp_path / "empty").glob("runs/retina_focal/*/metrics.json")
    assert (metrics.parent / "checkpoints/best.pt").is_file()
