"""Which Job is made for a run, and when: its attempts, its predecessor's, and what slots there are."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("urllib3", reason="needs the extra automonai[cluster]")
from job_bench import TEMPLATE, Bench, lost, request, settle

from automonai.domain.run import LossCause
from automonai.errors import ClusterError
from automonai.execution.executor import Report


def job_being_deleted(bench: Bench) -> dict[str, Any]:
    """Return a predecessor's Job that is on its way out."""
    first = bench.executor()
    first.submit(request())
    first.close()
    job = bench.cluster.only_job()
    job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return job


def test_the_next_attempt_is_another_job(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    bench.cluster.end_pod(bench.cluster.start_pod(bench.cluster.only_job()), 3)
    lost(executor)
    executor.submit(request(attempt=1))
    assert settle(executor) == []
    assert len(bench.cluster.objects["jobs"]) == 1, "a node that refuses pods would get the next one at once"
    bench.clock.now = 6
    assert settle(executor) == []
    assert len(bench.cluster.objects["jobs"]) == 2


def test_a_node_that_does_not_admit_pods_gets_the_next_one_later_each_time(bench: Bench) -> None:
    executor = bench.executor()
    for attempt, pause in enumerate((0, 5, 20, 80)):
        executor.submit(request(attempt=attempt).model_copy(update={"strikes": 0}))
        if pause:
            bench.clock.now += pause - 1
            assert settle(executor) == []
            assert bench.cluster.objects["jobs"] == {}
            bench.clock.now += 2
            assert settle(executor) == []
        pod = bench.cluster.start_pod(bench.cluster.only_job(), phase="Pending")
        bench.cluster.refuse_pod(pod, "UnexpectedAdmissionError")
        assert "its node refused its pod" in lost(executor, LossCause.UNSCHEDULABLE)
        bench.cluster.delete("jobs", bench.cluster.only_job()["metadata"]["name"])


def test_no_more_jobs_are_made_than_there_are_slots_and_what_is_there_is_adopted(bench: Bench) -> None:
    first = bench.executor(slots=3)
    for trial in (1, 2, 3):
        first.submit(request(trial))
    first.close()
    second = bench.executor(slots=2)
    for trial in (1, 2, 3, 4, 5):
        second.submit(request(trial))
    assert settle(second) == []
    assert len(bench.cluster.objects["jobs"]) == 3
    for trial in (1, 2, 3, 4, 5):
        (job,) = [
            job
            for job in bench.cluster.objects["jobs"].values()
            if job["metadata"]["labels"]["automonai/run"] == request(trial).run_id
        ]
        pod = bench.cluster.start_pod(job)
        bench.finish(request(trial))
        bench.cluster.end_pod(pod, 0)
        assert second.poll(5.0) == [Report(run_id=request(trial).run_id)]
        assert settle(second) == []


def test_a_job_whose_predecessor_goes_waits_for_a_slot_like_any_other(bench: Bench) -> None:
    first = bench.executor(slots=3)
    for trial in (1, 2, 3):
        first.submit(request(trial))
    first.close()
    old = list(bench.cluster.objects["jobs"].values())
    for job in old:
        job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    second = bench.executor(slots=1)
    for trial in (1, 2, 3):
        second.submit(request(trial))
    for job in old:
        bench.cluster.delete("jobs", job["metadata"]["name"])
    bench.clock.now = 30
    assert settle(second) == []
    assert len(bench.cluster.objects["jobs"]) == 1
    bench.clock.now = 91
    assert [report.run_id for report in settle(second)] == [request(1).run_id], "others' time for a node has not begun"


def test_a_quota_that_refuses_after_a_predecessor_has_gone_is_not_taken_for_it(bench: Bench) -> None:
    old = job_being_deleted(bench)
    second = bench.executor()
    second.submit(request())
    bench.cluster.delete("jobs", old["metadata"]["name"])
    bench.cluster.refuse_jobs = (403, 'jobs "x" is forbidden: exceeded quota: gpus')
    bench.clock.now = 20
    assert settle(second) == []
    bench.clock.now = 400
    assert "exceeded quota: gpus" in lost(second, LossCause.QUOTA)


def test_a_job_of_that_name_that_never_goes_is_told(bench: Bench) -> None:
    job_being_deleted(bench)
    second = bench.executor()
    second.submit(request())
    bench.clock.now = 299 + TEMPLATE.grace_seconds
    assert settle(second) == []
    bench.clock.now = 301 + TEMPLATE.grace_seconds
    assert "is being deleted, and does not go" in lost(second, LossCause.DELETED)


def test_a_lost_run_is_not_let_go_before_its_job_is_deleted(bench: Bench) -> None:
    executor = bench.executor()
    pod = bench.start(executor)
    settle(executor)
    leaving = bench.cluster.objects["pods"][pod]
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    bench.cluster.put("pods", leaving)
    settle(executor)
    delete_job, refusals = executor._api.delete_job, 2

    def overburdened(name: str) -> None:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise ClusterError("too many requests", status=429)
        delete_job(name)

    executor._api.delete_job = overburdened  # type: ignore[method-assign]
    bench.clock.now = 301 + TEMPLATE.grace_seconds
    assert settle(executor) == []
    bench.clock.now += 20
    settle(executor)
    bench.clock.now += 20
    assert "its node is lost" in lost(executor, LossCause.NODE_LOST)
    assert bench.cluster.objects["jobs"] == {}


def test_a_successor_adopts_a_later_attempt_at_once(bench: Bench) -> None:
    first = bench.executor()
    first.submit(request(attempt=1))
    bench.clock.now = 6
    settle(first)
    first.close()
    pod = bench.cluster.start_pod(bench.cluster.only_job())
    second = bench.executor()
    second.submit(request(attempt=1))
    bench.finish(request())
    bench.cluster.end_pod(pod, 0)
    assert second.poll(5.0) == [Report(run_id=request().run_id)]


def test_waiting_for_room_makes_no_next_attempt_wait_longer(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request(attempt=3).model_copy(update={"strikes": 0}))
    assert len(bench.cluster.objects["jobs"]) == 1


def test_a_job_of_that_name_that_is_being_deleted_makes_room_first(bench: Bench) -> None:
    old = job_being_deleted(bench)
    second = bench.executor()
    second.submit(request())
    assert settle(second) == []
    bench.cluster.delete("jobs", old["metadata"]["name"])
    bench.clock.now = 30
    assert settle(second) == []
    assert bench.cluster.only_job()["metadata"]["uid"] != old["metadata"]["uid"]
    assert settle(second) == []
