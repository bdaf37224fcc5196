from __future__ import annotations

import pytest
import studies

from automonai.domain.configuration import Configuration
from automonai.domain.events import (
    EnsembleQueued,
    Event,
    RunDisrupted,
    RunFinished,
    RunLost,
    RunQueued,
    RunStarted,
    SessionStarted,
    StudyStarted,
    TrialProposed,
)
from automonai.domain.facts import ENSEMBLE_RUN_ID, RunRecord
from automonai.domain.run import LossCause, Origin, Result, Run, RunState, Trial
from automonai.domain.study import Study

RUN = Run(trial=0, budget_epochs=1)
TRIAL = Trial(number=0, configuration=Configuration(), origin=Origin.STANDARD, bracket=0)
QUEUED = RunQueued(at=10.0, run=RUN)
STARTED = RunStarted(at=30.0, run_id=RUN.id)
DISRUPTED = RunDisrupted(at=40.0, run_id=RUN.id, cause=LossCause.NODE_LOST, why="pod a was taken away")
LOST = RunLost(at=50.0, run_id=RUN.id, cause=LossCause.CRASH, why="exit code 3")
FINISHED = RunFinished(at=60.0, run=RUN, result=Result(run_id=RUN.id, state=RunState.COMPLETE, loss=0.5))


def told(*events: Event) -> Study:
    begin = (StudyStarted(at=0.0, spec=studies.make_spec()), SessionStarted(at=0.0, host="a", process=1))
    return Study.replay([*begin, TrialProposed(at=0.0, trial=TRIAL), *events])


def record_of(study: Study) -> RunRecord:
    return study.runs[RUN.id]


@pytest.mark.parametrize(
    ("events", "state", "started_at", "is_open", "is_waiting"),
    [
        ((QUEUED,), RunState.QUEUED, None, True, True),
        ((QUEUED, STARTED), RunState.RUNNING, 30.0, True, False),
        ((QUEUED, STARTED, DISRUPTED), RunState.RUNNING, 30.0, True, False),
        ((QUEUED, STARTED, LOST), RunState.LOST, None, False, False),
        ((QUEUED, STARTED, LOST, QUEUED), RunState.QUEUED, None, True, True),
        ((QUEUED, STARTED, FINISHED), RunState.COMPLETE, 30.0, False, False),
        ((QUEUED, FINISHED), RunState.COMPLETE, None, False, False),
    ],
)
def test_a_runs_life_is_what_its_events_say(
    events: tuple[Event, ...], state: RunState, started_at: float | None, is_open: bool, is_waiting: bool
) -> None:
    study = told(*events)
    assert record_of(study).state is state
    assert record_of(study).started_at == started_at
    assert bool(study.open_runs) is is_open
    assert study.is_waiting(RUN.id) is is_waiting


def test_a_night_between_two_sessions_is_no_time_in_the_queue() -> None:
    morning = SessionStarted(at=50_000.0, host="b", process=2)
    study = told(QUEUED, morning, RunStarted(at=50_005.0, run_id=RUN.id))
    assert study.queue_seconds == [5.0]


def test_losses_and_disruptions_are_counted_by_cause_and_noted() -> None:
    ensemble_lost = RunLost(at=70.0, run_id=ENSEMBLE_RUN_ID, cause=LossCause.QUOTA, why="no room")
    study = told(QUEUED, STARTED, DISRUPTED, LOST, QUEUED, STARTED, LOST, ensemble_lost)
    assert study.losses == {LossCause.CRASH: 2, LossCause.QUOTA: 1}
    assert study.disruptions == {LossCause.NODE_LOST: 1}
    assert record_of(study).losses == 2
    assert [text.removeprefix(f"{RUN.id} ") for _, text in study.notes] == [
        "was disrupted: pod a was taken away",
        "was lost: exit code 3",
        "was lost: exit code 3",
        "ensemble was lost: no room",
    ]


def test_a_disruption_is_known_by_its_run_and_its_words() -> None:
    study = told(QUEUED, STARTED, DISRUPTED)
    assert study.has_disruption(RUN.id, DISRUPTED.why)
    assert not study.has_disruption(RUN.id, "pod b was taken away")
    assert not study.has_disruption("another-run", DISRUPTED.why)


def test_the_ensemble_waits_until_it_is_taken_up_and_anew_after_a_loss() -> None:
    queued = EnsembleQueued(at=70.0, candidates=(RUN.id,))
    started = RunStarted(at=75.0, run_id=ENSEMBLE_RUN_ID)
    lost = RunLost(at=80.0, run_id=ENSEMBLE_RUN_ID, cause=LossCause.DISRUPTION, why="evicted")
    assert not told().is_waiting(ENSEMBLE_RUN_ID)
    assert told(queued).is_waiting(ENSEMBLE_RUN_ID)
    running = told(queued, started)
    assert not running.is_waiting(ENSEMBLE_RUN_ID)
    assert running.ensemble_started_at == 75.0
    assert told(queued, started, lost, queued).is_waiting(ENSEMBLE_RUN_ID)


def test_time_in_the_queue_and_time_that_was_lost_outlive_a_runs_next_attempt() -> None:
    study = told(QUEUED, STARTED, LOST, QUEUED.model_copy(update={"at": 55.0}), STARTED.model_copy(update={"at": 58.0}))
    assert study.queue_seconds == [20.0, 3.0]
    assert study.lost_seconds == 20.0


def test_a_night_between_two_sessions_is_no_time_that_a_run_took() -> None:
    morning = SessionStarted(at=1000.0, host="a", process=2)
    running = told(QUEUED, STARTED, morning)
    assert record_of(running).started_at == 1000.0
    running.apply(LOST.model_copy(update={"at": 1020.0}))
    assert running.lost_seconds == 20.0
