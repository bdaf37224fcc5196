"""A release's life: installed, upgraded under a running study, tested by a search, uninstalled, installed again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from real_cluster import (
    CHART,
    DATASET,
    SPEC,
    TRIALS,
    eventually,
    helm,
    kubectl,
    kubectl_json,
    new_namespace,
    store_on_this_machine,
    submit,
    wait_for_end,
)

from automonai import api
from automonai.domain.events import Event, RunLost, SessionStarted
from automonai.storage.journal import Journal
from automonai.storage.opening import open_store

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

STUDY = "s3://automonai/studies/upgraded"
CLAIM = "persistentvolumeclaim/data-automonai-minio-0"
SMOKE = "automonai-test-smoke-search"


@pytest.fixture(scope="module")
def tag() -> str:
    """Give the tag of the images under test."""
    found = os.environ.get("AUTOMONAI_TEST_TAG", "")
    if not found or shutil.which("helm") is None:
        pytest.skip("AUTOMONAI_TEST_TAG and helm are needed: 'scripts/test cluster' provides the images")
    return found


@dataclass
class Life:
    """What was seen of a release that was upgraded twice while a study ran, tested, and uninstalled."""

    keys: list[str]
    """Digest of the store's: after the installation, and after each upgrade."""
    servers: list[str]
    """Uid of MinIO's pod, at the same times."""
    phase: str
    """In which the study's workflow ended."""
    events: list[Event]
    """Of the study."""
    tests: str
    """What 'helm test' wrote."""
    left: set[str]
    """What was in the namespace at the end, and not before."""


@pytest.fixture(scope="module")
def life(kubernetes_client: ApiClient, tag: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """Live it."""
    dataset = api.phantom(tmp_path_factory.mktemp("data") / "phantom", cases=8, shape=(24, 24, 20))
    with new_namespace(kubernetes_client) as namespace:
        before = contents(namespace)
        install(namespace, tag, "--wait")
        keys, servers = [keys_of(namespace)], [server_of(namespace)]
        with pytest.MonkeyPatch.context() as monkeypatch, store_on_this_machine(namespace, monkeypatch):
            api.push_data(dataset, DATASET)
            form = {"dataset": DATASET, "name": "upgraded", "gpus-per-run": "0", "spec": SPEC}
            workflow = submit(namespace, form)
            for setting in ("cache.datasetsGiB=10", "tests.smokeSearch=true"):
                eventually(lambda: running_trials(namespace), "a training runs")
                helm("upgrade", "automonai", str(CHART), "-n", namespace, "--reuse-values", "--set", setting, "--wait")
                keys.append(keys_of(namespace))
                servers.append(server_of(namespace))
            phase = wait_for_end(namespace, workflow, seconds=600)
            events = Journal(open_store(STUDY)).read()
        tests = helm("test", "automonai", "-n", namespace, "--timeout", "10m")
        clean_up(namespace)
        eventually(lambda: len(contents(namespace) - before) <= 1, "all but one object is gone")
        yield Life(keys, servers, phase, events, tests, contents(namespace) - before)


def test_upgrades_keep_the_keys_and_leave_the_store_running(life: Life) -> None:
    assert len(set(life.keys)) == 1
    assert len(set(life.servers)) == 1


def test_a_study_does_not_notice_upgrades(life: Life) -> None:
    assert life.phase == "Succeeded"
    assert not [event for event in life.events if isinstance(event, RunLost)]
    assert len([event for event in life.events if isinstance(event, SessionStarted)]) == 2  # search and refit


def test_helm_test_searches_if_it_is_asked_to(life: Life) -> None:
    (after,) = (part for part in life.tests.split("TEST SUITE:") if part.strip().startswith(SMOKE))
    assert "Succeeded" in after


def test_nothing_is_left_but_the_datas_claim(life: Life) -> None:
    assert life.left == {CLAIM}


def test_an_installation_without_waiting_finds_the_data_of_an_earlier_one(
    kubernetes_client: ApiClient, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_namespace(kubernetes_client) as namespace:
        before = contents(namespace)
        for is_first in (True, False):
            install(namespace, tag)
            with store_on_this_machine(namespace, monkeypatch):
                store = open_store("s3://automonai/kept")
                assert store.exists("object") is not is_first
                store.put("object", b"")
            helm("uninstall", "automonai", "-n", namespace)
            eventually(lambda: contents(namespace) - before == {CLAIM}, "only the data's claim is left")


def install(namespace: str, tag: str, *flags: str) -> None:
    requests = ("trial.resources.requests.cpu=100m", "trial.resources.requests.memory=512Mi")
    settings = ("minio.enabled=true", f"image.tag={tag}", *requests)
    values = [word for setting in settings for word in ("--set", setting)]
    helm("install", "automonai", str(CHART), "-n", namespace, *values, *flags)


def clean_up(namespace: str) -> None:
    """Do what docs/cluster.md says, in its words."""
    page = (Path(CHART).parents[1] / "docs" / "cluster.md").read_text()
    for command in (
        "kubectl -n automonai delete workflows --all",
        "kubectl -n automonai delete leases -l app.kubernetes.io/part-of=automonai",
        "helm uninstall automonai -n automonai",
    ):
        assert command in page
        program, *words = command.replace("-n automonai", f"-n {namespace}").split()
        {"helm": helm, "kubectl": kubectl}[program](*words)


def contents(namespace: str) -> set[str]:
    """Return every object of every kind in a namespace, events excepted."""
    kinds = kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
    wanted = ",".join(kind for kind in kinds if not kind.startswith("events"))
    return set(kubectl("get", wanted, "-n", namespace, "-o", "name", "--ignore-not-found").split())


def keys_of(namespace: str) -> str:
    """Return a digest: a failed comparison is printed."""
    secret = kubectl_json("get", "secret", "automonai-minio", "-n", namespace)["data"]
    return hashlib.sha256(json.dumps(secret, sort_keys=True).encode()).hexdigest()


def server_of(namespace: str) -> str:
    return str(kubectl_json("get", "pod", "automonai-minio-0", "-n", namespace)["metadata"]["uid"])


def running_trials(namespace: str) -> list[str]:
    pods = kubectl_json("get", "pods", "-l", TRIALS, "-n", namespace)["items"]
    return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]
