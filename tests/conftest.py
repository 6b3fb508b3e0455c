"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real weights and images; without it the test is skipped with a reason."""
    folder = os.environ.get("RAYLENS_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RAYLENS_TEST_DATA names no folder: tests on real weights and images need it")
    return Path(folder)
