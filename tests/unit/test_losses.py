"""What the infrastructure takes away: when it is tried again, and when it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from studies import Bench, make_spec, train

from automonai.domain import decisions
from automonai.domain.decisions import LOST_RUNS, OVERDUE_SECONDS, SPENT
from automonai.domain.events import ClockJumped, SessionStarted, StudyStarted, TimePassed
from automonai.domain.request import EnsembleRequest, TrainRequest
from automonai.domain.run import FailureReason, LossCause, Purpose, Result, RunState
from automonai.domain.study import Study
from automonai.errors import LostTooOftenError
from automonai.execution.executor import Report, pause_before
from automonai.execution.fake import FakeExecutor
from automonai.spec import ExecutionSpec
from automonai.storage.journal import Journal

Asked = TrainRequest | EnsembleRequest


def losing(bench: Bench, is_lost: Callable[[Asked], bool]) -> Study:
    return bench.run(executor=bench.executor(lose=lambda request: "away" if is_lost(request) else None))


def test_a_run_that_is_lost_again_waits_longer_each_time() -> None:
    assert [pause_before(strikes) for strikes in (0, 1, 2, 3, 9)] == [0, 5, 20, 80, 300]


def test_the_ensemble_is_tried_again_by_the_next_session_and_nothing_is_trained_twice() -> None:
    bench = Bench(make_spec(iterations=1))
    with pytest.raises(LostTooOftenError, match=r"ensemble was lost 4 times, the last time: away; .* start the study"):
        losing(bench, lambda request: isinstance(request, EnsembleRequest))
    left = Study.replay(Journal(bench.store).read())
    assert not left.is_over
    executor = bench.executor()
    study = bench.run(executor=executor)
    assert study.ended.succeeded
    assert executor.trained == ["ensemble"]
    assert study.ensemble_losses == 4


def test_runs_that_are_all_lost_stop_the_controller_and_not_the_study() -> None:
    bench = Bench(make_spec(iterations=3))
    with pytest.raises(LostTooOftenError, match=rf"{LOST_RUNS} runs in a row were lost for good; .*: away"):
        losing(bench, lambda request: isinstance(request, TrainRequest) and request.run.trial > 3)
    left = Study.replay(Journal(bench.store).read())
    assert sum(r.result is not None and r.result.reason is FailureReason.LOST for r in left.runs.values()) == LOST_RUNS
    study = bench.run()
    assert study.ended.succeeded
    assert not any(record.result.reason is FailureReason.LOST for record in study.runs.values() if record.result)


def test_runs_that_are_all_lost_stop_the_controller_whatever_the_clock_says() -> None:
    bench = Bench(make_spec(iterations=3))

    def lose(request: Asked) -> str | None:
        if isinstance(request, EnsembleRequest) or request.run.trial <= 3:
            return None
        bench.clock.now -= 3600.0
        return "away"

    with pytest.raises(LostTooOftenError, match=f"{LOST_RUNS} runs in a row were lost for good"):
        bench.run(executor=bench.executor(lose=lose))
    left = Study.replay(Journal(bench.store).read())
    assert sum(r.result is not None and r.result.reason is FailureReason.LOST for r in left.runs.values()) == LOST_RUNS


def test_refits_that_are_all_lost_are_trained_by_the_next_session() -> None:
    bench = Bench(make_spec(iterations=1, parallel=2))
    with pytest.raises(LostTooOftenError, match="no refit completed, 4 were lost for good"):
        losing(bench, lambda request: isinstance(request, TrainRequest) and request.run.purpose is Purpose.REFIT)
    executor = bench.executor()
    study = bench.run(executor=executor)
    assert study.ended.succeeded
    assert executor.trained == [*(run.id for run in study.refit.runs), "ensemble"]
    assert {member.run_id for member in study.ensemble.members} == {run.id for run in study.refit.runs}


def test_a_bad_node_does_not_stop_a_controller_whose_other_runs_are_at_work() -> None:
    bench = Bench(make_spec(iterations=3, parallel=2))
    mended_at = bench.clock.now + 1000

    def seconds_of(request: Asked) -> float:
        return 1000.0 if request.run_id == "trial-0000-epochs-0001-fold-0" else 1.0

    def lose(request: Asked) -> str | None:
        return "a bad node" if bench.clock.now < mended_at else None

    study = bench.run(executor=bench.executor(seconds=seconds_of, lose=lose))
    lost = [r for r in study.runs.values() if r.result is not None and r.result.reason is FailureReason.LOST]
    assert len(lost) == LOST_RUNS
    assert study.ended.succeeded


def test_a_search_whose_later_runs_all_fail_ends_and_the_best_is_refitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "HOPELESS_LATER", 80)
    bench = Bench(make_spec(epochs=1000))

    def mostly_fail(request: TrainRequest) -> Result:
        if request.run.purpose is Purpose.REFIT or request.run.trial < 2:
            return train(request)
        return Result(run_id=request.run_id, state=RunState.FAILED, reason=FailureReason.TOO_SLOW)

    study = bench.run(executor=bench.executor(train=mostly_fail))
    assert study.search_ended.why == "the last 80 runs all failed"
    assert {run.trial for run in study.refit.runs} <= {0, 1}
    assert study.ended.succeeded


@pytest.mark.parametrize(
    ("cause", "strikes"), [(LossCause.UNSCHEDULABLE, 0), (LossCause.QUOTA, 0), (LossCause.IMAGE, 6)]
)
def test_waiting_for_room_takes_as_long_as_it_takes(cause: LossCause, strikes: int) -> None:
    spec = make_spec(iterations=1)
    spec = spec.model_copy(update={"execution": ExecutionSpec(max_retries=strikes)})
    bench, left = Bench(spec), dict.fromkeys(("trial-0000-epochs-0001-fold-0", "ensemble"), 6)
    executor = bench.executor()
    end = executor._end

    def not_yet(request: Asked) -> Report:
        if left.get(request.run_id):
            left[request.run_id] -= 1
            return Report(run_id=request.run_id, lost="no node took its pod", cause=cause)
        return end(request)

    executor._end = not_yet  # type: ignore[method-assign]
    executor.notices = list  # type: ignore[method-assign]
    study = bench.run(executor=executor)
    record = study.runs["trial-0000-epochs-0001-fold-0"]
    assert (record.losses, record.strikes, record.state) == (6, strikes, RunState.COMPLETE)
    assert (study.ensemble_losses, study.ensemble_strikes) == (6, strikes)
    assert study.ended.succeeded


def test_quiet_time_counts_although_the_controller_is_killed() -> None:
    bench = Bench(make_spec(iterations=1))

    class Dead(Exception): ...

    executor = bench.executor()

    def quiet(timeout_seconds: float) -> list[Report]:
        bench.clock.now += 25
        if bench.clock.now > 1500:
            raise Dead
        return []

    executor.poll = quiet  # type: ignore[method-assign]
    with pytest.raises(Dead):
        bench.run(executor=executor)
    events = Journal(bench.store).read()
    assert 3 <= sum(isinstance(event, TimePassed) for event in events) <= 8
    bench.clock.now += 10_000
    assert 430 <= Study.replay(events).elapsed_at(bench.clock.now) <= 500


def test_a_clock_that_is_set_back_takes_no_time_away() -> None:
    study = Study.replay(
        [
            StudyStarted(at=1000.0, spec=make_spec()),
            SessionStarted(at=1000.0, host="here", process=1),
            TimePassed(at=1600.0),
            TimePassed(at=100.0),
        ]
    )
    assert study.elapsed_seconds(200.0) == 600.0
    assert study.elapsed_at(5000.0) == 600.0


def test_after_a_clock_was_set_back_time_goes_on_from_what_was_spent() -> None:
    study = Study.replay(
        [
            StudyStarted(at=1000.0, spec=make_spec()),
            SessionStarted(at=1000.0, host="here", process=1),
            TimePassed(at=1600.0),
            ClockJumped(at=1100.0),
            TimePassed(at=1200.0),
        ]
    )
    assert [study.elapsed_at(at) for at in (900.0, 1050.0, 1100.0, 1200.0)] == [0.0, 50.0, 600.0, 700.0]
    assert study.elapsed_seconds(1250.0) == 750.0


class FullCluster(FakeExecutor):
    """Has no room for some trials: their runs wait for ever, or until they are cancelled."""

    def __init__(self, bench: Bench, homeless: Callable[[int], bool]) -> None:
        known = bench.executor()
        super().__init__(bench.store, bench.clock, train, known.choose, seconds=known.seconds, slots=known.slots)
        self.homeless, self.waiting, self.cancelled = homeless, set[str](), list[str]()

    def free_slots(self) -> int:
        return super().free_slots() - len(self.waiting)

    def submit(self, request: Asked) -> None:
        is_search = isinstance(request, TrainRequest) and request.run.purpose is Purpose.SEARCH
        if is_search and self.homeless(request.run.trial):
            self.waiting.add(request.run_id)
        else:
            super().submit(request)

    def cancel(self, run_id: str) -> None:
        self.waiting.remove(run_id)
        self.cancelled.append(run_id)


@pytest.mark.parametrize("homeless", [{5}, {5, 7}])
def test_what_finds_no_room_is_given_up_with_the_searchs_time(homeless: set[int]) -> None:
    bench = Bench(make_spec(parallel=2, time=600, refit_share=0.5))
    executor = FullCluster(bench, homeless.__contains__)
    study = bench.run(executor=executor)
    assert study.ended.succeeded
    assert study.search_ended.why == SPENT
    assert study.elapsed_at(study.search_ended.at) < 300 + OVERDUE_SECONDS + 10
    assert executor.cancelled == [f"trial-{trial:04}-epochs-0001-fold-0" for trial in sorted(homeless)]
    assert {study.runs[run_id].state for run_id in executor.cancelled} == {RunState.LOST}
    assert Study.replay(Journal(bench.store).read()).losses[LossCause.UNSCHEDULABLE] == len(homeless)


def test_without_any_result_a_search_waits_for_room_whatever_its_time() -> None:
    bench = Bench(make_spec(parallel=2, time=600, refit_share=0.5))
    executor = FullCluster(bench, lambda trial: True)
    study = bench.run(executor=executor, should_stop=lambda: bench.clock.now > 50_000)
    assert study.search_ended is None
    assert len(executor.waiting) == 2


def test_a_run_that_is_lost_after_the_searchs_time_is_not_tried_again() -> None:
    bench = Bench(make_spec(parallel=2, time=600, refit_share=0.5))

    def lose(request: Asked) -> str | None:
        return "no room" if isinstance(request, TrainRequest) and request.run.trial == 5 else None

    def seconds(request: Asked) -> float:
        return 1000.0 if lose(request) else float(isinstance(request, EnsembleRequest) or request.run.budget_epochs)

    executor = bench.executor(lose=lose, seconds=seconds)
    study = bench.run(executor=executor)
    assert study.ended.succeeded
    assert executor.trained.count("trial-0005-epochs-0001-fold-0") == 1


@pytest.mark.parametrize("slots", [1, 2, 4, 8])
def test_a_first_run_that_fails_leaves_another_one_to_give_the_answer(slots: int) -> None:
    """Each run takes more than its search has: only the one that must answer is shortened, all others are too slow."""
    bench = Bench(make_spec(parallel=slots, time=3600, refit_share=0.6, min_epochs=9))
    ends: list[str] = []

    def slow(request: TrainRequest) -> Result:
        if request.run.purpose is Purpose.REFIT:
            return train(request)
        is_first = not ends
        ends.append(request.run_id)
        if is_first:
            return failed(request, FailureReason.NON_FINITE_LOSS)
        return train(request) if request.deadline_seconds else failed(request, FailureReason.TOO_SLOW)

    def seconds(request: Asked) -> float:
        if isinstance(request, EnsembleRequest):
            return 1.0
        if request.deadline_seconds:
            return 90.0 if not ends and request.run.trial == 0 else request.deadline_seconds
        return 30.0

    study = bench.run(executor=bench.executor(train=slow, seconds=seconds))
    assert study.ended.succeeded
    assert study.elapsed_seconds(study.last_event_at) < 3600 * 1.2


def failed(request: TrainRequest, reason: FailureReason) -> Result:
    return Result(run_id=request.run_id, state=RunState.FAILED, reason=reason, message="x")


def test_runs_that_wait_for_fewer_slots_are_given_up_with_the_searchs_time() -> None:
    """Eight at work when the study is stopped; taken up with one slot, seven would wait far past the search's end."""
    bench = Bench(make_spec(parallel=8, time=3600, refit_share=0.6, min_epochs=9))

    def seconds(request: Asked) -> float:
        return 540.0 if isinstance(request, TrainRequest) and request.run.purpose is Purpose.SEARCH else 1.0

    stopped = bench.run(
        executor=bench.executor(seconds=seconds),
        should_stop=lambda: (
            len(Study.replay(Journal(bench.store).read()).open_runs) == 8
            and len(Study.replay(Journal(bench.store).read()).finished) >= 8
        ),
    )
    running = [record.run.id for record in stopped.open_runs]
    assert len(running) == 8
    bench.spec = bench.spec.model_copy(update={"execution": ExecutionSpec(max_parallel_runs=1)})
    executor = Queueing(bench, seconds)
    study = bench.run(executor=executor)
    assert study.ended.succeeded
    assert study.elapsed_at(study.search_ended.at) < 1440 + 2 * 540  # the next takes its slot with the end of one
    assert executor.cancelled
    assert {study.runs[run_id].state for run_id in executor.cancelled} == {RunState.LOST}


class Queueing(FakeExecutor):
    """Runs one at a time and lets all else wait, as the local executor does."""

    def __init__(self, bench: Bench, seconds: Callable[[Asked], float]) -> None:
        super().__init__(bench.store, bench.clock, train, bench.executor().choose, seconds=seconds, slots=1)
        self.waiting, self.cancelled = list[Asked](), list[str]()

    def free_slots(self) -> int:
        return max(0, super().free_slots() - len(self.waiting))

    def submit(self, request: Asked) -> None:
        if super().free_slots():
            super().submit(request)
        else:
            self.waiting.append(request)

    def poll(self, timeout_seconds: float) -> list[Report]:
        reports = super().poll(timeout_seconds)
        if self.waiting and super().free_slots():
            super().submit(self.waiting.pop(0))
        return reports

    def cancel(self, run_id: str) -> None:
        super().cancel(run_id)
        self.waiting = [request for request in self.waiting if request.run_id != run_id]
        self.cancelled.append(run_id)
