"""The fixtures of all tests."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from detector.core.machine import num_cores

if "PYTEST_XDIST_WORKER" in os.environ:  # OpenMP reads it when torch is imported, and too many threads are slow
    threads = max(1, num_cores() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def pytest_xdist_auto_num_workers() -> int:
    """Start two processes more than there are cores: many tests wait for other processes."""
    return num_cores() + 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with slow tests first, so that no process waits at the end for a long file of another process."""
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)


def pytest_collection_finish() -> None:
    """Exclude the modules and the collected tests from garbage collection, which saves a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real data sets: DETECTOR_TEST_DATA, or shared/data next to the repository."""
    folder = Path(os.environ.get("DETECTOR_TEST_DATA") or Path(__file__).parents[2] / "shared/data")
    if not folder.is_dir():
        pytest.skip(f"there are no real data sets in {folder}; set DETECTOR_TEST_DATA")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a separate cache folder for all tests and the processes that they start, which also find the tests' parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def registered_parts() -> Iterator[None]:
    """Remove the parts that the tests of a file have registered, because a probe builds all registered losses."""
    import small_resnet  # noqa: F401 (the backbone of many tests stays registered)

    from detector import data, losses  # imported here, after OMP_NUM_THREADS is set
    from detector.geometry import assignment
    from detector.models.backbones import BACKBONES

    registries = [losses.CLASSIFICATION_LOSSES, losses.BOX_LOSSES, losses.ANCHOR_SAMPLERS]
    registries += [assignment.ASSIGNERS, data.DATASETS, data.IMAGE_SAMPLERS, data.TRANSFORMS, BACKBONES]
    with pytest.MonkeyPatch.context() as patch:
        for registry in registries:
            patch.setattr(registry, "_entries", dict(registry._entries))
        yield
