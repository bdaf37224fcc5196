"""The controller: ask, write down, submit, poll, write down. The product in one page; no torch."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from automonai.domain.decisions import (
    ChooseEnsemble,
    ChooseRefit,
    EndSearch,
    EndStudy,
    GiveUp,
    Propose,
    Queue,
    Wait,
    most_seconds_per_epoch,
    needed_checkpoints,
    next_action,
    overdue_runs,
    search_deadline_seconds,
)
from automonai.domain.events import (
    ClockJumped,
    EnsembleFinished,
    EnsembleQueued,
    Event,
    RunDisrupted,
    RunFinished,
    RunLost,
    RunQueued,
    RunStarted,
    SearchEnded,
    SessionStarted,
    StudyEnded,
    TimePassed,
    TrialProposed,
)
from automonai.domain.facts import ENSEMBLE_RUN_ID
from automonai.domain.plan import make_plan
from automonai.domain.refit import choose_refit, refit_deadline_seconds
from automonai.domain.request import EnsembleRequest, EnsembleResult, Member, StudyData, TrainRequest
from automonai.domain.run import FailureReason, LossCause, Purpose, Result, Run, RunState, Trial
from automonai.domain.seeds import derive_seed
from automonai.domain.study import Study
from automonai.errors import LostTooOftenError, StopRequestedError
from automonai.execution.executor import Executor, Notice, Report
from automonai.search.sampler import History, Observation, Sampler
from automonai.storage import keys
from automonai.storage.journal import Journal
from automonai.storage.store import Store, read_record

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
QUIET_SECONDS = 60.0
"""After so long without an event the passing of time is one: what a killed controller spent is known but for that."""


class Watch(Protocol):
    """Somebody who looks on: told of every event, and now and then of the time."""

    def on_event(self, event: Event, study: Study) -> None:
        """Take note of an event that was just written."""
        ...

    def on_tick(self, study: Study, now: float) -> None:
        """Take note that time has passed."""
        ...


class Unwatched:
    """Nobody looks on."""

    def on_event(self, event: Event, study: Study) -> None: ...

    def on_tick(self, study: Study, now: float) -> None: ...


class Watches:
    """Several who look on, told one after the other."""

    def __init__(self, *watches: Watch) -> None:
        """Remember whom to tell."""
        self._watches = watches

    def on_event(self, event: Event, study: Study) -> None:
        for watch in self._watches:
            watch.on_event(event, study)

    def on_tick(self, study: Study, now: float) -> None:
        for watch in self._watches:
            watch.on_tick(study, now)


@dataclass
class Controller:
    """One study's parts; `run_study` makes them work together."""

    study: Study
    data: StudyData
    store: Store
    journal: Journal
    sampler: Sampler
    executor: Executor
    memory_bytes: int | None = None
    """What one run may use on each of its devices; None: unknown."""
    devices_per_run: int = 1
    watch: Watch = field(default_factory=Unwatched)
    clock: Callable[[], float] = time.time
    steady_clock: Callable[[], float] | None = None
    """One that nobody sets and that stands still while the machine sleeps: by it both are noticed. None: there is none.
    """
    began: float | None = None
    """When this session began: the check of the dataset before it is part of the budget's time. None: now."""
    should_stop: Callable[[], bool] = lambda: False
    search_only: bool = False
    """Whether the refit is another controller's; where there is nothing to refit, this one ends the study."""
    may_write: Callable[[], bool] = lambda: True
    """Whether nobody else can be this study's controller now; while that is not sure, nothing is done."""
    ahead: float | None = None
    """By how much the clock was ahead of the steady one when the session began, later when they were compared last."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left for this controller to do."""
        study = self.study
        is_searched = self.search_only and study.search_ended is not None and study.has_answer
        return study.is_over or is_searched


def run_study(controller: Controller) -> Study:
    """Take a study from wherever its journal says it is to its end, or to its search's; return it.

    Every decision is written down before it is acted on, so a kill at any moment loses none: on the next call the runs
    that were open are submitted again, and an executor that still has them adopts them.

    Raises:
        LostTooOftenError: If the infrastructure lost so much that it has to be mended first; the study can go on.
    """
    study = controller.study
    if controller.is_done:
        return study
    began = controller.clock() if controller.began is None else controller.began
    _record(controller, SessionStarted(at=began, host=socket.gethostname(), process=os.getpid()))
    for record in study.open_runs:
        controller.executor.submit(_train_request(controller, record.run, record.resume_from))
    if study.ensemble_queued is not None and study.ensemble is None:
        controller.executor.submit(_ensemble_request(controller, study.ensemble_queued.candidates))
    study.cleaned |= set(study.finished) - _runs_with_checkpoints(controller.store)
    _delete_unneeded_checkpoints(controller)  # what a kill kept the last session from
    while not controller.is_done and not controller.should_stop():
        if controller.may_write():
            _turn(controller)
            _note_quiet_time(controller)
        else:
            time.sleep(POLL_SECONDS)
        controller.watch.on_tick(study, controller.clock())
    return study


