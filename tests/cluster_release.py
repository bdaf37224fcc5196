"""What a user does to an installed release: helm, kubectl, the store from this machine, Argo's form."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


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
