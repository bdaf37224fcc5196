"""What a user asks of a study on a cluster, over a fake one; how it is ended is tested with the steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("urllib3", reason="needs the extra automonai[cluster]")
from fake_cluster import FakeCluster

from automonai import cluster_studies
from automonai.errors import UserError
from automonai.storage import keys
from automonai.storage.local import LocalStore

RUN = "trial-0000-epochs-0001-fold-0"


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    cluster = FakeCluster()
    cluster.start()
    yield cluster
    cluster.stop()


def test_a_log_comes_from_the_store(tmp_path: Path) -> None:
    LocalStore(tmp_path).put(keys.log(RUN), b"epoch 1\n")
    assert cluster_studies.logs(str(tmp_path), RUN, namespace="test") == "epoch 1\n"
    with pytest.raises(UserError, match="run nothing has no log"):
        cluster_studies.logs(str(tmp_path), "nothing", namespace="test")


def test_a_running_pods_log_comes_from_the_cluster(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    monkeypatch.setattr(cluster_studies, "open_store", lambda location: store)
    labels = {"app.kubernetes.io/part-of": "automonai", "automonai/study": "brain", "automonai/run": RUN}
    store.put(keys.log(RUN), b"of a pod that was evicted\n")
    for name, phase, second in (("newest", "Pending", 3), ("a-second", "Running", 2), ("first", "Failed", 1)):
        metadata = {"name": name, "labels": labels, "creationTimestamp": f"2026-01-01T00:00:0{second}Z"}
        cluster.put("pods", {"metadata": metadata, "status": {"phase": phase}})
        cluster.logs[name] = f"of pod {name}\n"

    def log(run_id: str) -> str:
        return cluster_studies.logs("s3://b/studies/brain", run_id, namespace="test", api=cluster.api())

    assert log(RUN) == "of pod a-second\n"
    store.put(keys.result(RUN), b"{}")
    assert log(RUN) == "of a pod that was evicted\n"
    with pytest.raises(UserError, match="automonai runs"):
        log("nothing")
