"""From nothing to a finished study, as a user does it: helm install, a push, a submit through the Argo server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from automonai import api
from automonai.storage import keys
from automonai.storage.opening import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

CHART = Path(__file__).parents[2] / "charts" / "automonai"
SPEC = """
split: {test: 0.25, folds: 2}
search:
  space: {depth: 2, channels: {type: ordinal, values: [4, 8]}, loss: {type: categorical, values: [dice, dice_ce]}}
  standard: {depth: 2, channels: 4}
budget: {iterations: 2, min_epochs: 1, max_epochs: 3, eta: 3}
training: {max_patch_voxels: 4096, validation_every_epochs: 1}
execution: {device: cpu, threads: 1}
"""


@pytest.fixture
def release(namespace: str) -> Iterator[str]:
    """Install the chart with its own MinIO into a restricted namespace; give the namespace."""
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
    helm("install", "automonai", str(CHART), "-n", namespace, *values, "--wait", "--timeout", "5m")
    yield namespace
    helm("uninstall", "automonai", "-n", namespace, "--wait")


def helm(*arguments: str) -> str:
    done = subprocess.run(["helm", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kubectl(*arguments: str) -> str:
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def store_on_this_machine(namespace: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reach the chart's MinIO from here, with the keys that the chart made."""
    secret = json.loads(kubectl("get", "secret", "automonai-minio", "-n", namespace, "-o", "json"))["data"]
    import base64

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, base64.b64decode(secret[name]).decode())
    forward = subprocess.Popen(
        ["kubectl", "port-forward", "-n", namespace, "service/automonai-minio", "19000:9000"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert forward.stdout is not None
        assert "Forwarding" in forward.stdout.readline()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:19000")
        yield
    finally:
        forward.kill()
        forward.communicate()


def submit(namespace: str, parameters: dict[str, str]) -> str:
    """Start the study by the REST call that Argo's form makes; return the Workflow's name."""
    url = f"{os.environ['ARGO_URL']}/api/v1/workflows/{namespace}/submit"
    body = {
        "resourceKind": "WorkflowTemplate",
        "resourceName": "automonai-study",
        "submitOptions": {"parameters": [f"{name}={value}" for name, value in parameters.items()]},
    }
    request = urllib.request.Request(  # noqa: S310 - the test cluster's own address
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return str(json.load(answer)["metadata"]["name"])


def wait_for_end(namespace: str, workflow: str, *, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = json.loads(kubectl("get", "workflow", workflow, "-n", namespace, "-o", "json")).get("status", {})
        if status.get("phase") in ("Succeeded", "Failed", "Error"):
            return str(status["phase"])
        time.sleep(3)
    raise AssertionError(f"{workflow} did not end in {seconds} s: {status}")


def test_from_helm_install_to_a_report_and_an_ensemble_in_the_store(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "ARGO_URL" not in os.environ:
        pytest.skip("ARGO_URL is not set: there is no Argo server to submit to")
    dataset = api.phantom(tmp_path / "phantom", cases=8, shape=(24, 24, 20))
    with store_on_this_machine(release, monkeypatch):
        api.push_data(dataset, "s3://automonai/datasets/phantom")
        form = {
            "dataset": "s3://automonai/datasets/phantom",
            "name": "first",
            "parallel-runs": "3",
            "gpus-per-run": "1",
            "spec": SPEC,
        }
        workflow = submit(release, form)
        assert wait_for_end(release, workflow, seconds=900) == "Succeeded"
        store = open_store("s3://automonai/studies/first")
        for key in (keys.REPORT_HTML, keys.REPORT_JSON, keys.ENSEMBLE):
            assert store.exists(key)
        assert all(row["state"] == "complete" for row in api.runs("s3://automonai/studies/first"))
    helm("test", "automonai", "-n", release)
