"""Study: the search as a state machine. Events go in, the next action comes out; nothing else happens here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from automonai.domain.bracket import (
    Bracket,
    flat_bracket,
    halving_bracket,
    hyperband_bracket,
    promoted,
    rung_budgets,
)
from automonai.domain.events import (
    EnsembleFinished,
    EnsembleQueued,
    Event,
    RefitChosen,
    RunFinished,
    RunLost,
    RunQueued,
    SearchEnded,
    SessionStarted,
    SpecChanged,
    StudyEnded,
    StudyStarted,
    TrialProposed,
)
from automonai.domain.request import EnsembleResult
from automonai.domain.run import Purpose, Result, Run, RunState, Trial
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
    finished_at: float | None = None
    losses: int = 0
    """How often the infrastructure lost it."""
    result: Result | None = None


@dataclass(frozen=True)
class Propose:
    """Ask the sampler for trial number `trial`."""

    trial: int
    bracket: int
    budget_epochs: int


@dataclass(frozen=True)
class Queue:
    """Queue this run."""

    run: Run
    resume_from: str | None


@dataclass(frozen=True)
class EndSearch:
    """Stop searching."""

    why: str


@dataclass(frozen=True)
class ChooseRefit:
    """Choose what is trained to the end."""


@dataclass(frozen=True)
class ChooseEnsemble:
    """Choose the ensemble from these finished runs, the best configuration's first."""

    candidates: tuple[str, ...]


@dataclass(frozen=True)
class EndStudy:
    """End the study."""

    succeeded: bool
    why: str


@dataclass(frozen=True)
class Wait:
    """Nothing can start before something ends."""


Action = Propose | Queue | EndSearch | ChooseRefit | ChooseEnsemble | EndStudy | Wait


