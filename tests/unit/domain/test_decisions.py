from __future__ import annotations

import pytest
from studies import Bench, make_spec

from automonai.domain.configuration import Configuration
from automonai.domain.decisions import HOPELESS, OVERTIME, most_seconds_per_epoch
from automonai.domain.events import RunFinished, RunLost, RunQueued, SessionStarted, StudyStarted, TrialProposed
from automonai.domain.request import TrainRequest, request_adapter
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


def test_before_any_run_has_come_to_its_end_the_specs_cap_alone_holds() -> None:
    study = queued(NEW, after=400, time=1000, refit_share=0.5, is_first=True)
    assert most_seconds_per_epoch(study, NEW) is None


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
