"""Studies that lose their controller, their pods, their store and their API in the middle, and end all the same.

What comes out is compared with an undisturbed study of the same spec and seed: all of them have the same name for the
same run.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import yaml
from real_cluster import (
    DATASET,
    TRIALS,
    argo,
    eventually,
    kubectl,
    kubectl_json,
    store_on_this_machine,
    submit,
    wait_for_end,
)

from automonai.domain.configuration import Configuration
from automonai.domain.events import Event, RunFinished, RunLost, RunQueued, SessionStarted
from automonai.domain.request import TrainRequest
from automonai.domain.run import Purpose, Run
from automonai.domain.study import Study
from automonai.execution.jobs import JobTemplate, StudyHandle, WorkflowOwner, job_manifest, study_id
from automonai.storage import keys
from automonai.storage.journal import Journal
from automonai.storage.opening import open_store
from automonai.storage.store import Store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

STOP_API, START_API = "AUTOMONAI_TEST_STOP_API", "AUTOMONAI_TEST_START_API"
"""Commands that stop the API server and start it again; not every cluster is the test's own."""
OUTAGE_SECONDS = 30.0
STUDY_SECONDS = 900.0
LOW, HIGH = 40, 80
SPEC = """
split: {{test: 0.25, folds: 2}}
search:
  seed: 3
  space: {{depth: 2, channels: {{type: ordinal, values: [4, 8]}}, loss: {{type: categorical, values: [dice, dice_ce]}}}}
  standard: {{depth: 2, channels: 4}}
budget: {{iterations: 1, min_epochs: {low}, max_epochs: {high}, eta: 2}}
refit: {{epochs: 40}}
training: {{max_patch_voxels: 4096, validation_every_epochs: 1}}
execution: {{device: cpu, threads: 1, max_parallel_runs: 2}}
"""
"""Two trials, one of them promoted, its two refits and the ensemble; a run takes some 20 s on an idle node."""
FIRST, SECOND = Run(trial=0, budget_epochs=LOW), Run(trial=1, budget_epochs=LOW)
PATIENT = 600
"""Epochs of runs that outlast the half minute or more in which a killed controller has no successor."""


class ClusterStudy:
    """A study in a release; its journal is read where the store can be reached."""

    def __init__(self, namespace: str, name: str, *, gpus: int = 0, low: int = LOW) -> None:
        """Remember what to start; without GPUs its runs wait for no others."""
        self.namespace, self.name = namespace, name
        self.form = {
            "dataset": DATASET,
            "name": name,
            "gpus-per-run": str(gpus),
            "spec": SPEC.format(low=low, high=2 * low),
        }
        self.location = f"s3://automonai/studies/{name}"
        self.workflow = ""
        self._endpoint = ""
        self._store: Store | None = None
        self._entries: list[str] = []
        self._events: list[Event] = []

    def start(self) -> ClusterStudy:
        self.workflow = submit(self.namespace, self.form)
        return self

    def ends(self) -> str:
        return wait_for_end(self.namespace, self.workflow, seconds=STUDY_SECONDS)

    def store(self) -> Store:
        """Return the same store, and so the same connections, while its address stays: a port-forward bears few."""
        endpoint = os.environ["AWS_ENDPOINT_URL_S3"]
        if self._store is None or endpoint != self._endpoint:
            self._endpoint, self._store = endpoint, open_store(self.location)
        return self._store

    def events(self) -> list[Event]:
        entries = list(self.store().list(keys.JOURNAL))
        if entries != self._entries:
            self._entries, self._events = entries, Journal(self.store()).read()
        return self._events

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events())

    def works_on(self, *runs: Run) -> None:
        """Wait until the pods of runs are at work."""
        wanted = {run.id for run in runs}
        eventually(lambda: wanted <= self._running(), f"pods of {', '.join(wanted)} are at work")

    def learns(self, *runs: Run) -> None:
        """Wait until runs are in the middle: a checkpoint is committed, and their pods work on."""
        store = self.store()
        for run in runs:
            eventually(partial(store.exists, keys.checkpoint_manifest(run.id)), f"{run.id} has a checkpoint")
        assert {run.id for run in runs} <= self._running(), "the runs ended too early to be disturbed"

    def finishes(self, runs: int) -> None:
        eventually(lambda: self.count(RunFinished) >= runs, f"{runs} runs have finished", seconds=STUDY_SECONDS)

    def jobs(self) -> list[dict[str, Any]]:
        return self._mine("jobs")

    def pods(self, *phases: str) -> list[dict[str, Any]]:
        return [pod for pod in self._mine("pods") if not phases or pod["status"]["phase"] in phases]

    def pod(self, run: Run) -> str:
        """Return the name of a run's pod at work."""
        of_run = [pod for pod in self.pods("Running") if pod["metadata"]["labels"]["automonai/run"] == run.id]
        return str(of_run[-1]["metadata"]["name"])

    def held_gpus(self) -> int:
        return len(self.pods("Pending", "Running"))

    def controller(self) -> str:
        """Return the name of the search step's pod."""
        of_workflow = f"workflows.argoproj.io/workflow={self.workflow},app.kubernetes.io/component=step"
        pods = kubectl_json("get", "pods", "-n", self.namespace, "-l", of_workflow)["items"]
        (name,) = (
            pod["metadata"]["name"]
            for pod in pods
            if pod["status"]["phase"] == "Running" and "-search-" in pod["metadata"]["name"]
        )
        return str(name)

    def is_taken_up(self, sessions: int) -> None:
        eventually(lambda: self.count(SessionStarted) >= sessions, f"controller {sessions} has taken the study up")

    def losses(self) -> dict[str, str]:
        """Return the runs that were lost, and why."""
        return {event.run_id: event.why for event in self.events() if isinstance(event, RunLost)}

    def queued(self) -> list[str]:
        return [event.run.id for event in self.events() if isinstance(event, RunQueued)]

    def refits(self) -> list[Run]:
        return [record.run for record in Study.replay(self.events()).open_runs if record.run.purpose is Purpose.REFIT]

    def story(self) -> dict[str, object]:
        study = Study.replay(self.events())
        assert study.ensemble is not None
        return {
            "trials": [trial.model_dump() for trial in study.trials.values()],
            "losses": {run_id: record.result and record.result.loss for run_id, record in sorted(study.runs.items())},
            "epochs": {run_id: record.result and record.result.curve_epochs for run_id, record in study.runs.items()},
            "members": [(member.run_id, member.weight) for member in study.ensemble.members],
            "test": [scores.dice for scores in study.ensemble.test],
        }

    def _running(self) -> set[str]:
        return {pod["metadata"]["labels"]["automonai/run"] for pod in self.pods("Running")}

    def _mine(self, kind: str) -> list[dict[str, Any]]:
        selector = f"{TRIALS},automonai/study={self.name}"
        items: list[dict[str, Any]] = kubectl_json("get", kind, "-n", self.namespace, "-l", selector)["items"]
        return items


