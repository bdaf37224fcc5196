"""What every Executor promises; fixtures supply the implementations."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeCluster

from automonai.domain.configuration import Configuration
from automonai.domain.request import EnsembleResult, TrainRequest
from automonai.domain.run import LossCause, Result, Run, RunState
from automonai.execution.executor import Executor, Notice, Report, left_without_answer
from automonai.execution.fake import FakeExecutor, VirtualClock
from automonai.execution.jobs import JobTemplate, StudyHandle
from automonai.execution.kubernetes import KubernetesExecutor
from automonai.execution.local import LocalExecutor
from automonai.storage import keys
from automonai.storage.local import LocalStore
from automonai.storage.store import Store

KILLED, CRASHED, ENDLESS = 13, 14, 99
Make = Callable[[], Executor]


def request(trial: int) -> TrainRequest:
    return TrainRequest(run=Run(trial=trial, budget_epochs=1), configuration=Configuration(), seed=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return LocalStore(tmp_path)


@pytest.fixture
def cluster(store: Store) -> Iterator[FakeCluster]:
    """Give a cluster whose pods answer at once, as their trial's number says."""
    cluster = FakeCluster()

    def play(job: dict[str, Any]) -> None:
        pod = cluster.start_pod(job)
        run_id = job["metadata"]["labels"]["automonai/run"]
        trial = int(job["metadata"]["labels"]["automonai/trial"])
        if trial == ENDLESS:
            return
        if trial not in (KILLED, CRASHED):
            result = Result(run_id=run_id, state=RunState.COMPLETE, loss=0.5)
            store.put(keys.result(run_id), result.model_dump_json().encode())
        cluster.end_pod(pod, {KILLED: 137, CRASHED: 3}.get(trial, 0), message="the disk is full\n" * (trial == CRASHED))

    cluster.on_job = play
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture(params=["fake", "local", "kubernetes"])
def make(request: pytest.FixtureRequest, store: LocalStore, tmp_path: Path, cluster: FakeCluster) -> Iterator[Make]:
    made: list[Executor] = []

    def local() -> Executor:
        worker = str(Path(__file__).with_name("echo_worker.py"))
        return LocalExecutor(tmp_path, slots=2, threads=1, cache_folder=tmp_path, command=(sys.executable, worker))

    def kubernetes() -> Executor:
        pytest.importorskip("urllib3", reason="needs the extra automonai[cluster]")
        study = StudyHandle(name="test", id="0123456789", location=str(tmp_path))
        template = JobTemplate(image="trainer:1")
        return KubernetesExecutor(cluster.api(), store, study=study, template=template, slots=2)

    def build() -> Executor:
        built = {"local": local, "kubernetes": kubernetes, "fake": lambda: fake(store)}
        made.append(built[request.param]())
        return made[-1]

    yield build
    for executor in made:
        executor.close()


def fake(store: Store) -> Executor:
    return FakeExecutor(
        store=store,
        clock=VirtualClock(),
        train=lambda r: Result(run_id=r.run_id, state=RunState.COMPLETE, loss=0.5),
        choose=lambda r: EnsembleResult(members=()),
        seconds=lambda r: 1e6 if r.run.trial == ENDLESS else 1.0,
        lose=lambda r: {
            KILLED: "its worker was ended by SIGKILL",
            CRASHED: left_without_answer(3, "the disk is full"),
        }.get(r.run.trial),
        slots=2,
    )


def ends(executor: Executor, count: int) -> list[Report]:
    reports: list[Report] = []
    deadline = time.monotonic() + 20
    while len(reports) < count and time.monotonic() < deadline:
        reports += executor.poll(5.0)
    return reports


def test_a_request_ends_with_its_result_in_the_store(make: Make, store: Store) -> None:
    executor = make()
    executor.submit(request(1))
    assert ends(executor, 1) == [Report(run_id=request(1).run_id)]
    assert Result.model_validate_json(store.get(keys.result(request(1).run_id))).loss == 0.5


def test_a_start_is_told_once_and_no_later_than_its_end(make: Make) -> None:
    executor = make()
    executor.submit(request(1))
    assert len(ends(executor, 1)) == 1
    assert executor.notices() == [Notice(run_id=request(1).run_id)]
    assert executor.notices() == []


