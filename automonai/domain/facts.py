"""Facts: what the journal says. Each event is applied once; nothing else changes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Self

from automonai.domain.events import (
    ClockJumped,
    EnsembleFinished,
    EnsembleQueued,
    Event,
    RefitChosen,
    RunDisrupted,
    RunFinished,
    RunLost,
    RunQueued,
    RunStarted,
    SearchEnded,
    SessionStarted,
    SpecChanged,
    StudyEnded,
    StudyStarted,
    TrialProposed,
)
from automonai.domain.request import EnsembleResult
from automonai.domain.run import FailureReason, LossCause, Purpose, Result, Run, RunState, Trial
from automonai.spec import StudySpec

ENSEMBLE_RUN_ID = "ensemble"


@dataclass(frozen=True)
class RunRecord:
    """A run and its life so far."""

    run: Run
    state: RunState
    queued_at: float
    resume_from: str | None = None
    started_at: float | None = None
    """When a worker took it up, for the first time since it was queued; None before that."""
    finished_at: float | None = None
    losses: int = 0
    """How often the infrastructure lost it."""
    strikes: int = 0
    """The losses that count against `execution.max_retries`: not those for want of room before it started."""
    is_to_answer: bool = False
    """Whether it was queued as the one run of the search that must end with an answer, there being none yet."""
    result: Result | None = None

    @property
    def is_lost_for_good(self) -> bool:
        """Whether the infrastructure lost it more often than allowed; the next session may try it again."""
        return self.result is not None and self.result.reason is FailureReason.LOST


@dataclass
class Facts:
    """What the events of a journal come to; `Study` answers questions on it."""

    spec: StudySpec
    started_at: float
    folds: int
    """Of the division of the cases, wherever it comes from."""
    trials: dict[int, Trial] = field(default_factory=dict)
    runs: dict[str, RunRecord] = field(default_factory=dict)
    """By run id, in the order in which they were queued."""
    finished: list[str] = field(default_factory=list)
    """Ids of final runs in the order in which they ended."""
    notes: list[tuple[float, str]] = field(default_factory=list)
    """What fell back or was lost, with its time."""
    losses: Counter[LossCause] = field(default_factory=Counter)
    """How often each cause lost a run or the ensemble's work."""
    disruptions: Counter[LossCause] = field(default_factory=Counter)
    """How often each cause took a worker away, whether or not the run was lost by it in the end."""
    queue_seconds: list[float] = field(default_factory=list)
    """How long each start of a run was waited for, those of runs that were lost later included."""
    lost_seconds: float = 0.0
    """Time that workers spent on runs until they were lost."""
    search_ended: SearchEnded | None = None
    refit: RefitChosen | None = None
    ensemble_queued: EnsembleQueued | None = None
    ensemble_started_at: float | None = None
    """When a worker took the ensemble's work up; None before that."""
    ensemble_losses: int = 0
    ensemble_strikes: int = 0
    """As a run's, since the present session began: the next one tries anew."""
    ensemble_lost: RunLost | None = None
    """The last loss."""
    ensemble: EnsembleResult | None = None
    ended: StudyEnded | None = None
    exhausted: bool = False
    """The sampler has nothing more to propose (a grid's end)."""
    software: dict[str, str] = field(default_factory=dict)
    """Package to version, as of the study's start."""
    cleaned: set[str] = field(default_factory=set)
    """Ended runs whose checkpoints are known to be deleted; deleting again would do no harm."""
    revived: Counter[str] = field(default_factory=Counter)
    """Rung to how many runs that had been lost for good were taken up again."""
    taken_up: set[str] = field(default_factory=set)
    """Runs that a worker is known to have taken up in this session: another one's may wait for a slot again."""
    closed_brackets: set[int] = field(default_factory=set)
    """Brackets that `decisions` found to have ended; only spares looking at them again."""
    resumes: int = 0
    """How often a controller has taken up what another one left unfinished."""
    finished_before: int = 0
    """How many of the finished runs are of earlier sessions."""
    _stretches: list[tuple[float, float]] = field(default_factory=list)
    """Begin and last event of each time in which a controller was at work, its machine awake."""
    _disruptions: set[tuple[str, str]] = field(default_factory=set)
    """Run id and words of each."""
    _trials_of: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def replay(cls, events: Iterable[Event]) -> Self:
        """Return what the events tell.

        Raises:
            ValueError: If there is no event or the first is not StudyStarted.
        """
        iterator = iter(events)
        first = next(iterator, None)
        if not isinstance(first, StudyStarted):
            raise ValueError("a journal starts with study_started")
        facts = cls(
            spec=first.spec,
            started_at=first.at,
            folds=first.folds or first.spec.split.folds,
            software=first.software,
        )
        for event in iterator:
            facts.apply(event)
        return facts

    def apply(self, event: Event) -> None:
        """Take one event into account."""
        if isinstance(event, SessionStarted):
            self._begin_session(event.at)
        elif isinstance(event, ClockJumped):
            self._begin_stretch(event.at)
        elif self._stretches:
            began, last = self._stretches[-1]
            self._stretches[-1] = (began, max(last, event.at))  # a clock may be set back
        match event:
            case SpecChanged():
                self.spec = event.spec
            case TrialProposed():
                self.trials[event.trial.number] = event.trial
                self._trials_of.setdefault(event.trial.bracket, []).append(event.trial.number)
                if event.note:
                    self.notes.append((event.at, f"trial {event.trial.number}: {event.note}"))
            case RunQueued() | RunStarted() | RunDisrupted() | RunFinished() | RunLost():
                self._apply_to_run(event)
            case _:
                self._apply_step(event)

    def elapsed_at(self, at: float) -> float:
        """Return the time that had been spent at a past moment; where a clock was set back, at the later of two."""
        for index, (begin, end) in reversed(list(enumerate(self._stretches))):
            if begin <= at:
                return sum(e - b for b, e in self._stretches[:index]) + min(end, at) - begin
        return 0.0

    def _begin_session(self, at: float) -> None:
        is_first_after_search = self.search_ended is not None and self.refit is None
        self.resumes += bool(self._stretches) and not is_first_after_search
        self.ensemble_strikes = 0
        self._revive_lost()
        self.finished_before = len(self.finished)
        self.taken_up.clear()
        self._begin_stretch(at)

    def _begin_stretch(self, at: float) -> None:
        """Go on where the last stretch ended: a night between them is no time that runs took, nor a clock set back."""
        pause = at - self._stretches[-1][1] if self._stretches else 0.0
        self._stretches.append((at, at))
        if self.ensemble_started_at is not None:
            self.ensemble_started_at += pause
        for run_id, record in self.runs.items():
            if record.state is RunState.RUNNING and record.started_at is not None:
                self.runs[run_id] = replace(record, started_at=record.started_at + pause)

    def _revive_lost(self) -> None:
        """Take up again what was lost for good, which may be mended by now.

        That is every refit, as nothing can take its place, and in the search the last runs, on whose end nothing was
        built yet.
        """
        lost = {run_id for run_id in self.finished if self.runs[run_id].is_lost_for_good}
        last = set(takewhile(lost.__contains__, reversed(self.finished))) if self.search_ended is None else set()
        if self.ensemble_queued is None:
            last |= {run_id for run_id in lost if self.runs[run_id].run.purpose is Purpose.REFIT}
        self.finished = [run_id for run_id in self.finished if run_id not in last]
        for run_id in last:
            record = self.runs[run_id]
            self.revived[record.run.rung] += 1
            self.runs[run_id] = replace(
                record, state=RunState.LOST, strikes=0, result=None, started_at=None, finished_at=None
            )

    def _apply_step(self, event: Event) -> None:
        match event:
            case SearchEnded():
                self.search_ended = event
            case RefitChosen():
                self.refit = event
            case EnsembleQueued():
                self.ensemble_queued = event
            case EnsembleFinished():
                self.ensemble = event.result
            case StudyEnded():
                self.ended = event

    def _apply_to_run(self, event: RunQueued | RunStarted | RunDisrupted | RunFinished | RunLost) -> None:
        match event:
            case RunQueued():
                self._apply_queued(event)
            case RunStarted():
                self._apply_started(event)
            case RunDisrupted():
                self.disruptions[event.cause] += 1
                self._disruptions.add((event.run_id, event.why))
                self.notes.append((event.at, f"{event.run_id} was disrupted: {event.why}"))
            case RunFinished():
                self._apply_finished(event)
            case RunLost():
                self._apply_lost(event)

    def _apply_queued(self, event: RunQueued) -> None:
        known = self.runs.get(event.run.id)
        self.runs[event.run.id] = RunRecord(
            run=event.run,
            state=RunState.QUEUED,
            queued_at=event.at,
            resume_from=event.resume_from,
            losses=known.losses if known else 0,
            strikes=known.strikes if known else 0,
            is_to_answer=event.run.purpose is Purpose.SEARCH and not self.has_answer and not self.awaits_answer,
        )

    @property
    def has_answer(self) -> bool:
        """Whether a run of the search has completed, with a loss to compare."""
        searched = (record for record in self.runs.values() if record.run.purpose is Purpose.SEARCH)
        results = (record.result for record in searched if record.state is RunState.COMPLETE)
        return any(result is not None and result.loss is not None for result in results)

    @property
    def awaits_answer(self) -> bool:
        """Whether a run that must give one is on its way."""
        on_its_way = (RunState.QUEUED, RunState.RUNNING)
        return any(record.is_to_answer and record.state in on_its_way for record in self.runs.values())

    def _apply_started(self, event: RunStarted) -> None:
        if event.run_id == ENSEMBLE_RUN_ID:
            self.ensemble_started_at = event.at
            return
        known = self.runs[event.run_id]
        self.queue_seconds.append(max(0.0, self.elapsed_at(event.at) - self.elapsed_at(known.queued_at)))
        self.runs[event.run_id] = replace(known, state=RunState.RUNNING, started_at=event.at)

    def _apply_finished(self, event: RunFinished) -> None:
        self.finished.append(event.run.id)
        refused = RunRecord(run=event.run, state=event.result.state, queued_at=event.at)
        known = self.runs.get(event.run.id, refused)
        self.runs[event.run.id] = replace(
            known, run=event.run, state=event.result.state, finished_at=event.at, result=event.result
        )

    def _apply_lost(self, event: RunLost) -> None:
        self.losses[event.cause] += 1
        self.notes.append((event.at, f"{event.run_id} was lost: {event.why}"))
        if event.run_id == ENSEMBLE_RUN_ID:
            self.ensemble_losses += 1
            self.ensemble_strikes += _is_strike(event.cause, self.ensemble_started_at)
            self.ensemble_queued = self.ensemble_started_at = None
            self.ensemble_lost = event
            return
        known = self.runs[event.run_id]
        strikes = known.strikes + _is_strike(event.cause, known.started_at)
        if known.started_at is not None:
            self.lost_seconds += max(0.0, event.at - known.started_at)
        self.runs[event.run_id] = replace(
            known,
            state=RunState.LOST,
            started_at=None,
            losses=known.losses + 1,
            strikes=strikes,
        )


def _is_strike(cause: LossCause, started_at: float | None) -> bool:
    """Whether a loss counts against `execution.max_retries`: waiting for room does not."""
    return started_at is not None or not cause.is_want_of_room
