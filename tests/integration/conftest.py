from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))


@pytest.fixture
def minio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Give a MinIO of the test's own, which it may stop, and which the environment's variables name."""
    pytest.importorskip("minio", reason="needs the extra automonai[cluster]")
    from minio_server import running

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    with running(tmp_path / "minio") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
