"""The Kubernetes executor over a fake API, and what its tests ask of both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import pytest

pytest.importorskip("urllib3", reason="needs the extra automonai[cluster]")
from fake_cluster import FakeCluster

from automonai.domain.configuration import Configuration
from automonai.domain.request import TrainRequest
from automonai.domain.run import FailureReason, LossCause, Result, Run, RunState
from automonai.execution.executor import Notice, Report
from automonai.execution.fake import VirtualClock
from automonai.execution.jobs import JobTemplate, StudyHandle, WorkflowOwner
from automonai.execution.kubernetes import KubernetesExecutor
from automonai.storage import keys
from automonai.storage.memory import MemoryStore

STUDY = StudyHandle(name="test", id="0123456789", location="s3://bucket/studies/test")
TEMPLATE = JobTemplate(image="trainer:1", max_disruptions=2, pending_seconds=60, image_seconds=20)


def request(trial: int = 1, attempt: int = 0) -> TrainRequest:
    run = Run(trial=trial, budget_epochs=1)
    return TrainRequest(run=run, configuration=Configuration(), seed=1, attempt=attempt, strikes=attempt)


@dataclass
class Bench:
    cluster: FakeCluster
    store: MemoryStore
    clock: VirtualClock
    made: list[KubernetesExecutor]

    def executor(self, slots: int = 2, *, workflow: str = "study-abc") -> KubernetesExecutor:
        owner = WorkflowOwner(name=workflow, uid=f"uid of {workflow}")
        self.made.append(
            KubernetesExecutor(
                self.cluster.api(),
                self.store,
                study=STUDY,
                template=TEMPLATE,
                slots=slots,
                owner=owner,
                clock=self.clock,
            )
        )
        _clusters[self.made[-1]] = self.cluster
        return self.made[-1]

    def start(self, executor: KubernetesExecutor, trial: int = 1) -> str:
        """Submit a run and start its pod, the watches being open."""
        executor.submit(request(trial))
        eventually(lambda: self.cluster.count("GET", "watch=true") >= 2)
        return self.cluster.start_pod(list(self.cluster.objects["jobs"].values())[-1])

    def finish(self, run: TrainRequest, state: RunState = RunState.COMPLETE) -> None:
        reason = FailureReason.OUT_OF_MEMORY if state is RunState.FAILED else None
        result = Result(run_id=run.run_id, state=state, loss=0.5, reason=reason)
        self.store.put(keys.result(run.run_id), result.model_dump_json().encode())


def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def lost(executor: KubernetesExecutor, cause: LossCause | None = None) -> str:
    """Return why the only run is lost."""
    reports = executor.poll(60.0)
    assert len(reports) == 1
    assert reports[0].lost is not None
    assert cause in (None, reports[0].cause)
    return reports[0].lost


def news(executor: KubernetesExecutor) -> list[Notice]:
    """Return what is told of a run that goes on."""
    assert executor.poll(0.0) == []
    return executor.notices()


def disruptions(notices: list[Notice]) -> int:
    return sum(notice.cause is LossCause.DISRUPTION and "EvictionByEvictionAPI" in notice.why for notice in notices)


def settle(executor: KubernetesExecutor) -> list[Report]:
    """Let the watches' news arrive: all there is by now, unless the API is away."""
    cluster, deadline = _clusters[executor], time.monotonic() + 5.0
    time.sleep(0.05)
    while cluster.is_up and time.monotonic() < deadline and not _have_seen_all(executor, cluster):
        time.sleep(0.01)
    time.sleep(0.05)
    return executor.poll(0.0)


_clusters: WeakKeyDictionary[KubernetesExecutor, FakeCluster] = WeakKeyDictionary()


def _have_seen_all(executor: KubernetesExecutor, cluster: FakeCluster) -> bool:
    return all(int(watcher._seen or 0) >= cluster.last_change(watcher.kind) for watcher in executor._watchers)
