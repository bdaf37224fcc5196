"""The Kubernetes executor on a real cluster. Pods run a line of Python in the worker's place; tests put the answers."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from automonai.domain.configuration import Configuration
from automonai.domain.request import TrainRequest
from automonai.domain.run import LossCause, Result, Run, RunState
from automonai.errors import StudyLockedError
from automonai.execution.cluster_api import ClusterApi, connect
from automonai.execution.cluster_objects import Job, Pod
from automonai.execution.executor import Notice, Report
from automonai.execution.jobs import KUEUE_LABEL, JobTemplate, JsonObject, StudyHandle
from automonai.execution.kubernetes import KubernetesExecutor
from automonai.execution.lease import leased
from automonai.storage import keys
from automonai.storage.memory import MemoryStore

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

STUDY = StudyHandle(name="test", id="0123456789", location="s3://bucket/studies/test")
ALL = "app.kubernetes.io/part-of=automonai"
SLEEP = "import time; time.sleep(600)"


def request(trial: int = 1, attempt: int = 0) -> TrainRequest:
    run = Run(trial=trial, budget_epochs=1)
    return TrainRequest(run=run, configuration=Configuration(), seed=1, attempt=attempt)


class ScriptedApi:
    """The cluster's API, but that Jobs run a script."""

    def __init__(self, api: ClusterApi, script: str) -> None:
        self._api, self._script = api, script

    def create_job(self, manifest: JsonObject) -> Job:
        scripted = copy.deepcopy(manifest)
        (container,) = scripted["spec"]["template"]["spec"]["containers"]
        container |= {"command": ["python", "-c", self._script], "args": []}
        if KUEUE_LABEL in scripted["metadata"]["labels"]:
            scripted["spec"]["suspend"] = True  # as Kueue's webhook does
        return self._api.create_job(scripted)

    def __getattr__(self, name: str) -> object:
        return getattr(self._api, name)


class Bench:
    """Makes executors in a namespace and looks at it."""

    def __init__(self, api: ClusterApi, client: ApiClient, image: str) -> None:
        self.api, self.client, self.image = api, client, image
        self.store = MemoryStore()
        self.made: list[KubernetesExecutor] = []

    def executor(self, script: str, *, study: StudyHandle = STUDY, **settings: object) -> KubernetesExecutor:
        defaults = {
            "image": self.image,
            "user_id": 65532,
            "gpus_per_run": 0,
            "grace_seconds": 1,
            "shared_memory": "16Mi",
            "requests": {"cpu": "10m"},
            "limits": {"memory": "64Mi"},
        }
        template = JobTemplate.model_validate({**defaults, **settings})
        api: ClusterApi = ScriptedApi(connect(self.api.namespace), script)  # type: ignore[assignment]
        self.made.append(KubernetesExecutor(api, self.store, study=study, template=template, slots=4))
        return self.made[-1]

    def answer(self, trial: int = 1) -> None:
        result = Result(run_id=request(trial).run_id, state=RunState.COMPLETE, loss=0.5)
        self.store.put(keys.result(result.run_id), result.model_dump_json().encode())

    def pods(self) -> list[Pod]:
        return [pod for pod in self.api.list("pods", ALL).objects if isinstance(pod, Pod)]

    def jobs(self) -> list[Job]:
        return list(self.api.list_jobs(ALL))

    def suspend(self, *, is_held: bool) -> None:
        """Do to the only Job what Kueue does: hold it back or take it back, or admit it to a flavour of nodes."""
        from kubernetes.client import BatchV1Api

        (job,) = self.jobs()
        batch, name = BatchV1Api(self.client), job.metadata.name
        if not is_held:  # Kueue does this first: the template of a Job that is held may be changed
            template = {"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/os": "linux"}}}}}
            batch.patch_namespaced_job(name, self.api.namespace, template)
        batch.patch_namespaced_job(name, self.api.namespace, {"spec": {"suspend": is_held}})

    def running(self) -> list[str]:
        return [pod.metadata.name for pod in self.pods() if pod.status.phase == "Running"]

    def evict(self, pod: str) -> None:
        from kubernetes.client import CoreV1Api

        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        CoreV1Api(self.client).create_namespaced_pod_eviction(pod, self.api.namespace, body)

    def limit(self, **hard: str) -> None:
        from kubernetes.client import CoreV1Api

        quota = {"metadata": {"name": "limit"}, "spec": {"hard": hard}}
        core = CoreV1Api(self.client)
        core.create_namespaced_resource_quota(self.api.namespace, quota)
        eventually(lambda: core.read_namespaced_resource_quota("limit", self.api.namespace).status.hard)


