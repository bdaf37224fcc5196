"""A release on an S3 service that is not the chart's: over TLS by an own authority, with the user's keys and bucket."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from certificates import make_authority
from faults import create
from real_cluster import (
    CHART,
    TRIALS,
    forwarded,
    helm,
    installed,
    kubectl,
    kubectl_json,
    new_namespace,
    submit,
    wait_for_end,
)

from automonai import api
from automonai.storage import keys
from automonai.storage.opening import open_store

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

BUCKET = "volumes"
SPEC = """
split: {test: 0.25, folds: 2}
search: {sampler: random, space: {depth: 2, channels: 4}, standard: {depth: 2, channels: 4}}
budget: {iterations: 1, min_epochs: 1, max_epochs: 1}
refit: {epochs: 1}
training: {max_patch_voxels: 4096}
execution: {device: cpu, threads: 1}
"""
DATASET, STUDY = f"s3://{BUCKET}/datasets/phantom", f"s3://{BUCKET}/studies/elsewhere"
ACCESS_KEY, SECRET_KEY = f"user-{secrets.token_hex(8)}", secrets.token_hex(20)
KEYS = (f"--from-literal=AWS_ACCESS_KEY_ID={ACCESS_KEY}", f"--from-literal=AWS_SECRET_ACCESS_KEY={SECRET_KEY}")


@pytest.fixture(scope="module")
def elsewhere(kubernetes_client: ApiClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a MinIO with TLS in a namespace of its own; this process reaches it; give its URL in the cluster."""
    from minio import Minio
    from urllib3 import PoolManager

    with new_namespace(kubernetes_client) as namespace, pytest.MonkeyPatch.context() as monkeypatch:
        host = f"s3.{namespace}.svc"
        folder = make_authority(tmp_path_factory.mktemp("elsewhere") / "certificates", "IP:127.0.0.1", f"DNS:{host}")
        files = [f"--from-file={name}={folder / name}" for name in ("public.crt", "private.key")]
        kubectl("create", "secret", "generic", "certificates", *files, "-n", namespace)
        kubectl("create", "secret", "generic", "keys", *KEYS, "-n", namespace)
        create(server(), "-n", namespace)
        kubectl("create", "service", "clusterip", "s3", "--tcp=9000:9000", "-n", namespace)
        kubectl("wait", "pod/s3", "--for=condition=Ready", "--timeout=120s", "-n", namespace)
        with forwarded(namespace, "s3", 9000) as address:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://{address}")
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            monkeypatch.setenv("AWS_CA_BUNDLE", str(folder / "authority.crt"))
            trusting = PoolManager(ca_certs=os.environ["AWS_CA_BUNDLE"])
            Minio(address, access_key=ACCESS_KEY, secret_key=SECRET_KEY, http_client=trusting).make_bucket(BUCKET)
            yield f"https://{host}:9000"


def server() -> dict[str, Any]:
    """Return the pod of a MinIO; its image is the one that the chart's would have."""
    image = yaml.safe_load((CHART / "values.yaml").read_text())["minio"]["image"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "s3", "labels": {"app": "s3"}},
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "args": ["server", "/data", "--address", ":9000", "--certs-dir", "/certificates"],
                    "env": [
                        {"name": name, "valueFrom": {"secretKeyRef": {"name": "keys", "key": key}}}
                        for name, key in (
                            ("MINIO_ROOT_USER", "AWS_ACCESS_KEY_ID"),
                            ("MINIO_ROOT_PASSWORD", "AWS_SECRET_ACCESS_KEY"),
                        )
                    ],
                    "readinessProbe": {
                        "httpGet": {"path": "/minio/health/ready", "port": 9000, "scheme": "HTTPS"},
                        "periodSeconds": 1,
                    },
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [
                        {"name": "data", "mountPath": "/data"},
                        {"name": "certificates", "mountPath": "/certificates"},
                    ],
                }
            ],
            "volumes": [
                {"name": "data", "emptyDir": {}},
                {"name": "certificates", "secret": {"secretName": "certificates"}},
            ],
        },
    }


