"""Studies that lose their controller, their pods, their store and their API in the middle, and end all the same.

What comes out is compared with an undisturbed study of the same spec and seed: all of them have the same name for the
same run.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from cluster_study import ClusterStudy, is_proposed_by_the_journal_alone
from faults import create, delete_at_once, evict, exceed_cpu_limit, fill_shared_memory, scale_minio, signal_step
from real_cluster import (
    argo,
    eventually,
    kubectl,
    kubectl_json,
    store_on_this_machine,
)

from automonai.domain.configuration import Configuration
from automonai.domain.events import RunFinished, SessionStarted, TrialProposed
from automonai.domain.request import TrainRequest
from automonai.domain.run import Purpose, Run
from automonai.domain.study import Study
from automonai.execution.jobs import JobTemplate, StudyHandle, WorkflowOwner, job_manifest, study_id
from automonai.storage import keys

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

STOP_API, START_API = "AUTOMONAI_TEST_STOP_API", "AUTOMONAI_TEST_START_API"
"""Commands that stop the API server and start it again; not every cluster is the test's own."""
OUTAGE_SECONDS = 30.0
LOW, HIGH = 40, 80
SPEC = """
split: {{test: 0.25, folds: 2}}
search:
  seed: 3
  space: {{depth: 2, channels: {{type: ordinal, values: [4, 8]}}, loss: {{type: categorical, values: [dice, dice_ce]}}}}
  standard: {{depth: 2, channels: 4}}
budget: {{iterations: {iterations}, min_epochs: {low}, max_epochs: {high}, eta: 2}}
refit: {{epochs: 40}}
training: {{max_patch_voxels: 4096, validation_every_epochs: 1}}
execution: {{device: cpu, threads: 1, max_parallel_runs: 2}}
"""
"""Two trials, one of them promoted, its two refits and the ensemble; a run takes some 20 s on an idle node. A second
iteration adds two trials on the upper rung."""
FIRST, SECOND = Run(trial=0, budget_epochs=LOW), Run(trial=1, budget_epochs=LOW)
PATIENT = 600
"""Epochs of runs that outlast the half minute or more in which a killed controller has no successor."""


def planned(namespace: str, name: str, *, gpus: int = 0, low: int = LOW, iterations: int = 1) -> ClusterStudy:
    """Give a study that is not started yet; without GPUs its runs wait for no others."""
    return ClusterStudy(namespace, name, SPEC.format(low=low, high=2 * low, iterations=iterations), gpus=gpus)


@pytest.fixture(scope="module")
def first_of_its_kind(release: str) -> ClusterStudy:
    """Start the undisturbed study; the disturbed ones need not wait for its end."""
    return planned(release, "undisturbed").start()


@pytest.fixture
def undisturbed(first_of_its_kind: ClusterStudy) -> Callable[[], dict[str, object]]:
    """Give what says what an undisturbed study comes to, once it has ended; needs the store."""

    def story() -> dict[str, object]:
        assert first_of_its_kind.ends() == "Succeeded"
        return first_of_its_kind.story()

    return story