@pytest.fixture
def bench(cluster_api: ClusterApi, kubernetes_client: ApiClient, image: str) -> Iterator[Bench]:
    bench = Bench(cluster_api, kubernetes_client, image)
    yield bench
    for executor in bench.made:
        executor.close()


def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def ends(executor: KubernetesExecutor, count: int = 1, seconds: float = 90.0) -> list[Report]:
    reports: list[Report] = []
    deadline = time.monotonic() + seconds
    while len(reports) < count and time.monotonic() < deadline:
        reports += executor.poll(1.0)
    assert len(reports) == count
    return reports


def lost(executor: KubernetesExecutor, cause: LossCause | None = None) -> str:
    (report,) = ends(executor)
    assert report.lost is not None
    assert cause in (None, report.cause)
    return report.lost


def test_runs_end_with_their_answers_at_few_requests(bench: Bench) -> None:
    executor = bench.executor("import time; time.sleep(5)")
    for trial in range(4):
        executor.submit(request(trial))
        bench.answer(trial)
    assert executor.free_slots() == 0
    assert {report.lost for report in ends(executor, 4)} == {None}
    assert executor.free_slots() == 4
    assert executor._api.requests <= 4 + 4 + 4  # Jobs; lists and watches; looks for Jobs that the first list lacked


def test_a_pod_is_restricted_and_has_no_token(bench: Bench) -> None:
    script = (
        "import os, pathlib, sys\n"
        "assert os.getuid() == 65532\n"
        "assert not pathlib.Path('/var/run/secrets/kubernetes.io').exists()\n"
        "for folder in ('/tmp', '/cache', '/dev/shm', os.environ['HOME']):\n"
        "    pathlib.Path(folder, 'x').write_text('x')\n"
        "try:\n"
        "    pathlib.Path('/x').write_text('x')\n"
        "except OSError:\n"
        "    pathlib.Path('/dev/termination-log').write_text('it may not')\n"
        "    sys.exit(67)\n"
    )
    executor = bench.executor(script)
    executor.submit(request())
    assert "exit code 67 and without a result: it may not" in lost(executor)


def test_a_jobs_exit_code_that_is_never_retried_fails_it_at_once(bench: Bench) -> None:
    executor = bench.executor("import sys; sys.exit(66)")
    executor.submit(request())
    assert "exit code 66" in lost(executor)
    assert len(bench.pods()) == 1


def test_a_pod_that_ends_as_by_kill_9_is_lost_with_its_log(bench: Bench) -> None:
    executor = bench.executor("import os; print('the last words', flush=True); os._exit(137)")
    executor.submit(request())
    lost(executor, LossCause.CRASH)
    assert b"the last words" in bench.store.get(keys.log(request().run_id))


def test_a_run_waits_for_kueue_as_long_as_it_likes_and_goes_on_after_it_was_taken_back(bench: Bench) -> None:
    executor = bench.executor("import time; time.sleep(5)", kueue_queue="research", pending_seconds=3)
    executor.submit(request())
    (job,) = bench.jobs()
    assert job.metadata.labels[KUEUE_LABEL] == "research"
    assert executor.poll(6.0) == []
    assert bench.pods() == []
    bench.suspend(is_held=False)
    eventually(bench.running)
    bench.suspend(is_held=True)
    eventually(lambda: not bench.pods())
    assert executor.poll(6.0) == []
    bench.suspend(is_held=False)
    eventually(bench.running)
    bench.answer()
    (report,) = ends(executor)
    assert report.lost is None
    assert executor.notices() == [Notice(run_id=request().run_id)]


