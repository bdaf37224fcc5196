"""Study: all that the journal says. Events go in, facts come out; `decisions` says what follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum

from automonai.domain.bracket import (
    Bracket,
    flat_bracket,
    halving_bracket,
    hyperband_bracket,
    rung_budgets,
)
from automonai.domain.events import (
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
from automonai.domain.run import LossCause, Purpose, Result, Run, RunState, Trial
from automonai.spec import SamplerName, StudySpec

ENSEMBLE_RUN_ID = "ensemble"


class Phase(StrEnum):
    """Where a study stands."""

    SEARCH = "search"
    REFIT = "refit"
    ENSEMBLE = "ensemble"
    OVER = "over"


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
    result: Result | None = None


@dataclass
class Study:
    """Everything that the journal says, and what follows from it."""

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
    ensemble: EnsembleResult | None = None
    ended: StudyEnded | None = None
    exhausted: bool = False
    """The sampler has nothing more to propose (a grid's end)."""
    software: dict[str, str] = field(default_factory=dict)
    """Package to version, as of the study's start."""
    cleaned: set[str] = field(default_factory=set)
    """Ended runs whose checkpoints are known to be deleted; deleting again would do no harm."""
    closed_brackets: set[int] = field(default_factory=set)
    """Brackets that `decisions` found to have ended; only spares looking at them again."""
    _sessions: list[tuple[float, float]] = field(default_factory=list)
    _disruptions: set[tuple[str, str]] = field(default_factory=set)
    """Run id and words of each."""
    _trials_of: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def replay(cls, events: Iterable[Event]) -> Study:
        """Return the study that the events tell.

        Raises:
            ValueError: If there is no event or the first is not StudyStarted.
        """
        iterator = iter(events)
        first = next(iterator, None)
        if not isinstance(first, StudyStarted):
            raise ValueError("a journal starts with study_started")
        study = cls(
            spec=first.spec,
            started_at=first.at,
            folds=first.folds or first.spec.split.folds,
            software=first.software,
        )
        for event in iterator:
            study.apply(event)
        return study

    def apply(self, event: Event) -> None:
        """Take one event into account."""
        if isinstance(event, SessionStarted):
            self._sessions.append((event.at, event.at))
        elif self._sessions:
            self._sessions[-1] = (self._sessions[-1][0], event.at)
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
        )

    def _apply_started(self, event: RunStarted) -> None:
        if event.run_id == ENSEMBLE_RUN_ID:
            self.ensemble_started_at = event.at
            return
        known = self.runs[event.run_id]
        self.queue_seconds.append(max(0.0, event.at - known.queued_at))
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
            self.ensemble_queued = self.ensemble_started_at = None
            return
        known = self.runs[event.run_id]
        if known.started_at is not None:
            self.lost_seconds += max(0.0, event.at - known.started_at)
        self.runs[event.run_id] = replace(known, state=RunState.LOST, started_at=None, losses=known.losses + 1)

    @property
    def phase(self) -> Phase:
        """Return where the study stands."""
        if self.ended:
            return Phase.OVER
        if self.refit is None:
            return Phase.SEARCH if self.search_ended is None else Phase.REFIT
        refits_open = any(not self.is_final(run.id) for run in self.refit.runs)
        return Phase.REFIT if refits_open else Phase.ENSEMBLE

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.ended is not None

    @property
    def rungs(self) -> tuple[int, ...]:
        """Return the ladder's budgets in epochs, lowest first."""
        budget = self.spec.budget
        if self.spec.search.sampler in (SamplerName.RANDOM, SamplerName.GRID):
            return (budget.max_epochs,)
        return rung_budgets(budget.min_epochs, budget.max_epochs, budget.eta)

    @property
    def open_runs(self) -> tuple[RunRecord, ...]:
        """Return the runs that an executor has, or should have."""
        open_states = (RunState.QUEUED, RunState.RUNNING)
        return tuple(record for record in self.runs.values() if record.state in open_states)

    def is_waiting(self, run_id: str) -> bool:
        """Whether a run, or the ensemble's work, was queued and no worker has taken it up yet."""
        if run_id == ENSEMBLE_RUN_ID:
            return self.ensemble_queued is not None and self.ensemble_started_at is None
        return self.runs[run_id].state is RunState.QUEUED

    @property
    def sessions(self) -> int:
        """Return how many controllers have taken the study up."""
        return len(self._sessions)

    @property
    def epochs_spent(self) -> int:
        """Return the epochs that the search's finished runs trained."""
        return sum(record.result.epochs for record in self.search_records() if record.result)

    @property
    def ranking(self) -> tuple[tuple[Trial, Result], ...]:
        """Return the trials with the result of their last completed rung, lowest loss first."""
        last: dict[int, Result] = {}
        for record in self.search_records():
            if record.state is RunState.COMPLETE and record.result and record.result.loss is not None:
                known = last.get(record.run.trial)
                if known is None or known.curve_epochs <= record.result.curve_epochs:
                    last[record.run.trial] = record.result
        order = sorted(last.items(), key=lambda item: (item[1].loss or 0.0, item[0]))
        return tuple((self.trials[number], result) for number, result in order)

    @property
    def incumbent(self) -> tuple[Trial, Result] | None:
        """Return the best trial of the search so far; None before the first result."""
        return self.ranking[0] if self.ranking else None

    def elapsed_seconds(self, now: float) -> float:
        """Return the wall-clock time that controllers have spent on the study, a running one's until `now`.

        Time between a controller's death and its successor's start does not count.
        """
        if not self._sessions:
            return 0.0
        *past, (start, last) = self._sessions
        return sum(end - begin for begin, end in past) + max(now, last) - start

    @property
    def last_event_at(self) -> float:
        """Return when the journal's last event happened."""
        return self._sessions[-1][1] if self._sessions else self.started_at

    def elapsed_at(self, at: float) -> float:
        """Return the time that had been spent at a past moment."""
        return sum(max(0.0, min(end, at) - begin) for begin, end in self._sessions if begin <= at)

    def seconds_per_epoch(self, trial: int | None = None) -> float | None:
        """Return a trial's measured time per epoch, or the median over all trials for one that has none."""
        costs: dict[int, float] = {}
        for record in self.runs.values():
            if record.result and record.result.seconds_per_epoch:
                costs[record.run.trial] = record.result.seconds_per_epoch
        if trial is not None and trial in costs:
            return costs[trial]
        ordered = sorted(costs.values())
        return ordered[len(ordered) // 2] if ordered else None

    def search_records(self) -> Iterator[RunRecord]:
        """Yield the records of the search's runs."""
        return (record for record in self.runs.values() if record.run.purpose is Purpose.SEARCH)

    def is_final(self, run_id: str) -> bool:
        """Whether a run has ended for good."""
        return run_id in self.runs and self.runs[run_id].state.is_final

    def has_disruption(self, run_id: str, why: str) -> bool:
        """Whether a disruption is known: a controller's successor is told again of pods that are still there."""
        return (run_id, why) in self._disruptions

    def loss_of(self, run_id: str) -> float:
        """Return what successive halving compares: a final run's loss, infinite if it FAILED."""
        result = self.runs[run_id].result
        return result.loss if result is not None and result.loss is not None else float("inf")

    def trials_of(self, bracket: int) -> tuple[int, ...]:
        """Return the numbers of a bracket's trials in the order in which they were proposed."""
        return tuple(self._trials_of.get(bracket, ()))

    @property
    def brackets_opened(self) -> int:
        """Return how many brackets have a trial."""
        return len(self._trials_of)

    def bracket(self, index: int) -> Bracket:
        """Return the bracket of that index, opened or not."""
        eta = self.spec.budget.eta
        match self.spec.search.sampler:
            case SamplerName.RANDOM | SamplerName.GRID:
                return flat_bracket(index, self.spec.budget.max_epochs, 1)
            case SamplerName.SUCCESSIVE_HALVING:
                return halving_bracket(index, self.rungs, eta)
            case _:
                return hyperband_bracket(index, self.rungs, eta)

    @property
    def ensemble_candidates(self) -> tuple[str, ...]:
        """Return the ids of the refitted networks; where none came through, the incumbent's own of the search."""
        refits = [run.id for run in self.refit.runs] if self.refit else []
        complete = tuple(run_id for run_id in refits if self.runs[run_id].state is RunState.COMPLETE)
        if complete or self.incumbent is None:
            return complete
        return (self.incumbent[1].run_id,)
