from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from chart_rendering import APIS, CHART, VALUES, Helm, Object  # noqa: E402 - found by the line above


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Run helm; skip where it is not on PATH."""
    program = shutil.which("helm")
    if program is None:
        pytest.skip("helm is not on PATH")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture(scope="session")
def render(helm: Helm) -> Callable[..., list[Object]]:
    """Return the objects that a values file of this folder renders to."""

    @cache
    def rendered(
        name: str, *more: str, apis: Sequence[str] = APIS, release: str = "automonai", namespace: str = "automonai"
    ) -> list[Object]:
        known = [argument for api in apis for argument in ("--api-versions", api)]
        values = ("-f", str(VALUES / f"{name}.yaml"))
        answer = helm("template", release, str(CHART), "-n", namespace, *values, *known, *more)
        assert answer.returncode == 0, answer.stderr
        return [document for document in yaml.safe_load_all(answer.stdout) if document]

    return rendered


@pytest.fixture(scope="session")
def is_renewed() -> bool:
    return bool(os.environ.get("AUTOMONAI_RENEW_GOLDEN"))