@pytest.fixture(scope="module")
def first_of_its_kind(release: str) -> ClusterStudy:
    """Start the undisturbed study; the disturbed ones need not wait for its end."""
    return ClusterStudy(release, "undisturbed").start()


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
    release: str,
) -> None:
    study = ClusterStudy(release, "killed", low=PATIENT).start()
    study.works_on(*(Run(trial=trial, budget_epochs=PATIENT) for trial in (0, 1)))
    _signal_step(signal.SIGKILL, study.controller(), release)
    study.is_taken_up(2)
    assert len(study.pods("Running")) == 2, "nothing was left to adopt"
    study.finishes(2)  # the next rung begins
    _delete_at_once(study.controller(), release)
    study.is_taken_up(3)
    study.finishes(3)
    eventually(study.refits, "the refit has begun")
    study.works_on(*study.refits())
    _evict(study.controller(), release)
    assert study.ends() == "Succeeded"
    assert study.count(SessionStarted) == 4
    assert study.losses() == {}
    assert len(study.queued()) == len(set(study.queued())) == 5
    jobs, pods = study.jobs(), study.pods()
    assert sorted(job["metadata"]["labels"]["automonai/run"] for job in jobs) == sorted([*study.queued(), "ensemble"])
    assert {job["metadata"]["labels"]["automonai/attempt"] for job in jobs} == {"0"}
    assert len(pods) == len(jobs)
    calm = ClusterStudy(release, "calm", low=PATIENT).start()
    assert calm.ends() == "Succeeded"
    assert study.story() == calm.story()


@pytest.mark.usefixtures("store")
def test_pods_that_are_evicted_killed_starved_or_impossible_end_apart_and_the_study_finishes(
    release: str, undisturbed: Callable[[], dict[str, object]]
) -> None:
    expected = undisturbed()
    promoted, refits = _later_runs(expected)
    study = ClusterStudy(release, "unlucky").start()
    study.learns(FIRST, SECOND)
    _evict(study.pod(FIRST), release)
    _exceed_cpu_limit(study.pod(SECOND), release)
    _create_job_with_impossible_image(study, promoted)
    study.finishes(3)
    study.works_on(refits[0])
    _fill_shared_memory(study.pod(refits[0]), release)
    assert study.ends() == "Succeeded"
    losses = study.losses()
    assert "SIGKILL" in losses.pop(SECOND.id)
    assert "could not be started: " in losses[promoted.id]
    assert "Image" in losses.pop(promoted.id)
    assert "OOMKilled" in losses.pop(refits[0].id)
    assert losses == {}, "an eviction is made up for without a loss"
    assert study.story() == expected


