"""From nothing to a finished study, as a user does it: helm install, a push, a submit through the Argo server."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
from real_cluster import DATASET, SPEC, TRIALS, helm, kubectl_json, store_on_this_machine, submit, wait_for_end

from automonai import api
from automonai.storage import keys
from automonai.storage.opening import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

GPU = "nvidia.com/gpu"


def test_from_helm_install_to_a_report_and_an_ensemble_in_the_store(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there_are = gpus_of_the_nodes()
    form = {"dataset": DATASET, "name": "first", "parallel-runs": f"{there_are + 2}", "gpus-per-run": "1", "spec": SPEC}
    workflow = submit(release, form)
    assert wait_for_end(release, workflow, seconds=900) == "Succeeded"
    with store_on_this_machine(release, monkeypatch):
        store = open_store("s3://automonai/studies/first")
        for key in (keys.REPORT_HTML, keys.REPORT_JSON, keys.ENSEMBLE):
            assert store.exists(key)
        assert all(row["state"] == "complete" for row in api.runs("s3://automonai/studies/first"))
    pods = kubectl_json("get", "pods", "-n", release, "-l", f"{TRIALS},automonai/study=first")["items"]
    assert {gpus_of(pod) for pod in pods} == {1}
    assert 2 <= most_at_once(pods) <= there_are
    helm("test", "automonai", "-n", release)


def gpus_of_the_nodes() -> int:
    return sum(int(node["status"]["allocatable"].get(GPU, 0)) for node in kubectl_json("get", "nodes")["items"])


def gpus_of(pod: dict[str, Any]) -> int:
    return sum(int(container["resources"]["limits"].get(GPU, 0)) for container in pod["spec"]["containers"])


def most_at_once(pods: list[dict[str, Any]]) -> int:
    """Return how many of these ended pods were at work at the same moment; of a second's events the ends come first."""
    changes = []
    for pod in pods:
        was_at_work = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        changes += [(was_at_work["startedAt"], 1), (was_at_work["finishedAt"], -1)]
    return max(accumulate(change for _, change in sorted(changes)))
