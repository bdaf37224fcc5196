from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from automonai.execution.fake import VirtualClock
from automonai.storage.memory import MemoryStore

if TYPE_CHECKING:
    from job_bench import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    from fake_cluster import FakeCluster
    from job_bench import Bench

    cluster = FakeCluster()
    cluster.start()
    bench = Bench(cluster, MemoryStore(), VirtualClock(), [])
    yield bench
    for executor in bench.made:
        executor.close()
    cluster.stop()
