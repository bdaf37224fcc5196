from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[3]))  # scripts is a folder of the repository, not installed


@pytest.fixture(scope="session")
def promtool() -> str:
    """Give the path of promtool; skip where it is not on PATH."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on PATH")
    return program