def _now(controller: Controller) -> float:
    """Return the time for what is about to be written down or decided; if the clock jumped before, that is first."""
    now, before = controller.clock(), controller.ahead
    if controller.steady_clock is None:
        return now
    controller.ahead = now - controller.steady_clock()
    if before is not None and abs(controller.ahead - before) >= QUIET_SECONDS:
        _record(controller, ClockJumped(at=now))
    return now


def _note_quiet_time(controller: Controller) -> None:
    """Write down that time has passed if nothing else told so; no news for those who look on."""
    if controller.study.is_over:
        return
    now = _now(controller)
    if now - controller.study.last_event_at >= QUIET_SECONDS:
        _write_down(controller, TimePassed(at=now))


def _turn(controller: Controller) -> None:
    """Take what has come, do the next thing; where there is none, wait for what comes."""
    _take_reports(controller, controller.executor.poll(0.0))
    _give_up_overdue(controller)
    if controller.executor.free_slots() == 0 or not _act(controller):
        _take_reports(controller, controller.executor.poll(POLL_SECONDS))


def _give_up_overdue(controller: Controller) -> None:
    """Let go what still waits for a worker when the search's time is over: the refit would wait for it."""
    now = _now(controller)
    for run_id in overdue_runs(controller.study, now):
        controller.executor.cancel(run_id)
        why = "no worker took it up before the search's time was spent"
        _record(controller, RunLost(at=now, run_id=run_id, cause=LossCause.UNSCHEDULABLE, why=why))


def _act(controller: Controller) -> bool:
    """Do the next thing; False if there is nothing to do but wait."""
    now = _now(controller)
    match next_action(controller.study, now):
        case Propose() as action:
            _propose(controller, action)
        case Queue(run, resume_from):
            _record(controller, RunQueued(at=now, run=run, resume_from=resume_from))
            controller.executor.submit(_train_request(controller, run, resume_from))
        case EndSearch(why):
            _record(controller, SearchEnded(at=now, why=why))
        case ChooseRefit():
            tests = len(controller.data.split.test)
            _record(controller, choose_refit(controller.study, now=now, test_cases=tests))
        case ChooseEnsemble(candidates):
            _record(controller, EnsembleQueued(at=now, candidates=candidates))
            controller.executor.submit(_ensemble_request(controller, candidates))
        case GiveUp(why):
            raise LostTooOftenError(
                f"{why}; nothing that was finished is lost: start the study again once that is mended"
            )
        case EndStudy(succeeded, why):
            _record(controller, StudyEnded(at=now, succeeded=succeeded, why=why))
        case Wait():
            return False
    return True


def _propose(controller: Controller, action: Propose) -> None:
    """Ask the sampler; a configuration whose plan cannot fit is final at once."""
    proposal = controller.sampler.propose(
        history_of(controller.study), index=action.trial, budget_epochs=action.budget_epochs
    )
    if proposal is None:
        controller.study.exhausted = True
        return
    trial = Trial(
        number=action.trial,
        configuration=proposal.configuration,
        origin=proposal.origin,
        bracket=action.bracket,
        model_budget_epochs=proposal.model_budget_epochs,
    )
    _record(controller, TrialProposed(at=_now(controller), trial=trial, note=proposal.note))
    run = Run(trial=trial.number, budget_epochs=action.budget_epochs)
    refusal = _refusal(controller, trial, run)
    if refusal is not None:
        _record(controller, RunFinished(at=_now(controller), run=run, result=refusal))


def _refusal(controller: Controller, trial: Trial, run: Run) -> Result | None:
    """Return the result of a run that needs more memory than there is, without having run it."""
    limit, data = controller.memory_bytes, controller.data
    if limit is None:
        return None
    plan = make_plan(trial.configuration, dataset=data.dataset, fingerprint=data.fingerprint, training=data.training)
    needed = plan.step_bytes(devices=controller.devices_per_run)
    if needed <= limit:
        return None
    message = (
        f"a training step needs {needed / 2**30:.1f} GiB, a run has {limit / 2**30:.1f} GiB"
        f" ({plan.parameters / 1e6:.1f} million weights, patches of {plan.patch_voxels} voxels,"
        f" batches of {plan.batch_size})"
    )
    return Result(
        run_id=run.id,
        state=RunState.FAILED,
        reason=FailureReason.DOES_NOT_FIT,
        message=message,
        planned_memory_bytes=needed,
        parameters=plan.parameters,
    )


def _take_notices(controller: Controller, notices: list[Notice]) -> None:
    """Write down what the journal does not know yet; a predecessor may have been told of the same."""
    for notice in notices:
        now, run_id = _now(controller), notice.run_id
        if notice.cause is not None and not controller.study.has_disruption(run_id, notice.why):
            _record(controller, RunDisrupted(at=now, run_id=run_id, cause=notice.cause, why=notice.why))
        elif notice.cause is None:
            controller.study.taken_up.add(run_id)
            if controller.study.is_waiting(run_id):
                _record(controller, RunStarted(at=now, run_id=run_id))


