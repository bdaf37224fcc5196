"""A Kubernetes executor that takes over what another one has left."""

from __future__ import annotations

import pytest

pytest.importorskip("urllib3", reason="needs the extra automonai[cluster]")
from job_bench import TEMPLATE, Bench, eventually, lost, request, settle

from automonai.errors import ClusterError
from automonai.execution.cluster_api import Listing
from automonai.execution.cluster_objects import Kind
from automonai.execution.executor import Notice, Report
from automonai.execution.jobs import WORKFLOW_LABEL


def test_a_successor_adopts_running_jobs_and_hears_of_their_end(bench: Bench) -> None:
    first = bench.executor()
    first.submit(request())
    pod = bench.cluster.start_pod(bench.cluster.only_job())
    first.close()
    second = bench.executor()
    second.submit(request())
    assert len(bench.cluster.objects["jobs"]) == 1
    bench.finish(request())
    bench.cluster.end_pod(pod, 0)
    assert second.poll(5.0) == [Report(run_id=request().run_id)]


def test_a_job_of_a_workflow_that_is_over_makes_room_for_an_own_one(bench: Bench) -> None:
    first = bench.executor(workflow="study-old")
    first.submit(request())
    first.close()
    second = bench.executor(workflow="study-new")
    second.submit(request())
    bench.clock.now += 60

    def workflows() -> list[str]:
        assert second.poll(0.1) == []
        return [job["metadata"]["labels"][WORKFLOW_LABEL] for job in bench.cluster.objects["jobs"].values()]

    eventually(lambda: workflows() == ["study-new"])


def test_a_successor_whose_first_look_at_the_pods_fails_looks_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.executor()
    first.submit(request())
    pod = bench.cluster.start_pod(bench.cluster.only_job())
    first.close()
    second = bench.executor()
    monkeypatch.setattr(second, "_start_watching", lambda: None)  # they told of the pod before its Job was known
    look, failures = second._api.list, [ClusterError("too many requests", status=429)]

    def looking(kind: Kind, selector: str) -> Listing:
        if failures:
            raise failures.pop()
        return look(kind, selector)

    monkeypatch.setattr(second._api, "list", looking)
    second.submit(request())
    bench.clock.now += TEMPLATE.pending_seconds + 1
    assert second.poll(0.0) == []
    assert second.notices() == [Notice(run_id=request().run_id)]
    bench.clock.now += TEMPLATE.pending_seconds + 1
    assert second.poll(0.0) == []
    assert pod in bench.cluster.objects["pods"]


def test_a_successor_learns_of_a_loss_that_happened_while_nobody_watched(bench: Bench) -> None:
    first = bench.executor()
    first.submit(request())
    first.close()
    bench.cluster.end_pod(bench.cluster.start_pod(bench.cluster.only_job()), 137, "OOMKilled")
    second = bench.executor()
    second.submit(request())
    assert "out of memory" in lost(second)


def test_close_leaves_jobs_to_a_successor_and_delete_all_does_not(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    executor.close()
    assert len(bench.cluster.objects["jobs"]) == 1
    executor = bench.executor()
    executor.submit(request())
    executor.delete_all()
    assert bench.cluster.objects["jobs"] == {}


def test_a_start_is_told_once_its_container_runs_and_again_to_a_successor(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    pod = bench.cluster.start_pod(bench.cluster.only_job(), phase="Pending")
    settle(executor)
    assert executor.notices() == []
    bench.cluster.put("pods", bench.cluster.objects["pods"][pod] | {"status": {"phase": "Running"}})
    settle(executor)
    assert executor.notices() == [Notice(run_id=request().run_id)]
    assert executor.notices() == []
    executor.close()
    second = bench.executor()
    second.submit(request())
    settle(second)
    assert second.notices() == [Notice(run_id=request().run_id)]
