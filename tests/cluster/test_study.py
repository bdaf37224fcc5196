"""From nothing to a finished study, as a user does it: helm install, a push, a submit through the Argo server."""

from __future__ import annotations

import pytest
from real_cluster import DATASET, SPEC, helm, store_on_this_machine, submit, wait_for_end

from automonai import api
from automonai.storage import keys
from automonai.storage.opening import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


def test_from_helm_install_to_a_report_and_an_ensemble_in_the_store(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = {"dataset": DATASET, "name": "first", "parallel-runs": "3", "gpus-per-run": "1", "spec": SPEC}
    workflow = submit(release, form)
    assert wait_for_end(release, workflow, seconds=900) == "Succeeded"
    with store_on_this_machine(release, monkeypatch):
        store = open_store("s3://automonai/studies/first")
        for key in (keys.REPORT_HTML, keys.REPORT_JSON, keys.ENSEMBLE):
            assert store.exists(key)
        assert all(row["state"] == "complete" for row in api.runs("s3://automonai/studies/first"))
    helm("test", "automonai", "-n", release)