@pytest.fixture
def store(release: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with store_on_this_machine(release, monkeypatch):
        yield


@pytest.mark.usefixtures("store")
def test_a_controller_killed_at_three_moments_has_successors_that_adopt_its_runs(
    release: str, undisturbed: Callable[[], dict[str, object]]
) -> None:
    study = planned(release, "killed", low=PATIENT, iterations=2).start()
    study.works_on(*(Run(trial=trial, budget_epochs=PATIENT) for trial in (0, 1)))
    signal_step(signal.SIGKILL, study.controller(), release)
    study.is_taken_up(2)
    assert len(study.pods("Running")) == 2, "nothing was left to adopt"
    study.finishes(2)  # the next rung begins, and the second iteration
    eventually(lambda: study.count(TrialProposed) >= 3, "a successor has proposed a trial")
    delete_at_once(study.controller(), release)
    study.is_taken_up(3)
    study.finishes(5)
    eventually(study.refits, "the refit has begun")
    study.works_on(*study.refits())
    evict(study.controller(), release)
    assert study.ends() == "Succeeded"
    assert study.count(SessionStarted) == 5  # of the refit, too, and its successor
    assert study.losses() == {}
    assert len(study.queued()) == len(set(study.queued())) == 7
    jobs, pods = study.jobs(), study.pods()
    assert sorted(job["metadata"]["labels"]["automonai/run"] for job in jobs) == sorted([*study.queued(), "ensemble"])
    assert {job["metadata"]["labels"]["automonai/attempt"] for job in jobs} == {"0"}
    assert len(pods) == len(jobs)
    assert study.story()["trials"][:2] == undisturbed()["trials"]
    assert study.count(TrialProposed) == 4
    assert is_proposed_by_the_journal_alone(study.events())


@pytest.mark.usefixtures("store")
def test_pods_that_are_evicted_killed_starved_or_impossible_end_apart_and_the_study_finishes(
    release: str, undisturbed: Callable[[], dict[str, object]]
) -> None:
    expected = undisturbed()
    promoted, refits = _later_runs(expected)
    study = planned(release, "unlucky").start()
    study.learns(FIRST, SECOND)
    evict(study.pod(FIRST), release)
    exceed_cpu_limit(study.pod(SECOND), release)
    _create_job_with_impossible_image(study, promoted)
    study.finishes(3)
    study.works_on(refits[0])
    fill_shared_memory(study.pod(refits[0]), release)
    assert study.ends() == "Succeeded"
    losses = study.losses()
    assert "SIGKILL" in losses.pop(SECOND.id)
    assert "could not be started: " in losses[promoted.id]
    assert "Image" in losses.pop(promoted.id)
    assert "OOMKilled" in losses.pop(refits[0].id)
    assert losses == {}, "an eviction is made up for without a loss"
    assert study.went_on(SECOND), "it began anew"
    assert study.story() == expected


@pytest.mark.usefixtures("store")
def test_a_stop_frees_the_gpus_and_resubmitting_goes_on_to_the_same_end(
    release: str, undisturbed: Callable[[], dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = planned(release, "stopped", gpus=1).start()
    study.learns(FIRST, SECOND)
    argo("PUT", f"{release}/{study.workflow}/stop", {})
    _gpus_are_freed(study)
    study.ends()
    before, store = study.events(), study.store()
    assert all(store.exists(keys.checkpoint_manifest(run.id)) for run in (FIRST, SECOND))
    study.start().finishes(3)
    monkeypatch.setenv("AUTOMONAI_NAMESPACE", release)
    command = [sys.executable, "-m", "automonai.cli", "stop", study.location]
    asked = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert study.workflow in asked
    _gpus_are_freed(study)
    study.ends()
    assert study.count(RunFinished) >= 3
    assert study.start().ends() == "Succeeded"
    assert study.events()[: len(before)] == before
    assert study.losses() == {}
    assert study.story() == undisturbed()


@pytest.mark.usefixtures("store")
def test_terminating_or_deleting_a_workflow_leaves_no_job(release: str) -> None:
    endless = 100 * LOW
    first, second = (Run(trial=trial, budget_epochs=endless) for trial in (0, 1))
    study = planned(release, "terminated", gpus=1, low=endless).start()
    study.works_on(first, second)
    # Terminate runs no exit step, and a controller that hangs does not take its Jobs along.
    hanging = study.controller()
    signal_step(signal.SIGSTOP, hanging, release)
    argo("PUT", f"{release}/{study.workflow}/terminate", {})
    assert study.ends() == "Failed"
    assert study.held_gpus() == 2
    assert _janitor_says(release).count(f"of workflow {study.workflow} deleted") == 2
    _gpus_are_freed(study)
    assert study.jobs() == []
    signal_step(signal.SIGKILL, hanging, release)
    study.start().works_on(first, second)
    argo("DELETE", f"{release}/{study.workflow}", {})
    _gpus_are_freed(study)
    assert study.jobs() == []
    assert study.workflow not in _janitor_says(release)


def test_a_store_that_is_away_for_a_while_costs_nothing(
    release: str, undisturbed: Callable[[], dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = planned(release, "storeless").start()
    with store_on_this_machine(release, monkeypatch):
        study.learns(FIRST, SECOND)
    scale_minio(release, 0)
    time.sleep(OUTAGE_SECONDS)
    scale_minio(release, 1)
    assert study.ends() == "Succeeded"
    with store_on_this_machine(release, monkeypatch):
        assert study.count(SessionStarted) == 2, "the search's and the refit's controllers had successors"
        assert study.losses() == {}
        assert study.story() == undisturbed()


def test_an_api_server_that_is_away_for_a_while_costs_nothing(
    release: str, undisturbed: Callable[[], dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (os.environ.get(STOP_API) and os.environ.get(START_API)):
        pytest.skip(f"{STOP_API} and {START_API} are not set: this cluster's API server must not be stopped")
    study = planned(release, "ruleless").start()
    with store_on_this_machine(release, monkeypatch):
        study.learns(FIRST, SECOND)
    subprocess.run(shlex.split(os.environ[STOP_API]), check=True)
    try:
        time.sleep(OUTAGE_SECONDS)
    finally:
        subprocess.run(shlex.split(os.environ[START_API]), check=True)
    eventually(_answers, "the API server is back")
    assert study.ends() == "Succeeded"
    with store_on_this_machine(release, monkeypatch):
        assert study.losses() == {}
        assert len(study.queued()) == len(set(study.queued())) == 5
        assert study.story() == undisturbed()


def _later_runs(story: dict[str, Any]) -> tuple[Run, list[Run]]:
    """Return the promoted run and the refits of a study that has ended."""
    (promoted,) = (trial for trial in (0, 1) if Run(trial=trial, budget_epochs=HIGH).id in story["losses"])
    refits = [
        Run(trial=trial, budget_epochs=LOW, fold=fold, purpose=Purpose.REFIT) for trial in (0, 1) for fold in (0, 1)
    ]
    return Run(trial=promoted, budget_epochs=HIGH), [run for run in refits if run.id in story["losses"]]


def _create_job_with_impossible_image(study: ClusterStudy, run: Run) -> None:
    """Create a run's Job before the controller does: it adopts it as it is."""
    settings = kubectl_json("get", "configmap", "automonai-job-template", "-n", study.namespace)["data"]
    template = JobTemplate.model_validate(yaml.safe_load(settings["job-template.yaml"]))
    template = template.model_copy(update={"image": "localhost/no-such-image:none"})
    began = Study.replay(study.events()).started_at
    handle = StudyHandle(name=study.name, id=study_id(study.name, began), location=study.location)
    workflow = kubectl_json("get", "workflow", study.workflow, "-n", study.namespace)["metadata"]
    owner = WorkflowOwner(name=workflow["name"], uid=workflow["uid"])
    request = TrainRequest(run=run, configuration=Configuration(), seed=0)
    create(job_manifest(request, template, study=handle, owner=owner), "-n", study.namespace)


def _gpus_are_freed(study: ClusterStudy) -> None:
    eventually(lambda: study.held_gpus() == 0, f"study {study.name} has freed all GPUs", seconds=60.0)


def _janitor_says(namespace: str) -> str:
    name = f"janitor-{time.monotonic_ns()}"
    kubectl("create", "job", name, "--from=cronjob/automonai-janitor", "-n", namespace)
    kubectl("wait", f"job/{name}", "--for=condition=complete", "--timeout=120s", "-n", namespace)
    return kubectl("logs", f"job/{name}", "-n", namespace)


def _answers() -> bool:
    return subprocess.run(["kubectl", "get", "--raw", "/readyz"], capture_output=True, check=False).returncode == 0
