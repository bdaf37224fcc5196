from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A slow or busy machine is no fault of what is tested.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Give a running MinIO; tests that ask for it are skipped where the program or the client is missing."""
    pytest.importorskip("minio", reason="needs the extra automonai[cluster]")
    from minio_server import running

    with running(tmp_path_factory.mktemp("minio")) as server:
        yield server
