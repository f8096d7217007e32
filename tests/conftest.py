import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real data sets: DETECTOR_TEST_DATA, else shared/data beside the repository."""
    folder = Path(os.environ.get("DETECTOR_TEST_DATA") or Path(__file__).parents[2] / "shared/data")
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}; set DETECTOR_TEST_DATA")
    return folder
