"""A namespace of a real cluster: the one of KUBECONFIG. Without it these tests are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from real_cluster import DATASET, installed, new_namespace, store_on_this_machine

from automonai import api
from automonai.errors import ClusterError
from automonai.execution.cluster_api import ClusterApi, connect

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

IMAGE_VARIABLE = "AUTOMONAI_TEST_IMAGE"


@pytest.fixture(scope="session")
def kubernetes_client() -> ApiClient:
    """Give the whole client of the cluster, for what only tests do: namespaces, quotas, evictions."""
    kubernetes = pytest.importorskip("kubernetes", reason="needs the extra automonai[cluster]")
    if "KUBECONFIG" not in os.environ:
        pytest.skip("KUBECONFIG is not set: there is no cluster to test on")
    try:
        connect("default").list("jobs", "app.kubernetes.io/part-of=nothing")
    except ClusterError as error:
        pytest.skip(f"the cluster of KUBECONFIG does not answer: {error}")
    return kubernetes.config.new_client_from_config()


@pytest.fixture(scope="session")
def image() -> str:
    """Give an image on the cluster's nodes with a `python` on its path."""
    name = os.environ.get(IMAGE_VARIABLE, "")
    if not name:
        pytest.skip(f"{IMAGE_VARIABLE} is not set: it names an image with Python that the nodes have")
    return name


@pytest.fixture
def namespace(kubernetes_client: ApiClient) -> Iterator[str]:
    """Give a new namespace that enforces Pod Security 'restricted'; afterwards it is deleted with all that it holds."""
    with new_namespace(kubernetes_client) as name:
        yield name


@pytest.fixture
def cluster_api(namespace: str) -> ClusterApi:
    """Give our own view of that namespace."""
    return connect(namespace)


@pytest.fixture(scope="session")
def release(kubernetes_client: ApiClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Install the chart with its own MinIO into a restricted namespace, push a small dataset; give the namespace.

    All tests share it: what a test starts there, it ends.
    """
    dataset = api.phantom(tmp_path_factory.mktemp("data") / "phantom", cases=8, shape=(24, 24, 20))
    with new_namespace(kubernetes_client) as namespace, installed(namespace):
        with pytest.MonkeyPatch.context() as monkeypatch, store_on_this_machine(namespace, monkeypatch):
            api.push_data(dataset, DATASET)
        yield namespace
