"""Who is promoted, and when: by what the whole rung decides, as soon as that is certain."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import Bench, SeededSampler, make_spec, seconds_of, train

from automonai.domain.bracket import promoted
from automonai.domain.configuration import Configuration
from automonai.domain.decisions import Progress, bracket_progress
from automonai.domain.events import RunFinished, RunQueued, SessionStarted, StudyStarted, TrialProposed
from automonai.domain.request import EnsembleRequest, TrainRequest
from automonai.domain.run import FailureReason, Origin, Purpose, Result, Run, RunState, Trial
from automonai.domain.study import Study


def new_study(trials: int, *, max_epochs: int) -> Study:
    spec = make_spec(iterations=1, max_epochs=max_epochs)
    study = Study.replay([StudyStarted(at=0.0, spec=spec), SessionStarted(at=0.0, host="here", process=1)])
    for number in range(trials):
        propose(study, number)
    return study


def propose(study: Study, number: int) -> None:
    trial = Trial(number=number, configuration=Configuration(), origin=Origin.RANDOM, bracket=0)
    study.apply(TrialProposed(at=0.0, trial=trial))


def start(study: Study, run: Run) -> None:
    study.apply(RunQueued(at=0.0, run=run, resume_from=None))


def end(study: Study, run: Run, loss: float) -> None:
    result = Result(run_id=run.id, state=RunState.COMPLETE, loss=loss)
    if loss == float("inf"):
        result = Result(run_id=run.id, state=RunState.FAILED, reason=FailureReason.NON_FINITE_LOSS)
    study.apply(RunFinished(at=1.0, run=run, result=result))


def progress_of(study: Study) -> Progress:
    return bracket_progress(study, study.bracket(0))


@pytest.mark.parametrize(("ended", "expected"), [(6, []), (7, [1]), (8, [1, 2]), (9, [1, 2, 3])])
def test_of_nine_runs_of_which_three_are_promoted_the_best_is_after_the_seventh(
    ended: int, expected: list[int]
) -> None:
    study = new_study(9, max_epochs=9)
    for number, loss in enumerate((0.9, 0.1, 0.2, 0.3, 0.8, 0.7, 0.6, 0.5, 0.4)):
        start(study, Run(trial=number, budget_epochs=1))
        if number < ended:
            end(study, Run(trial=number, budget_epochs=1), loss)
    assert [run.trial for run in progress_of(study).promoted_runs] == expected


def test_a_place_that_no_trial_has_taken_yet_may_still_be_the_best() -> None:
    study = new_study(7, max_epochs=9)
    for number in range(7):
        start(study, Run(trial=number, budget_epochs=1))
        end(study, Run(trial=number, budget_epochs=1), 0.1 + number / 10)
    progress = progress_of(study)
    assert (progress.missing, [run.trial for run in progress.promoted_runs]) == (2, [0])
    assert progress.undecided == {Run(trial=number, budget_epochs=1).id for number in range(3)}


def test_where_most_have_failed_no_more_are_waited_for_than_can_still_come() -> None:
    study = new_study(27, max_epochs=27)
    for number in range(27):
        start(study, Run(trial=number, budget_epochs=1))
        if number < 26:
            end(study, Run(trial=number, budget_epochs=1), number / 10 if number < 2 else float("inf"))
    for run in progress_of(study).promoted_runs:
        start(study, run)
        end(study, run, run.trial / 10)
    assert progress_of(study).promoted_runs == (Run(trial=0, budget_epochs=9), Run(trial=1, budget_epochs=9))


def test_who_has_gone_on_keeps_a_checkpoint_although_a_lost_run_is_taken_up_again() -> None:
    study = new_study(9, max_epochs=9)
    for number in range(9):
        start(study, Run(trial=number, budget_epochs=1))
        if number < 8:
            end(study, Run(trial=number, budget_epochs=1), number / 10)
    lost = Run(trial=8, budget_epochs=1)
    result = Result(run_id=lost.id, state=RunState.FAILED, reason=FailureReason.LOST)
    study.apply(RunFinished(at=1.0, run=lost, result=result))
    for run in progress_of(study).promoted_runs:
        start(study, run)
    study.apply(SessionStarted(at=2.0, host="here", process=2))
    assert study.runs[lost.id].state is RunState.LOST
    third = Run(trial=2, budget_epochs=3)
    end(study, third, 0.05)
    assert third.id in progress_of(study).undecided
    start(study, lost)
    end(study, lost, 0.9)
    for number in (0, 1):
        end(study, Run(trial=number, budget_epochs=3), 0.5)
    assert progress_of(study).promoted_runs == (Run(trial=2, budget_epochs=9),)


@given(
    seed=st.integers(0, 2**32),
    max_epochs=st.sampled_from([3, 9, 27]),
    failing=st.sampled_from([0.0, 0.2, 0.9]),
    values=st.sampled_from([3, 1000]),
)
def test_in_whatever_order_runs_end_those_are_promoted_that_whole_rungs_decide(
    seed: int, max_epochs: int, failing: float, values: int
) -> None:
    draw, study, losses = random.Random(seed), new_study(0, max_epochs=max_epochs), dict[Run, float]()
    bracket = study.bracket(0)
    going, kept = list[Run](), set[str]()
    while not (progress := progress_of(study)).is_over:
        kept = {run_id for run_id in kept if run_id in progress.undecided}
        if progress.missing and draw.random() < 0.5:
            propose(study, len(study.trials))
        for run in (*progress.new_runs, *progress.promoted_runs):
            if run.budget_epochs > bracket.budgets_epochs[0]:
                below = max(budget for budget in bracket.budgets_epochs if budget < run.budget_epochs)
                assert Run(trial=run.trial, budget_epochs=below).id in kept, "its checkpoint was deleted"
            start(study, run)
            going.append(run)
        assert going or progress.missing or progress.new_runs, "nothing can start although the bracket is not over"
        if going:
            run = going.pop(draw.randrange(len(going)))
            losses[run] = float("inf") if draw.random() < failing else draw.randrange(values) / values
            end(study, run, losses[run])
            kept.add(run.id)
    trials = study.trials_of(0)
    for rung, budget in enumerate(bracket.budgets_epochs):
        assert {run.trial for run in losses if run.budget_epochs == budget} == set(trials)
        if rung + 1 < len(bracket.sizes):
            of_rung = {trial: losses[Run(trial=trial, budget_epochs=budget)] for trial in trials}
            trials = promoted(of_rung, bracket.sizes[rung + 1])


def test_nobody_waits_for_a_rungs_slowest_run() -> None:
    def seconds(request: TrainRequest | EnsembleRequest) -> float:
        is_slow = isinstance(request, TrainRequest) and request.run == Run(trial=8, budget_epochs=1)
        return 1000.0 if is_slow else seconds_of(request)

    bench = Bench(make_spec(iterations=1, parallel=9), sampler=SeededSampler())
    study = bench.run(bench.executor(seconds=seconds, train=train))
    slow = study.runs[Run(trial=8, budget_epochs=1).id]
    assert slow.finished_at is not None
    above = [
        record.queued_at
        for record in study.runs.values()
        if record.run.budget_epochs == 3 and record.run.purpose is Purpose.SEARCH
    ]
    assert sum(queued_at < slow.finished_at for queued_at in above) == 2
