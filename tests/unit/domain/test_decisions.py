from __future__ import annotations

import pytest
from studies import Bench, make_spec, train

from automonai.domain.configuration import Configuration
from automonai.domain.decisions import HOPELESS, OVERTIME, most_seconds_per_epoch, needed_checkpoints
from automonai.domain.events import RunFinished, RunLost, RunQueued, SessionStarted, StudyStarted, TrialProposed
from automonai.domain.request import EnsembleRequest, TrainRequest, request_adapter
from automonai.domain.run import FailureReason, LossCause, Origin, Purpose, Result, Run, RunState, Trial
from automonai.domain.study import Study
from automonai.storage import keys

BEGAN = 1000.0
DONE = Run(trial=0, budget_epochs=1)
NEW = Run(trial=1, budget_epochs=9)


def queued(
    run: Run, *, after: float, resume_from: str | None = None, is_first: bool = False, **budget: object
) -> Study:
    """Return a study in which a run was queued, another one having come to its end before unless it is the first."""
    study = Study.replay(
        [StudyStarted(at=BEGAN, spec=make_spec(**budget)), SessionStarted(at=BEGAN, host="here", process=1)]
    )
    if not is_first:
        trial = Trial(number=DONE.trial, configuration=Configuration(), origin=Origin.STANDARD, bracket=0)
        study.apply(TrialProposed(at=BEGAN, trial=trial))
        study.apply(RunQueued(at=BEGAN, run=DONE, resume_from=None))
        result = Result(run_id=DONE.id, state=RunState.COMPLETE, loss=0.5)
        study.apply(RunFinished(at=BEGAN + 50, run=DONE, result=result))
    study.apply(RunQueued(at=BEGAN + after, run=run, resume_from=resume_from))
    return study


@pytest.mark.parametrize(
    ("resume_from", "epochs"), [(None, 9), (keys.checkpoint_manifest("trial-0000-epochs-0003-fold-0"), 6)]
)
def test_a_run_may_take_what_its_search_had_left_when_it_was_queued(resume_from: str | None, epochs: int) -> None:
    study = queued(NEW, after=400, resume_from=resume_from, time=1000, refit_share=0.5)
    assert most_seconds_per_epoch(study, NEW) == pytest.approx(OVERTIME * 100 / epochs)


@pytest.mark.parametrize(("after", "cap"), [(100, 20.0), (400, OVERTIME * 100 / 9)])
def test_the_specs_cap_holds_beside_it(after: float, cap: float) -> None:
    study = queued(NEW, after=after, time=1000, refit_share=0.5, max_seconds_per_epoch=20.0)
    assert most_seconds_per_epoch(study, NEW) == pytest.approx(cap)


@pytest.mark.parametrize("cap", [None, 20.0])
def test_without_a_time_budget_the_specs_cap_alone_holds(cap: float | None) -> None:
    study = queued(NEW, after=1e6, iterations=1, max_seconds_per_epoch=cap)
    assert most_seconds_per_epoch(study, NEW) == cap


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_time_budget_holds_although_the_first_run_would_take_all_of_it(parallel: int) -> None:
    spec = make_spec(time=3600, refit_share=0.6, min_epochs=200, max_epochs=200, parallel=parallel)
    bench, asked = Bench(spec), list[TrainRequest]()

    def in_time(request: TrainRequest | EnsembleRequest) -> float:
        left = request.seconds_left(bench.clock.now)
        return min(200 * 90.0, 18_000.0 if left is None else left)

    def remember(request: TrainRequest) -> Result:
        asked.append(request)
        return train(request)

    study = bench.run(executor=bench.executor(seconds=in_time, train=remember))
    first = next(request for request in asked if request.run.trial == 0)
    assert first.deadline_seconds == pytest.approx(1440, abs=5)
    assert study.ended.succeeded


def test_a_check_that_takes_the_searchs_time_leaves_the_first_run_a_minute() -> None:
    bench = Bench(make_spec(time=1200, refit_share=0.6))
    began = bench.clock.now
    bench.clock.now += 600
    study = bench.run(began=began)
    assert study.ended.succeeded
    assert len(list(study.search_records())) == 1


def test_a_run_that_was_queued_under_a_larger_budget_is_held_to_no_negative_cap() -> None:
    study = queued(NEW, after=900, time=1000, refit_share=0.5)
    assert most_seconds_per_epoch(study, NEW) is None


def test_before_any_run_has_come_to_its_end_one_may_take_what_it_takes() -> None:
    study = queued(NEW, after=400, time=1000, refit_share=0.5, is_first=True)
    beside = Run(trial=2, budget_epochs=9)
    study.apply(RunQueued(at=BEGAN + 400, run=beside, resume_from=None))
    assert most_seconds_per_epoch(study, NEW) is None
    assert most_seconds_per_epoch(study, beside) == pytest.approx(OVERTIME * 100 / 9)