@pytest.mark.usefixtures("store")
def test_a_stop_frees_the_gpus_and_resubmitting_goes_on_to_the_same_end(
    release: str, undisturbed: Callable[[], dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = ClusterStudy(release, "stopped", gpus=1).start()
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
    study = ClusterStudy(release, "terminated", gpus=1, low=endless).start()
    study.works_on(first, second)
    # Terminate runs no exit step, and a controller that hangs does not take its Jobs along.
    hanging = study.controller()
    _signal_step(signal.SIGSTOP, hanging, release)
    argo("PUT", f"{release}/{study.workflow}/terminate", {})
    assert study.ends() == "Failed"
    assert study.held_gpus() == 2
    assert _janitor_says(release).count(f"of workflow {study.workflow} deleted") == 2
    _gpus_are_freed(study)
    assert study.jobs() == []
    _signal_step(signal.SIGKILL, hanging, release)
    study.start().works_on(first, second)
    argo("DELETE", f"{release}/{study.workflow}", {})
    _gpus_are_freed(study)
    assert study.jobs() == []
    assert study.workflow not in _janitor_says(release)


def test_a_store_that_is_away_for_a_while_costs_nothing(
    release: str, undisturbed: Callable[[], dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = ClusterStudy(release, "storeless").start()
    with store_on_this_machine(release, monkeypatch):
        study.learns(FIRST, SECOND)
    _scale_minio(release, 0)
    time.sleep(OUTAGE_SECONDS)
    _scale_minio(release, 1)
    assert study.ends() == "Succeeded"
    with store_on_this_machine(release, monkeypatch):
        assert study.count(SessionStarted) == 1
        assert study.losses() == {}
        assert study.story() == undisturbed()


def test_an_api_server_that_is_away_for_a_while_costs_nothing(
    release: str, undisturbed: Callable[[], dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (os.environ.get(STOP_API) and os.environ.get(START_API)):
        pytest.skip(f"{STOP_API} and {START_API} are not set: this cluster's API server must not be stopped")
    study = ClusterStudy(release, "ruleless").start()
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


def _python_in(pod: str, namespace: str, script: str) -> None:
    """Run a script in a pod, which may be gone before it answers."""
    command = ["kubectl", "exec", pod, "-n", namespace, "-c", "main", "--", "python", "-c", script]
    subprocess.run(command, capture_output=True, check=False)


def _signal_step(number: signal.Signals, pod: str, namespace: str) -> None:
    """Send a signal to what a step's pod runs below Argo's own first process."""
    script = (
        "import os\n"
        "for name in filter(str.isdigit, os.listdir('/proc')):\n"
        f"    if int(name) not in (1, os.getpid()): os.kill(int(name), {number.value})"
    )
    _python_in(pod, namespace, script)


def _exceed_cpu_limit(pod: str, namespace: str) -> None:
    """Make the kernel send SIGKILL to a pod's first process, which is deaf to one from within its own pod."""
    _python_in(pod, namespace, "import resource; resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))")


def _fill_shared_memory(pod: str, namespace: str) -> None:
    """Use up a pod's memory by a file in it; the kernel then kills the largest process, which is the worker."""
    script = "file = open('/dev/shm/filler', 'wb')\nfor _ in range(4096): file.write(bytes(2**20))"
    _python_in(pod, namespace, script)


def _delete_at_once(pod: str, namespace: str) -> None:
    kubectl("delete", "pod", pod, "-n", namespace, "--grace-period=0", "--force", "--wait=false")


def _evict(pod: str, namespace: str) -> None:
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    _create(eviction, "--raw", f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction")


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
    _create(job_manifest(request, template, study=handle, owner=owner), "-n", study.namespace)


def _create(manifest: dict[str, Any], *options: str) -> None:
    command = ["kubectl", "create", *options, "-f", "-"]
    done = subprocess.run(command, input=json.dumps(manifest), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _gpus_are_freed(study: ClusterStudy) -> None:
    eventually(lambda: study.held_gpus() == 0, f"study {study.name} has freed all GPUs", seconds=60.0)


def _janitor_says(namespace: str) -> str:
    name = f"janitor-{time.monotonic_ns()}"
    kubectl("create", "job", name, "--from=cronjob/automonai-janitor", "-n", namespace)
    kubectl("wait", f"job/{name}", "--for=condition=complete", "--timeout=120s", "-n", namespace)
    return kubectl("logs", f"job/{name}", "-n", namespace)


def _scale_minio(namespace: str, replicas: int) -> None:
    kubectl("scale", "statefulset/automonai-minio", f"--replicas={replicas}", "-n", namespace)
    kubectl("rollout", "status", "statefulset/automonai-minio", "--timeout=180s", "-n", namespace)
    if not replicas:
        kubectl("wait", "pod/automonai-minio-0", "--for=delete", "--timeout=60s", "-n", namespace)


def _answers() -> bool:
    return subprocess.run(["kubectl", "get", "--raw", "/readyz"], capture_output=True, check=False).returncode == 0
