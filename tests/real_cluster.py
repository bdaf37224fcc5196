"""A release of the chart on a real cluster, as its users reach it: helm, kubectl, the Argo server and the store."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

CHART = Path(__file__).parents[1] / "charts" / "automonai"
DATASET = "s3://automonai/datasets/phantom"
SPEC = """
split: {test: 0.25, folds: 2}
search:
  space: {depth: 2, channels: {type: ordinal, values: [4, 8]}, loss: {type: categorical, values: [dice, dice_ce]}}
  standard: {depth: 2, channels: 4}
budget: {iterations: 2, min_epochs: 1, max_epochs: 3, eta: 3}
training: {max_patch_voxels: 4096, validation_every_epochs: 1}
execution: {device: cpu, threads: 1}
"""
TRIALS = "app.kubernetes.io/part-of=automonai,app.kubernetes.io/component=trial"
STEPS_AND_TRIALS = "app.kubernetes.io/part-of=automonai,app.kubernetes.io/component in (step,trial)"


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


@contextmanager
def installed(namespace: str, *settings: str) -> Iterator[None]:
    """Install the chart with its own MinIO and the images under test, `settings` as of helm's --set; uninstall it."""
    tag = os.environ.get("AUTOMONAI_TEST_TAG", "")
    if not tag or shutil.which("helm") is None:
        pytest.skip("AUTOMONAI_TEST_TAG and helm are needed: 'scripts/test cluster' provides the images")
    settings = (
        "minio.enabled=true",
        "image.registry=localhost",
        f"image.tag={tag}",
        "trial.gpu.count=1",
        "trial.resources.requests.cpu=100m",
        "trial.resources.requests.memory=512Mi",
        "trial.resources.limits.memory=2Gi",  # which a test uses up
        "trial.imageSeconds=5",
        "janitor.schedule=0 0 1 1 *",  # tests call it and count what it deletes
        *settings,
    )
    values = [word for setting in settings for word in ("--set", setting)]
    helm("install", "automonai", str(CHART), "-n", namespace, *values, "--wait", "--timeout", "5m")
    try:
        yield
    finally:
        # Ended pods of studies keep the cache's claim in use, and helm would wait for it.
        kubectl("delete", "workflows", "--all", "-n", namespace)
        eventually(lambda: not kubectl_json("get", "pods", "-l", STEPS_AND_TRIALS, "-n", namespace)["items"], "no pods")
        helm("uninstall", "automonai", "-n", namespace, "--wait")


def helm(*arguments: str) -> str:
    """Run helm; return what it wrote."""
    return _run("helm", *arguments)


def kubectl(*arguments: str) -> str:
    """Run kubectl; return what it wrote."""
    return _run("kubectl", *arguments)


def kubectl_json(*arguments: str) -> dict[str, Any]:
    """Run kubectl; return the object that it wrote."""
    document: dict[str, Any] = json.loads(kubectl(*arguments, "-o", "json"))
    return document


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def store_on_this_machine(namespace: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reach the chart's MinIO from here, with the keys that the chart made."""
    secret = kubectl_json("get", "secret", "automonai-minio", "-n", namespace)["data"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, base64.b64decode(secret[name]).decode())
    with forwarded(namespace, "automonai-minio", 9000) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{address}")
        yield


@contextmanager
def forwarded(namespace: str, service: str, port: int) -> Iterator[str]:
    """Give the address on this machine, host:port, that reaches a Service's port."""
    forward = subprocess.Popen(
        ["kubectl", "port-forward", "-n", namespace, f"service/{service}", f":{port}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert forward.stdout is not None
        words = forward.stdout.readline().split()  # Forwarding from 127.0.0.1:PORT -> 9000
        assert words[:2] == ["Forwarding", "from"]
        yield words[2]
    finally:
        forward.kill()
        forward.communicate()


def argo(method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Make a REST call of Argo's UI, `path` being below /api/v1/workflows; the test is skipped without a server."""
    if "ARGO_URL" not in os.environ:
        pytest.skip("ARGO_URL is not set: there is no Argo server to ask")
    request = urllib.request.Request(  # noqa: S310 - the test cluster's own address
        f"{os.environ['ARGO_URL']}/api/v1/workflows/{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        document: dict[str, Any] = json.load(answer)
    return document


def submit(namespace: str, parameters: dict[str, str], *, template: str = "automonai-study") -> str:
    """Start a study by the REST call that Argo's form makes; return the Workflow's name."""
    body = {
        "resourceKind": "WorkflowTemplate",
        "resourceName": template,
        "submitOptions": {"parameters": [f"{name}={value}" for name, value in parameters.items()]},
    }
    return str(argo("POST", f"{namespace}/submit", body)["metadata"]["name"])


def phase(namespace: str, workflow: str) -> str:
    """Return a Workflow's phase; empty before its first."""
    status = kubectl_json("get", "workflow", workflow, "-n", namespace).get("status", {})
    return str(status.get("phase", ""))


def wait_for_end(namespace: str, workflow: str, *, seconds: float) -> str:
    """Return the phase in which a Workflow ends."""
    ends = ("Succeeded", "Failed", "Error")
    eventually(lambda: phase(namespace, workflow) in ends, f"workflow {workflow} has ended", seconds=seconds, pause=2.0)
    return phase(namespace, workflow)


def eventually(condition: Callable[[], object], what: str, *, seconds: float = 300.0, pause: float = 0.5) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(pause)