@pytest.fixture(scope="module")
def namespace(kubernetes_client: ApiClient, elsewhere: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Install the chart with that store, a dataset in it; give the release's namespace."""
    api.push_data(api.phantom(tmp_path_factory.mktemp("data") / "phantom", cases=8, shape=(24, 24, 20)), DATASET)
    with new_namespace(kubernetes_client) as namespace:
        kubectl("create", "secret", "generic", "store-keys", *KEYS, "-n", namespace)
        authority = f"--from-file=ca.crt={os.environ['AWS_CA_BUNDLE']}"
        kubectl("create", "secret", "generic", "store-authority", authority, "-n", namespace)
        settings = (
            "minio.enabled=false",
            f"s3.endpoint={elsewhere}",
            f"s3.bucket={BUCKET}",
            "s3.existingSecret=store-keys",
            "s3.caSecret=store-authority",
        )
        with installed(namespace, *settings):
            yield namespace


def test_a_study_runs_on_the_users_own_store(namespace: str) -> None:
    helm("test", "automonai", "-n", namespace, "--filter", "name=automonai-test-storage")
    workflow = submit(namespace, {"dataset": DATASET, "name": "elsewhere", "gpus-per-run": "0", "spec": SPEC})
    assert wait_for_end(namespace, workflow, seconds=600) == "Succeeded"
    store = open_store(STUDY)
    assert all(store.exists(key) for key in (keys.REPORT_HTML, keys.REPORT_JSON, keys.ENSEMBLE))
    assert all(row["state"] == "complete" for row in api.runs(STUDY))
    kept = list(open_store(f"s3://{BUCKET}/workflows/{workflow}").list())
    assert [name for name in kept if "report" in name], "Argo keeps its artifacts there, too"
    written = kubectl("get", "all,configmaps,workflows,events", "-o", "yaml", "-n", namespace)
    assert ACCESS_KEY not in written
    assert SECRET_KEY not in written


def test_a_node_fetches_a_dataset_once_for_all_its_pods_if_it_keeps_them_in_a_folder(namespace: str) -> None:
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce-")
    with folder_of_every_node(namespace) as folder:
        settings = f"cache.type=node,cache.nodeFolder={folder}"
        helm("upgrade", "automonai", str(CHART), "-n", namespace, "--reuse-values", "--set", settings, "--wait")
        workflow = submit(namespace, {"dataset": DATASET, "name": "by-node", "gpus-per-run": "0", "spec": SPEC})
        assert wait_for_end(namespace, workflow, seconds=600) == "Succeeded"
        pods = kubectl_json("get", "pods", "-l", f"{TRIALS},automonai/study=by-node", "-n", namespace)["items"]
        fetched = Counter(pod["spec"]["nodeName"] for pod in pods if fetches(pod))
    assert len(pods) == 4
    assert all(any("hostPath" in volume for volume in pod["spec"]["volumes"]) for pod in pods)
    assert len(fetched) < len(kubectl_json("get", "nodes")["items"]), "the node of the check had it"
    assert set(fetched.values()) <= {1}


def fetches(pod: dict[str, Any]) -> bool:
    """Whether a pod's program has fetched the dataset from the store."""
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    return f"fetching {DATASET}" in kubectl("logs", name, "-n", namespace, "-c", "main")


@contextmanager
def folder_of_every_node(namespace: str) -> Iterator[str]:
    """Make a folder on every node that belongs to the pods' user, as an administrator would; give its path."""
    name = f"automonai-test-{secrets.token_hex(4)}"
    on_every_node(namespace, f"import os; os.mkdir('/parent/{name}'); os.chown('/parent/{name}', 65532, 65532)")
    try:
        yield f"/var/tmp/{name}"  # noqa: S108 - of the nodes
    finally:
        on_every_node(namespace, f"import shutil; shutil.rmtree('/parent/{name}')")


def on_every_node(namespace: str, script: str) -> None:
    """Run a line of Python as every node's root, its /var/tmp at /parent."""
    image = f"localhost/automonai-controller:{os.environ['AUTOMONAI_TEST_TAG']}"
    for node in kubectl_json("get", "nodes")["items"]:
        container = {
            "name": "main",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-c", script],
            "securityContext": {"runAsUser": 0},
            "volumeMounts": [{"name": "parent", "mountPath": "/parent"}],
        }
        spec = {
            "nodeName": node["metadata"]["name"],
            "restartPolicy": "Never",
            "containers": [container],
            "volumes": [{"name": "parent", "hostPath": {"path": "/var/tmp", "type": "Directory"}}],  # noqa: S108
        }
        pod = f"root-{secrets.token_hex(4)}"
        create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}, "spec": spec}, "-n", namespace)
        kubectl("wait", f"pod/{pod}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s", "-n", namespace)