@dataclass
class Study:
    """Everything that the journal says, and what follows from it."""

    spec: StudySpec
    started_at: float
    trials: dict[int, Trial] = field(default_factory=dict)
    runs: dict[str, RunRecord] = field(default_factory=dict)
    """By run id, in the order in which they were queued."""
    finished: list[str] = field(default_factory=list)
    """Ids of final runs in the order in which they ended."""
    notes: list[tuple[float, str]] = field(default_factory=list)
    """What fell back or was lost, with its time."""
    search_ended: SearchEnded | None = None
    refit: RefitChosen | None = None
    ensemble_queued: EnsembleQueued | None = None
    ensemble_losses: int = 0
    ensemble: EnsembleResult | None = None
    ended: StudyEnded | None = None
    exhausted: bool = False
    software: dict[str, str] = field(default_factory=dict)
    """Package to version, as of the study's start."""
    """The sampler has nothing more to propose (a grid's end)."""
    cleaned: set[str] = field(default_factory=set)
    """Runs whose checkpoints were deleted by this process; deleting again would do no harm."""
    _sessions: list[tuple[float, float]] = field(default_factory=list)

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
        study = cls(spec=first.spec, started_at=first.at, software=first.software)
        for event in iterator:
            study.apply(event)
        return study

    # ---------------------------------------------------------------- events in

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
                if event.note:
                    self.notes.append((event.at, f"trial {event.trial.number}: {event.note}"))
            case RunQueued():
                self._apply_queued(event)
            case RunFinished():
                self._apply_finished(event)
            case RunLost():
                self._apply_lost(event)
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

    def _apply_queued(self, event: RunQueued) -> None:
        known = self.runs.get(event.run.id)
        self.runs[event.run.id] = RunRecord(
            run=event.run,
            state=RunState.QUEUED,
            queued_at=event.at,
            resume_from=event.resume_from,
            losses=known.losses if known else 0,
        )

    def _apply_finished(self, event: RunFinished) -> None:
        known = self.runs.get(event.run.id)
        self.finished.append(event.run.id)
        self.runs[event.run.id] = RunRecord(
            run=event.run,
            state=event.result.state,
            queued_at=known.queued_at if known else event.at,
            resume_from=known.resume_from if known else None,
            finished_at=event.at,
            losses=known.losses if known else 0,
            result=event.result,
        )

    def _apply_lost(self, event: RunLost) -> None:
        self.notes.append((event.at, f"{event.run_id} was lost: {event.why}"))
        if event.run_id == ENSEMBLE_RUN_ID:
            self.ensemble_losses += 1
            self.ensemble_queued = None
            return
        known = self.runs[event.run_id]
        self.runs[event.run_id] = RunRecord(
            run=known.run,
            state=RunState.LOST,
            queued_at=known.queued_at,
            resume_from=known.resume_from,
            losses=known.losses + 1,
        )

    # ---------------------------------------------------------------- facts

    @property
    def phase(self) -> Phase:
        """Return where the study stands."""
        if self.ended:
            return Phase.OVER
        if self.refit is None:
            return Phase.SEARCH if self.search_ended is None else Phase.REFIT
        refits_open = any(not self._is_final(run.id) for run in self.refit.runs)
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
        return tuple(record for record in self.runs.values() if record.state is RunState.QUEUED)

    @property
    def epochs_spent(self) -> int:
        """Return the epochs that the search's finished runs trained."""
        return sum(record.result.epochs for record in self._search_records() if record.result)

    @property
    def ranking(self) -> tuple[tuple[Trial, Result], ...]:
        """Return the trials with the result of their last completed rung, lowest loss first."""
        last: dict[int, Result] = {}
        for record in self._search_records():
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

    def _search_records(self) -> Iterator[RunRecord]:
        return (record for record in self.runs.values() if record.run.purpose is Purpose.SEARCH)

    def _is_final(self, run_id: str) -> bool:
        return run_id in self.runs and self.runs[run_id].state.is_final

    # ---------------------------------------------------------------- actions out

    def next_action(self, now: float) -> Action:
        """Return what to do next, given that a slot is free; the same events and time give the same answer."""
        for record in self.runs.values():
            if record.state is RunState.LOST:
                return Queue(record.run, record.resume_from)
        match self.phase:
            case Phase.SEARCH:
                return self._next_in_search(now)
            case Phase.REFIT:
                return self._next_in_refit()
            case _:
                return self._next_in_ensemble()

    def _next_in_search(self, now: float) -> Action:
        refused = ""
        for action in self._candidates():
            why = self._why_not(action, now)
            if not why:
                return action
            refused = refused or why
        if self.open_runs:
            return Wait()
        return EndSearch(refused or self._natural_end())

    def _candidates(self) -> Iterator[Propose | Queue]:
        """Yield what could start, the oldest bracket first; a new bracket last."""
        for index in range(self._brackets_opened):
            yield from self._work_in(self.bracket(index))
        limit = self.spec.budget.iterations
        if not self.exhausted and (limit is None or self._brackets_opened < limit):
            bracket = self.bracket(self._brackets_opened)
            yield Propose(len(self.trials), bracket.index, bracket.budgets_epochs[0])

    def _work_in(self, bracket: Bracket) -> Iterator[Propose | Queue]:
        trials = [trial.number for trial in self.trials.values() if trial.bracket == bracket.index]
        if len(trials) < bracket.sizes[0] and not self.exhausted:
            unqueued = [n for n in trials if self._run(n, bracket.budgets_epochs[0]).id not in self.runs]
            if not unqueued:
                yield Propose(len(self.trials), bracket.index, bracket.budgets_epochs[0])
        survivors: tuple[int, ...] = tuple(trials)
        for rung, budget in enumerate(bracket.budgets_epochs):
            runs = [self._run(trial, budget) for trial in survivors]
            yield from (
                Queue(run, self._resume_from(run, bracket)) for run in runs if run.id not in self.runs
            )
            is_full = rung > 0 or len(trials) >= bracket.sizes[0] or self.exhausted
            if not is_full or not all(self._is_final(run.id) for run in runs):
                return
            if rung + 1 < len(bracket.sizes):
                losses = {run.trial: self.loss_of(run) for run in runs}
                survivors = promoted(losses, bracket.sizes[rung + 1])

    def _why_not(self, action: Propose | Queue, now: float) -> str:
        """Return why the budget does not allow an action; empty if it does."""
        epochs = self._epochs_of(action)
        limit = self.spec.budget.epochs
        if limit is not None and self._epochs_committed + epochs > limit:
            return f"the budget of {limit} epochs is spent"
        if self.spec.budget.time is None:
            return ""
        left = self.search_seconds - self.elapsed_seconds(now)
        trial = action.run.trial if isinstance(action, Queue) else None
        cost = epochs * (self.seconds_per_epoch(trial) or 0.0)
        if isinstance(action, Propose) and self._opens_bracket(action) and self.trials:
            cost = self._bracket_seconds(action.bracket) / 2
        return "the search's share of the time is spent" if cost > left or left <= 0 else ""

    def _natural_end(self) -> str:
        if self.exhausted:
            return "every configuration of the space was tried"
        return f"{self.spec.budget.iterations} iterations are done"

    def _next_in_refit(self) -> Action:
        if self.refit is None:
            return ChooseRefit()
        for run in self.refit.runs:
            if run.id not in self.runs:
                return Queue(run, None)
        return Wait()

    def _next_in_ensemble(self) -> Action:
        if self.ensemble is not None:
            return EndStudy(succeeded=True, why="the ensemble is chosen")
        if self.ensemble_queued is not None:
            return Wait()
        candidates = self.ensemble_candidates
        if not candidates:
            return EndStudy(succeeded=False, why="no configuration could be trained")
        if self.ensemble_losses > self.spec.execution.max_retries:
            return EndStudy(succeeded=False, why="the ensemble step was lost too often")
        return ChooseEnsemble(candidates)

    @property
    def ensemble_candidates(self) -> tuple[str, ...]:
        """Return the ids of the refitted networks; where none came through, the incumbent's own of the search."""
        refits = [run.id for run in self.refit.runs] if self.refit else []
        complete = tuple(run_id for run_id in refits if self.runs[run_id].state is RunState.COMPLETE)
        if complete or self.incumbent is None:
            return complete
        return (self.incumbent[1].run_id,)

    # ---------------------------------------------------------------- brackets and budgets

    def bracket(self, index: int) -> Bracket:
        """Return the bracket of that index."""
        eta = self.spec.budget.eta
        match self.spec.search.sampler:
            case SamplerName.RANDOM | SamplerName.GRID:
                return flat_bracket(index, self.spec.budget.max_epochs, 1)
            case SamplerName.SUCCESSIVE_HALVING:
                return halving_bracket(index, self.rungs, eta)
            case _:
                return hyperband_bracket(index, self.rungs, eta)

    def loss_of(self, run: Run) -> float:
        """Return what successive halving compares: the run's loss, infinite if it FAILED."""
        result = self.runs[run.id].result
        return result.loss if result is not None and result.loss is not None else float("inf")

    @property
    def search_seconds(self) -> float:
        """Return the seconds of the time budget that the search may use; infinite without one."""
        time = self.spec.budget.time
        return float("inf") if time is None else time * (1 - self.spec.budget.refit_share)

    @property
    def _brackets_opened(self) -> int:
        return max((trial.bracket for trial in self.trials.values()), default=-1) + 1

    def _opens_bracket(self, action: Propose) -> bool:
        return action.bracket >= self._brackets_opened

    def _bracket_seconds(self, index: int) -> float:
        bracket = self.bracket(index)
        is_continued = self.spec.search.promotion == "continue"
        epochs = bracket.epochs_continued if is_continued else bracket.epochs_restarted
        return epochs * (self.seconds_per_epoch() or 0.0) / self.spec.execution.max_parallel_runs

    def _epochs_of(self, action: Propose | Queue) -> int:
        if isinstance(action, Propose) or action.resume_from is None:
            return action.budget_epochs if isinstance(action, Propose) else action.run.budget_epochs
        return action.run.budget_epochs - self._rung_below(action.run)

    @property
    def _epochs_committed(self) -> int:
        planned = (
            record.run.budget_epochs - (self._rung_below(record.run) if record.resume_from else 0)
            for record in self._search_records()
            if not record.state.is_final
        )
        return self.epochs_spent + sum(planned)

    def _rung_below(self, run: Run) -> int:
        return max((budget for budget in self.rungs if budget < run.budget_epochs), default=0)

    def _run(self, trial: int, budget_epochs: int) -> Run:
        return Run(trial=trial, budget_epochs=budget_epochs)

    def _resume_from(self, run: Run, bracket: Bracket) -> str | None:
        lower = [budget for budget in bracket.budgets_epochs if budget < run.budget_epochs]
        if not lower or self.spec.search.promotion == "restart":
            return None
        record = self.runs[self._run(run.trial, lower[-1]).id]
        return record.result.checkpoint if record.result else None

    def needed_checkpoints(self) -> set[str]:
        """Return the ids of the runs whose checkpoints may still be used; all others may go."""
        if self.ensemble is not None:
            return {member.run_id for member in self.ensemble.members}
        needed = {record.run.id for record in self.runs.values() if record.run.purpose is Purpose.REFIT}
        needed |= {result.run_id for _, result in self.ranking[:3]}
        needed |= {record.run.id for record in self.open_runs}
        needed |= {_run_of(record.resume_from) for record in self.open_runs if record.resume_from}
        if self.search_ended is None:
            for index in range(self._brackets_opened):
                needed |= self._promotable(self.bracket(index))
        return needed

    def _promotable(self, bracket: Bracket) -> set[str]:
        """Return the finished runs of a bracket that may still be promoted."""
        survivors = [trial.number for trial in self.trials.values() if trial.bracket == bracket.index]
        if len(survivors) < bracket.sizes[0]:
            return {self._run(trial, bracket.budgets_epochs[0]).id for trial in survivors}
        for rung, budget in enumerate(bracket.budgets_epochs[:-1]):
            runs = [self._run(trial, budget) for trial in survivors]
            if not all(self._is_final(run.id) for run in runs):
                return {run.id for run in runs}
            survivors = list(
                promoted({run.trial: self.loss_of(run) for run in runs}, bracket.sizes[rung + 1])
            )
            waiting = {
                self._run(trial, budget).id
                for trial in survivors
                if not self._is_final(self._run(trial, bracket.budgets_epochs[rung + 1]).id)
            }
            if waiting:
                return waiting
        return set()


def _run_of(manifest_key: str) -> str:
    """Return the run id inside a checkpoint manifest's key."""
    return manifest_key.split("/")[1]
