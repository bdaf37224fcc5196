"""The Kubernetes executor over a fake API: what becomes of Jobs, watches and an API that goes away."""

from __future__ import annotations

import pytest

pytest.importorskip("urllib3", reason="needs the extra automonai[cluster]")
from job_bench import TEMPLATE, Bench, disruptions, eventually, lost, news, request, settle

from automonai.domain.run import LossCause, RunState
from automonai.errors import ClusterError
from automonai.execution.cluster_api import STARTING_SECONDS
from automonai.execution.executor import Notice, Report
from automonai.storage import keys


def test_the_store_decides_what_a_run_came_to(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    pod = bench.cluster.start_pod(bench.cluster.only_job())
    assert settle(executor) == []
    bench.finish(request(), RunState.FAILED)
    bench.cluster.end_pod(pod, 66)
    assert executor.poll(5.0) == [Report(run_id=request().run_id)]


def test_an_answer_counts_as_soon_as_the_pod_has_ended(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    pod = bench.cluster.start_pod(bench.cluster.only_job())
    bench.finish(request())
    bench.cluster._end_container(pod, 0, "Completed", phase="Succeeded")
    assert executor.poll(5.0) == [Report(run_id=request().run_id)]


def test_one_run_costs_few_requests(bench: Bench) -> None:
    executor = bench.executor()
    for trial in range(10):
        executor.submit(request(trial))
        pod = bench.cluster.start_pod(next(reversed(bench.cluster.objects["jobs"].values())))
        bench.finish(request(trial))
        bench.cluster.end_pod(pod, 0)
        assert len(executor.poll(5.0)) == 1
    # A Job each; two lists and two watches; and perhaps a look for the first Job, which the first list may lack.
    assert len(bench.cluster.requests) <= 10 + 4 + 1


@pytest.mark.parametrize(
    ("exit_code", "reason", "cause", "words"),
    [
        (137, "OOMKilled", LossCause.OUT_OF_MEMORY, "out of memory"),
        (137, "Error", LossCause.CRASH, "SIGKILL"),
        (3, "Error", LossCause.CRASH, "exit code 3"),
        (0, "Completed", LossCause.CRASH, "without a result"),
    ],
)
def test_a_pod_that_leaves_no_answer_is_lost_with_its_cause(
    bench: Bench, exit_code: int, reason: str, cause: LossCause, words: str
) -> None:
    executor = bench.executor()
    executor.submit(request())
    bench.cluster.end_pod(bench.cluster.start_pod(bench.cluster.only_job()), exit_code, reason)
    assert words in lost(executor, cause)
    assert executor.free_slots() == 2


def test_a_deadline_is_told_apart(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    bench.cluster.end_job(bench.cluster.only_job(), "Failed", "DeadlineExceeded")
    assert "activeDeadlineSeconds" in lost(executor, LossCause.DEADLINE)


def test_disruptions_are_counted_and_made_up_for_until_there_are_too_many(bench: Bench) -> None:
    executor = bench.executor()
    bench.start(executor)
    told: list[Notice] = []
    for count in (1, 2):
        bench.cluster.disrupt(next(iter(bench.cluster.objects["pods"])))
        eventually(lambda count=count: [told.extend(news(executor)), disruptions(told)][1] == count)
    bench.cluster.disrupt(next(iter(bench.cluster.objects["pods"])))
    assert "disrupted 3 times, the last time by EvictionByEvictionAPI" in lost(executor, LossCause.DISRUPTION)
    assert disruptions(told + executor.notices()) == 3
    assert bench.cluster.objects["jobs"] == {}


def test_a_lost_node_is_told_from_an_eviction(bench: Bench) -> None:
    executor = bench.executor()
    bench.start(executor)
    for _ in range(3):
        bench.cluster.disrupt(next(iter(bench.cluster.objects["pods"])), "DeletionByTaintManager")
    assert "node was lost" in lost(executor, LossCause.NODE_LOST)


def test_a_pod_that_never_leaves_is_on_a_lost_node(bench: Bench) -> None:
    executor = bench.executor()
    pod = bench.start(executor)
    leaving = bench.cluster.objects["pods"][pod]
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    bench.cluster.put("pods", leaving)
    settle(executor)
    bench.clock.now = 299 + TEMPLATE.grace_seconds
    assert settle(executor) == []
    bench.clock.now = 301 + TEMPLATE.grace_seconds
    assert "its node is lost" in lost(executor, LossCause.NODE_LOST)
    assert bench.cluster.count("GET", "/log") == 0, "the lost node's kubelet would be waited for"


def test_a_lost_run_is_told_only_when_its_last_pod_is_gone(bench: Bench) -> None:
    executor = bench.executor()
    pod = bench.start(executor)
    settle(executor)
    with bench.cluster._changed:
        name = next(iter(bench.cluster.objects["jobs"]))
        kept = bench.cluster.objects["pods"].pop(pod)
        bench.cluster.delete("jobs", name)
        bench.cluster.objects["pods"][pod] = kept
    assert settle(executor) == []
    bench.cluster.delete("pods", pod)
    assert "deleted by somebody" in lost(executor)


def test_an_impossible_image_is_lost_after_its_patience_and_its_job_is_deleted(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    state = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image: trainer:1"}}
    status = {"containerStatuses": [{"name": "main", "state": state}]}
    bench.cluster.start_pod(bench.cluster.only_job(), phase="Pending", status=status)
    assert settle(executor) == []
    bench.clock.now = 21
    assert "ImagePullBackOff: no such image: trainer:1" in lost(executor, LossCause.IMAGE)
    assert bench.cluster.objects["jobs"] == {}


def test_a_pod_that_no_node_takes_is_lost_after_its_patience(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/8 nodes: no gpu"}
    bench.cluster.start_pod(bench.cluster.only_job(), phase="Pending", status={"conditions": [condition]})
    settle(executor)
    bench.clock.now = 59
    assert settle(executor) == []
    bench.clock.now = 61
    assert "no node took its pod for 60 s: 0/8 nodes: no gpu" in lost(executor, LossCause.UNSCHEDULABLE)


def test_a_full_quota_is_waited_for_then_told(bench: Bench) -> None:
    bench.cluster.refuse_jobs = (403, 'jobs "x" is forbidden: exceeded quota: gpus')
    executor = bench.executor()
    executor.submit(request(1))
    executor.submit(request(2))
    assert settle(executor) == []
    bench.cluster.refuse_jobs = None
    bench.clock.now = 10
    settle(executor)
    assert len(bench.cluster.objects["jobs"]) == 2
    bench.cluster.refuse_jobs = (403, 'jobs "x" is forbidden: exceeded quota: gpus')
    executor.cancel(request(1).run_id)
    executor.cancel(request(2).run_id)
    executor.submit(request(3))
    bench.clock.now = 71
    assert "exceeded quota: gpus" in lost(executor, LossCause.QUOTA)


def test_a_job_without_pods_tells_of_quota_too(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    settle(executor)
    bench.clock.now = 61
    assert "quota" in lost(executor)


def test_kueue_may_hold_a_job_back_for_as_long_as_it_likes(bench: Bench) -> None:
    bench.cluster.on_job = lambda job: job["spec"].update(suspend=True) or bench.cluster.put("jobs", job)
    executor = bench.executor()
    executor.submit(request())
    settle(executor)
    bench.clock.now = 10_000
    assert settle(executor) == []


@pytest.mark.parametrize(
    "refusal", [(401, "Unauthorized"), (403, "User system:serviceaccount:x cannot create resource jobs")]
)
def test_a_refusal_is_raised_unless_it_passes_as_one_of_an_api_server_that_starts(
    bench: Bench, refusal: tuple[int, str]
) -> None:
    executor = bench.executor()
    bench.cluster.refuse_jobs = refusal
    executor.submit(request(1))
    assert settle(executor) == []
    bench.cluster.refuse_jobs, bench.clock.now = None, 30
    settle(executor)
    assert len(bench.cluster.objects["jobs"]) == 1
    bench.cluster.refuse_jobs = refusal
    executor.submit(request(2))
    bench.clock.now = 30 + STARTING_SECONDS
    with pytest.raises(ClusterError, match=refusal[1]):
        settle(executor)


def test_a_job_that_somebody_deletes_is_lost(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    bench.cluster.start_pod(bench.cluster.only_job())
    settle(executor)
    bench.cluster.delete("jobs", next(iter(bench.cluster.objects["jobs"])))
    assert "deleted by somebody" in lost(executor)


def test_a_job_is_not_judged_by_news_that_lies_in_the_queue(bench: Bench) -> None:
    executor = bench.executor()
    first = bench.start(executor, 1)
    executor.submit(request(2))
    state = {"waiting": {"reason": "ErrImagePull", "message": "timeout"}}
    status = {"containerStatuses": [{"name": "main", "state": state}]}
    second = bench.cluster.start_pod(list(bench.cluster.objects["jobs"].values())[-1], phase="Pending", status=status)
    assert settle(executor) == []
    exists = bench.store.exists

    def slow(key: str) -> bool:
        """Answer after so long that the second run's image has come, as a store does that is being started again."""
        if bench.clock.now == 0 and request(1).run_id in key:
            bench.cluster.run_pod(second)
            bench.clock.now += 90
        return exists(key)

    bench.store.exists = slow  # type: ignore[method-assign]
    bench.finish(request(1))
    bench.cluster.end_pod(first, 0)
    assert executor.poll(5.0) == [Report(run_id=request(1).run_id)]
    assert bench.clock.now == 90
    assert executor.poll(0.0) == []
    assert len(bench.cluster.objects["jobs"]) == 2


def test_a_watch_that_ended_for_good_ends_the_controller(bench: Bench) -> None:
    executor = bench.executor()
    bench.start(executor)
    assert settle(executor) == []
    executor._watchers[1].stop()
    with pytest.raises(ClusterError, match="nobody watches the pods") as caught:
        executor.poll(0.0)
    assert caught.value.is_passing


def test_watches_go_on_after_410_gone_by_one_list_each(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    pod = bench.cluster.start_pod(bench.cluster.only_job())
    settle(executor)
    bench.finish(request())
    bench.cluster.end_pod(pod, 0)
    executor.poll(5.0)
    bench.cluster.break_watches()
    eventually(lambda: executor.relists == 4)
    executor.submit(request(2))
    pod = bench.cluster.start_pod(bench.cluster.objects["jobs"][list(bench.cluster.objects["jobs"])[-1]])
    bench.finish(request(2))
    bench.cluster.end_pod(pod, 0)
    assert executor.poll(5.0) == [Report(run_id=request(2).run_id)]


def test_a_job_that_vanished_unseen_is_found_out_by_the_list(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    settle(executor)
    with bench.cluster._changed:
        bench.cluster.objects["jobs"].clear()
        bench.cluster.break_watches()
    assert "deleted" in lost(executor)


def test_an_api_that_is_away_loses_nothing(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request(1))
    pod = bench.cluster.start_pod(bench.cluster.only_job())
    settle(executor)
    bench.cluster.stop()
    executor.submit(request(2))
    assert executor.poll(0.1) == []
    bench.finish(request(1))
    bench.cluster.end_pod(pod, 0)
    bench.cluster.start()
    bench.clock.now = 30
    assert executor.poll(10.0) == [Report(run_id=request(1).run_id)]
    eventually(lambda: executor.poll(0.1) == [] and len(bench.cluster.objects["jobs"]) == 2)


def test_the_log_of_a_pod_that_left_no_answer_is_kept(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    pod = bench.cluster.start_pod(bench.cluster.only_job())
    bench.cluster.logs[pod] = "the last words\n"
    bench.cluster.end_pod(pod, 137)
    lost(executor)
    assert bench.store.get(keys.log(request().run_id)) == b"the last words\n"


@pytest.mark.parametrize(
    ("exit_code", "stored", "kept"),
    [
        (137, "attempt 0\n", 'attempt 0\n{"message": "epoch 3"}\n'),
        (1, "attempt 0\nepoch 3\n", "attempt 0\nepoch 3\n"),  # by the worker itself
        (127, "attempt 0\n", 'attempt 0\n{"message": "epoch 3"}\n'),  # it had not begun
    ],
)
def test_the_log_of_a_lost_attempt_stands_once_behind_the_earlier_ones(
    bench: Bench, exit_code: int, stored: str, kept: str
) -> None:
    bench.store.put(keys.log(request().run_id), stored.encode())
    executor = bench.executor()
    executor.submit(request())
    pod = bench.cluster.start_pod(bench.cluster.only_job())
    bench.cluster.logs[pod] = '{"message": "epoch 3"}\n'
    bench.cluster.end_pod(pod, exit_code)
    lost(executor)
    assert bench.store.get(keys.log(request().run_id)).decode() == kept


def test_cancelling_deletes_the_job(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    executor.cancel(request().run_id)
    assert bench.cluster.objects["jobs"] == {}
    assert executor.free_slots() == 2
    assert settle(executor) == []


def test_jobs_of_another_study_are_left_alone(bench: Bench) -> None:
    other = {"metadata": {"name": "other", "labels": {"automonai/run": request().run_id}}, "spec": {}}
    bench.cluster.put("jobs", other)
    executor = bench.executor()
    executor.submit(request())
    bench.cluster.delete("jobs", "other")
    assert executor.poll(0.2) == []


def test_an_answer_tells_of_a_start_that_the_watch_has_not_told_yet(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    bench.finish(request())
    bench.cluster.end_job(bench.cluster.only_job(), "Complete", "")
    assert executor.poll(5.0) == [Report(run_id=request().run_id)]
    assert executor.notices() == [Notice(run_id=request().run_id)]


def test_a_run_whose_container_never_ran_is_lost_without_a_start(bench: Bench) -> None:
    executor = bench.executor()
    executor.submit(request())
    settle(executor)
    bench.clock.now = 61
    lost(executor, LossCause.QUOTA)
    assert executor.notices() == []


def test_a_disruption_is_told_once_with_its_pod_and_its_cause(bench: Bench) -> None:
    executor = bench.executor()
    pod = bench.start(executor)
    bench.cluster.disrupt(pod, "DeletionByTaintManager")
    told: list[Notice] = []
    eventually(lambda: [told.extend(news(executor)), len(told) >= 2][1])
    bench.cluster.break_watches()
    eventually(lambda: executor.relists == 4)
    settle(executor)
    why = f"pod {pod} was taken away: DeletionByTaintManager"
    disruption = Notice(run_id=request().run_id, cause=LossCause.NODE_LOST, why=why)
    assert told + executor.notices() == [Notice(run_id=request().run_id), disruption]