def test_a_run_that_is_submitted_again_after_its_loss_is_started_again(make: Make) -> None:
    executor = make()
    for attempt in (0, 1):
        executor.submit(request(CRASHED).model_copy(update={"attempt": attempt}))
        assert [report.cause for report in ends(executor, 1)] == [LossCause.CRASH]
        assert executor.notices() == [Notice(run_id=request(CRASHED).run_id)]


def test_a_request_that_has_its_answer_already_is_not_started(make: Make, store: Store) -> None:
    result = Result(run_id=request(1).run_id, state=RunState.COMPLETE, loss=0.5)
    store.put(keys.result(result.run_id), result.model_dump_json().encode())
    executor = make()
    executor.submit(request(1))
    assert ends(executor, 1) == [Report(run_id=request(1).run_id)]
    assert executor.notices() == []


def test_a_report_has_a_cause_if_and_only_if_it_tells_of_a_loss() -> None:
    for words, cause in (("exit code 3", None), (None, LossCause.CRASH)):
        with pytest.raises(ValueError, match="or neither"):
            Report(run_id="x", lost=words, cause=cause)


def test_slots_are_taken_by_submit_and_freed_by_the_report(make: Make) -> None:
    executor = make()
    assert executor.free_slots() == 2
    executor.submit(request(1))
    executor.submit(request(2))
    assert executor.free_slots() == 0
    ends(executor, 2)
    assert executor.free_slots() == 2


def test_requests_beyond_the_slots_are_done_as_well(make: Make) -> None:
    executor = make()
    wanted = {request(trial).run_id for trial in range(1, 6)}
    for trial in range(1, 6):
        executor.submit(request(trial))
    assert executor.free_slots() == 0
    assert {report.run_id for report in ends(executor, 5)} == wanted
    assert {notice.run_id for notice in executor.notices()} == wanted
    assert executor.free_slots() == 2


def test_submitting_a_running_request_again_starts_nothing(make: Make) -> None:
    executor = make()
    executor.submit(request(1))
    executor.submit(request(1))
    assert executor.free_slots() == 1
    assert len(ends(executor, 1)) == 1
    assert executor.poll(0.0) == []


def test_each_end_is_reported_once(make: Make) -> None:
    executor = make()
    for trial in (1, 2):
        executor.submit(request(trial))
    assert {report.run_id for report in ends(executor, 2)} == {request(1).run_id, request(2).run_id}
    assert executor.poll(0.0) == []


@pytest.mark.parametrize(
    ("trial", "why"), [(KILLED, "SIGKILL"), (CRASHED, "exit code 3 and without a result: the disk is full")]
)
def test_a_run_whose_worker_dies_is_lost_with_its_reason_and_others_go_on(make: Make, trial: int, why: str) -> None:
    executor = make()
    executor.submit(request(trial))
    executor.submit(request(1))
    reports = {report.run_id: report.lost for report in ends(executor, 2)}
    assert why in (reports[request(trial).run_id] or "")
    assert reports[request(1).run_id] is None
    executor.submit(request(2))
    assert ends(executor, 1) == [Report(run_id=request(2).run_id)]


def test_a_successor_takes_a_finished_run_as_it_is(make: Make, store: Store) -> None:
    first = make()
    first.submit(request(1))
    ends(first, 1)
    first.close()
    marked = Result(run_id=request(1).run_id, state=RunState.COMPLETE, loss=0.125)
    store.put(keys.result(request(1).run_id), marked.model_dump_json().encode())
    second = make()
    second.submit(request(1))
    assert ends(second, 1) == [Report(run_id=request(1).run_id)]
    assert Result.model_validate_json(store.get(keys.result(request(1).run_id))).loss == 0.125


def test_a_cancelled_run_frees_its_slot_and_is_not_reported(make: Make) -> None:
    executor = make()
    executor.submit(request(ENDLESS))
    executor.cancel(request(ENDLESS).run_id)
    assert executor.free_slots() == 2
    executor.submit(request(1))
    assert ends(executor, 1) == [Report(run_id=request(1).run_id)]


def test_close_may_be_called_twice_and_lets_go_of_what_runs(make: Make) -> None:
    executor = make()
    executor.submit(request(ENDLESS))
    executor.close()
    executor.close()
    assert executor.free_slots() == 2
