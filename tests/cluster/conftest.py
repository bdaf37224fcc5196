"""A namespace of a real cluster: the one of KUBECONFIG. Without it these tests are skipped."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cluster_release import helm

from automonai.errors import ClusterError
from automonai.execution.cluster_api import ClusterApi, connect

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

CHART = Path(__file__).parents[2] / "charts" / "automonai"
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


@contextmanager
def new_namespace(client: ApiClient) -> Iterator[str]:
    """Give a new namespace that enforces Pod Security 'restricted'; afterwards it is deleted with all that it holds."""
    from kubernetes.client import CoreV1Api

    core = CoreV1Api(client)
    name = f"automonai-test-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    core.create_namespace({"metadata": {"name": name, "labels": labels}})
    try:
        yield name
    finally:
        core.delete_namespace(name)


@pytest.fixture
def namespace(kubernetes_client: ApiClient) -> Iterator[str]:
    """Give a namespace of the test's own."""
    with new_namespace(kubernetes_client) as name:
        yield name


@pytest.fixture(scope="session")
def release(kubernetes_client: ApiClient) -> Iterator[str]:
    """Install the chart with its own MinIO into a restricted namespace, once for all tests; give the namespace."""
    tag = os.environ.get("AUTOMONAI_TEST_TAG", "")
    if not tag or shutil.which("helm") is None:
        pytest.skip("AUTOMONAI_TEST_TAG and helm are needed: 'scripts/test cluster' provides the images")
    settings = [
        "minio.enabled=true",
        "image.registry=localhost",
        f"image.tag={tag}",
        "trial.gpu.count=1",
        "trial.resources.requests.cpu=100m",
    ]
    values = [word for setting in settings for word in ("--set", setting)]
    with new_namespace(kubernetes_client) as name:
        helm("install", "automonai", str(CHART), "-n", name, *values, "--wait", "--timeout", "5m")
        yield name
        helm("uninstall", "automonai", "-n", name, "--wait")


@pytest.fixture
def cluster_api(namespace: str) -> ClusterApi:
    """Give our own view of that namespace."""
    return connect(namespace)