def test_a_pod_out_of_memory_is_told_apart(bench: Bench) -> None:
    executor = bench.executor("x = bytearray(2**30)\nfor i in range(0, 2**30, 4096): x[i] = 1")
    executor.submit(request())
    assert "out of memory" in lost(executor, LossCause.OUT_OF_MEMORY)


def test_a_deadline_is_told_apart(bench: Bench) -> None:
    executor = bench.executor(SLEEP, active_deadline_seconds=5)
    executor.submit(request())
    assert "activeDeadlineSeconds" in lost(executor, LossCause.DEADLINE)


def test_an_impossible_image_is_told_apart_and_its_job_deleted(bench: Bench) -> None:
    executor = bench.executor(SLEEP, image="localhost/no-such-image:none", image_seconds=5)
    executor.submit(request())
    assert "could not be started" in lost(executor, LossCause.IMAGE)
    eventually(lambda: not bench.jobs())


def test_a_pod_that_no_node_takes_is_told_apart(bench: Bench) -> None:
    executor = bench.executor(SLEEP, gpus_per_run=1000, pending_seconds=5)
    executor.submit(request())
    assert "no node took its pod" in lost(executor, LossCause.UNSCHEDULABLE)
    eventually(lambda: not bench.jobs())


@pytest.mark.parametrize("resource", ["count/jobs.batch", "pods"])
def test_a_full_quota_is_told_apart(bench: Bench, resource: str) -> None:
    bench.limit(**{resource: "0"})
    executor = bench.executor(SLEEP, pending_seconds=5)
    executor.submit(request())
    assert "quota" in lost(executor, LossCause.QUOTA)


def test_an_evicted_pod_is_made_anew_and_the_run_goes_on(bench: Bench) -> None:
    executor = bench.executor(SLEEP)
    executor.submit(request())
    eventually(bench.running)
    (first,) = bench.running()
    bench.evict(first)
    eventually(lambda: bench.running() not in ([], [first]))
    assert executor.poll(1.0) == []
    assert [notice.cause for notice in executor.notices()].count(LossCause.DISRUPTION) == 1
    bench.answer()
    executor.cancel(request().run_id)


def test_too_many_evictions_lose_a_run(bench: Bench) -> None:
    executor = bench.executor(SLEEP, max_disruptions=0)
    executor.submit(request())
    eventually(bench.running)
    bench.evict(bench.running()[0])
    assert "EvictionByEvictionAPI" in lost(executor)
    eventually(lambda: not bench.jobs() and not bench.pods())


def test_a_successor_adopts_what_runs(bench: Bench) -> None:
    first = bench.executor("import time; time.sleep(15)")
    first.submit(request())
    eventually(bench.running)
    first.close()
    second = bench.executor(SLEEP)
    second.submit(request())
    assert len(bench.jobs()) == 1
    bench.answer()
    assert ends(second) == [Report(run_id=request().run_id)]


def test_deleting_all_frees_the_node_and_the_next_controller_starts_anew(bench: Bench) -> None:
    executor = bench.executor(SLEEP)
    for trial in range(2):
        executor.submit(request(trial))
    eventually(lambda: len(bench.running()) == 2)
    executor.delete_all()
    second = bench.executor(SLEEP)
    second.submit(request(0))
    eventually(lambda: second.poll(0.1) == [] and len(bench.running()) == 1)
    eventually(lambda: len(bench.pods()) == 1)


def test_one_controller_at_a_time_holds_a_study(bench: Bench) -> None:
    with (
        leased(bench.api, "brain", identity="first"),
        pytest.raises(StudyLockedError, match="controller first"),
        leased(bench.api, "brain", identity="second"),
    ):
        pass
    started = time.monotonic()
    with leased(bench.api, "brain", identity="second"):
        assert time.monotonic() - started < 5


def test_each_of_two_studies_in_one_namespace_hears_of_its_own_runs(bench: Bench) -> None:
    executor = bench.executor("import sys; sys.exit(3)")
    other = bench.executor(SLEEP, study=STUDY.model_copy(update={"id": "9876543210"}))
    executor.submit(request())
    other.submit(request())
    assert "exit code 3" in lost(executor)
    assert other.poll(1.0) == []
