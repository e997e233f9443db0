"""Fixtures that several test files use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The founders' folder of golden files and small data: beside the repository, or $AMILST_SHARED."""
    directory = Path(os.environ.get("AMILST_SHARED", _BESIDE_THE_REPOSITORY))
    if not directory.is_dir():
        pytest.skip(f"no shared folder at {directory}; set AMILST_SHARED to the folder that holds golden/")
    return directory
