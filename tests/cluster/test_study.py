"""From nothing to a finished study, as a user does it: helm install, a push, a submit through the Argo server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cluster_release import helm, store_on_this_machine, submit, wait_for_end

from automonai import api
from automonai.storage import keys
from automonai.storage.opening import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

SPEC = """
split: {test: 0.25, folds: 2}
search:
  space: {depth: 2, channels: {type: ordinal, values: [4, 8]}, loss: {type: categorical, values: [dice, dice_ce]}}
  standard: {depth: 2, channels: 4}
budget: {iterations: 2, min_epochs: 1, max_epochs: 3, eta: 3}
training: {max_patch_voxels: 4096, validation_every_epochs: 1}
execution: {device: cpu, threads: 1}
"""


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