def _take_reports(controller: Controller, reports: list[Report]) -> None:
    _take_notices(controller, controller.executor.notices())
    for report in reports:
        now = _now(controller)
        if report.lost is not None and report.cause is not None:
            _record(controller, RunLost(at=now, run_id=report.run_id, cause=report.cause, why=report.lost))
            _give_up_if_lost_too_often(controller, report)
        elif report.run_id == ENSEMBLE_RUN_ID:
            result = read_record(controller.store, keys.ENSEMBLE, EnsembleResult)
            _record(controller, EnsembleFinished(at=now, result=result))
        else:
            result_ = read_record(controller.store, keys.result(report.run_id), Result)
            run = controller.study.runs[report.run_id].run
            _record(controller, RunFinished(at=now, run=run, result=result_))
    if reports:
        _delete_unneeded_checkpoints(controller)


def _give_up_if_lost_too_often(controller: Controller, report: Report) -> None:
    record = controller.study.runs.get(report.run_id)
    if record is None or record.strikes <= controller.study.spec.execution.max_retries:
        return
    message = f"lost {record.losses} times, the last time: {report.lost}"
    result = Result(run_id=report.run_id, state=RunState.FAILED, reason=FailureReason.LOST, message=message)
    _record(controller, RunFinished(at=_now(controller), run=record.run, result=result))


def history_of(study: Study) -> History:
    """Return what a sampler may know: search runs that ended by their own doing, and what is still open."""
    observations = []
    for run_id in study.finished:
        record = study.runs[run_id]
        if record.run.purpose is Purpose.SEARCH and record.result is not None:
            if record.result.reason is FailureReason.LOST:
                continue
            observations.append(
                Observation(
                    trial=record.run.trial,
                    configuration=study.trials[record.run.trial].configuration,
                    budget_epochs=record.run.budget_epochs,
                    loss=study.loss_of(run_id),
                )
            )
    seen = {observation.trial for observation in observations}
    pending = tuple(trial.configuration for number, trial in study.trials.items() if number not in seen)
    return History(observations=tuple(observations), pending=pending)


def _train_request(controller: Controller, run: Run, resume_from: str | None) -> TrainRequest:
    study, now = controller.study, _now(controller)
    is_refit = run.purpose is Purpose.REFIT
    if is_refit:
        tests = len(controller.data.split.test)
        deadline = refit_deadline_seconds(study, run, now=now, test_cases=tests)
    else:
        deadline = search_deadline_seconds(study, run, now=now)
    return TrainRequest(
        run=run,
        configuration=study.trials[run.trial].configuration,
        seed=derive_seed(study.spec.search.seed, run.purpose, run.trial, run.fold),
        objective=study.spec.search.objective,
        resume_from=resume_from,
        decay=is_refit,
        deadline_seconds=deadline,
        asked_at=now,
        max_seconds_per_epoch=most_seconds_per_epoch(study, run),
        memory_bytes=controller.memory_bytes,
        attempt=study.runs[run.id].losses,
        strikes=study.runs[run.id].strikes,
    )


def _ensemble_request(controller: Controller, candidates: tuple[str, ...]) -> EnsembleRequest:
    study, now, members = controller.study, _now(controller), []
    for run_id in candidates:
        record = study.runs[run_id]
        members.append(
            Member(
                run_id=run_id,
                trial=record.run.trial,
                fold=record.run.fold,
                checkpoint=keys.checkpoint_manifest(run_id),
            )
        )
    time_budget = study.spec.budget.time
    left = None
    if time_budget is not None:
        left = max(60.0, time_budget - study.elapsed_seconds(now))
    return EnsembleRequest(
        candidates=tuple(members),
        deadline_seconds=left,
        asked_at=now,
        attempt=study.ensemble_losses,
        strikes=study.ensemble_strikes,
    )


def _delete_unneeded_checkpoints(controller: Controller) -> None:
    """Delete what no later step can use; a checkpoint whose deletion is cut short has no manifest any more."""
    study = controller.study
    finished = [run_id for run_id in study.finished if run_id not in controller.study.cleaned]
    needed = needed_checkpoints(study) if finished else set()
    for run_id in finished:
        if run_id in needed:
            continue
        manifest = keys.checkpoint_manifest(run_id)
        controller.store.delete(manifest)
        for key in list(controller.store.list(manifest.rpartition("/")[0] + "/")):
            controller.store.delete(key)
        study.cleaned.add(run_id)


def _runs_with_checkpoints(store: Store) -> set[str]:
    """Return whose checkpoints the store has, in a few requests however many runs there were."""
    return {run_id for key in store.list(keys.RUNS) if (run_id := keys.run_of_checkpoint(key))}


def _record(controller: Controller, event: Event) -> None:
    """Write an event down, then let it count and tell those who look on."""
    _write_down(controller, event)
    controller.watch.on_event(event, controller.study)
    logger.debug("recorded %s", event.kind)


def _write_down(controller: Controller, event: Event) -> None:
    """Write an event down, then let it count; one that comes while another controller may write has to wait."""
    while not controller.may_write():
        if controller.should_stop():
            raise StopRequestedError(f"this controller may not write any more; {event.kind} is its successor's to see")
        time.sleep(POLL_SECONDS)
    controller.journal.append(event)
    controller.study.apply(event)