def test_a_slow_configuration_of_the_first_wave_does_not_spend_the_others_time() -> None:
    bench = Bench(make_spec(parallel=4, time=1000, refit_share=0.6, max_epochs=27))

    def seconds(request: TrainRequest | EnsembleRequest) -> float:
        if not isinstance(request, TrainRequest):
            return 1.0
        each = 5000.0 if request.run.trial == 2 else 10.0
        cap = request.max_seconds_per_epoch
        return 5.0 if cap is not None and each > cap else each * request.run.budget_epochs

    def answer(request: TrainRequest) -> Result:
        cap = request.max_seconds_per_epoch
        if request.run.trial == 2 and cap is not None and cap < 5000:
            return Result(run_id=request.run_id, state=RunState.FAILED, reason=FailureReason.TOO_SLOW)
        return train(request)

    study = bench.run(bench.executor(train=answer, seconds=seconds))
    assert study.ended is not None
    assert study.ended.succeeded
    assert study.search_ended is not None
    assert study.elapsed_at(study.search_ended.at) < 600  # of 400, where each epoch of the slow one takes 5,000


def test_checkpoints_of_a_bracket_that_may_have_ended_are_kept_until_the_sampler_was_asked() -> None:
    study = Study.replay(
        [
            StudyStarted(at=BEGAN, spec=make_spec(iterations=2, max_epochs=9)),
            SessionStarted(at=BEGAN, host="here", process=1),
        ]
    )
    size = study.bracket(0).sizes[0]
    for number in range(size - 1):  # nobody knows whether there is one more
        trial = Trial(number=number, configuration=Configuration(), origin=Origin.RANDOM, bracket=0)
        run = Run(trial=number, budget_epochs=study.bracket(0).budgets_epochs[0])
        study.apply(TrialProposed(at=BEGAN, trial=trial))
        study.apply(RunQueued(at=BEGAN, run=run, resume_from=None))
        result = Result(run_id=run.id, state=RunState.COMPLETE, loss=0.5 + number)
        study.apply(RunFinished(at=BEGAN + 1, run=run, result=result))
    assert needed_checkpoints(study) == set(study.runs)


@pytest.mark.parametrize("reason", [FailureReason.NON_FINITE_LOSS, FailureReason.TOO_SLOW])
def test_a_trial_that_failed_when_it_trained_for_longer_is_behind_those_that_did_not(reason: FailureReason) -> None:
    def answer(request: TrainRequest) -> Result:
        if request.run.trial != 3:
            return train(request)
        if request.run.budget_epochs > 1:
            return Result(run_id=request.run_id, state=RunState.FAILED, reason=reason)
        return train(request).model_copy(update={"loss": 0.01})

    bench = Bench(make_spec(iterations=1, max_epochs=9))
    study = bench.run(bench.executor(train=answer))
    assert Run(trial=3, budget_epochs=3).id in study.runs
    is_own_fault = reason is FailureReason.NON_FINITE_LOSS
    assert (study.ranking[-1 if is_own_fault else 0][0].number == 3) is True
    assert study.refit is not None
    assert (3 in {run.trial for run in study.refit.runs}) is not is_own_fault


def test_where_no_refit_came_through_the_best_checkpoint_that_is_there_is_the_answer() -> None:
    def answer(request: TrainRequest) -> Result:
        if request.run.purpose is Purpose.REFIT:
            return Result(run_id=request.run_id, state=RunState.FAILED, reason=FailureReason.NON_FINITE_LOSS)
        result = train(request)
        worse = 0.4 if request.run.budget_epochs > 1 else 0.3 + 0.01 * request.run.trial
        return result.model_copy(update={"loss": worse})

    bench = Bench(make_spec(iterations=1, max_epochs=9))
    study = bench.run(bench.executor(train=answer))
    assert study.ensemble is not None
    (member,) = study.ensemble.members
    assert member.run_id not in study.cleaned


def test_a_run_that_was_lost_is_held_to_the_specs_cap_alone() -> None:
    study = queued(NEW, after=400, time=1000, refit_share=0.5)
    study.apply(RunLost(at=BEGAN + 450, run_id=NEW.id, cause=LossCause.CRASH, why="its worker left"))
    study.apply(RunQueued(at=BEGAN + 490, run=NEW, resume_from=None))
    assert most_seconds_per_epoch(study, NEW) is None


def test_a_refit_has_no_cap() -> None:
    refit = Run(trial=0, budget_epochs=40, purpose=Purpose.REFIT)
    study = queued(refit, after=600, time=1000, refit_share=0.5, max_seconds_per_epoch=20.0)
    assert most_seconds_per_epoch(study, refit) is None


def test_every_request_of_a_study_has_its_cap() -> None:
    bench = Bench(make_spec(time=400, refit_share=0.5))
    study = bench.run()
    requests = [request_adapter.validate_json(bench.store.get(keys.request(run_id))) for run_id in study.runs]
    assert {request.run.purpose for request in requests if isinstance(request, TrainRequest)} == set(Purpose)
    for request in requests[1:]:
        assert isinstance(request, TrainRequest)
        assert request.max_seconds_per_epoch == most_seconds_per_epoch(study, request.run)


def test_a_search_in_which_everything_fails_ends_although_it_costs_no_epochs() -> None:
    bench = Bench(make_spec(epochs=1000))
    failed = Result(run_id="any", state=RunState.FAILED, reason=FailureReason.TOO_SLOW)
    study = bench.run(executor=bench.executor(train=lambda _: failed))
    assert study.search_ended is not None
    assert study.search_ended.why == f"the first {HOPELESS} runs all failed"
    assert study.ended is not None
    assert not study.ended.succeeded
