"""Study: all that the journal says, and what it comes to. `decisions` says what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from automonai.domain.bracket import (
    Bracket,
    flat_bracket,
    halving_bracket,
    hyperband_bracket,
    rung_budgets,
)
from automonai.domain.facts import ENSEMBLE_RUN_ID, Facts, RunRecord
from automonai.domain.run import FailureReason, Purpose, Result, RunState, Trial
from automonai.spec import SamplerName

OWN_FAULTS = (
    FailureReason.BAD_CONFIGURATION,
    FailureReason.DOES_NOT_FIT,
    FailureReason.OUT_OF_MEMORY,
    FailureReason.NON_FINITE_LOSS,
)
"""By which a configuration's own training fails, wherever it is tried."""


class Phase(StrEnum):
    """Where a study stands."""

    SEARCH = "search"
    REFIT = "refit"
    ENSEMBLE = "ensemble"
    OVER = "over"


class Study(Facts):
    """A journal's facts, and the questions asked of them; nothing here changes them."""

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
    def failures_in_a_row(self) -> int:
        """Return how many runs have FAILED since the last one that completed."""
        count = 0
        for run_id in reversed(self.finished):
            if self.runs[run_id].state is not RunState.FAILED:
                break
            count += 1
        return count

    @property
    def lost_in_a_row(self) -> list[Result]:
        """Return the results of the runs that were lost for good in this session since one had an answer of its own."""
        lost: list[Result] = []
        for run_id in reversed(self.finished[self.finished_before :]):
            record = self.runs[run_id]
            if record.result is None or not record.is_lost_for_good:
                break
            lost.insert(0, record.result)
        return lost

    @property
    def lost_refits(self) -> list[Result]:
        """Return the results of the refits that were lost for good."""
        return [record.result for record in self.refit_records() if record.result and record.is_lost_for_good]

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
    def epochs_spent(self) -> int:
        """Return the epochs that the search's finished runs trained."""
        return sum(record.result.epochs for record in self.search_records() if record.result)

    @property
    def ranking(self) -> tuple[tuple[Trial, Result], ...]:
        """Return the trials with the result of their last completed rung, lowest loss first.

        A trial that failed in a longer training comes behind those that did not, whatever it had reached before.
        """
        last: dict[int, Result] = {}
        for record in self.search_records():
            if record.state is RunState.COMPLETE and record.result and record.result.loss is not None:
                known = last.get(record.run.trial)
                if known is None or known.curve_epochs <= record.result.curve_epochs:
                    last[record.run.trial] = record.result
        failed = self.failed_trials
        order = sorted(last.items(), key=lambda item: (item[0] in failed, item[1].loss or 0.0, item[0]))
        return tuple((self.trials[number], result) for number, result in order)

    @property
    def failed_trials(self) -> frozenset[int]:
        """Return the trials of which a training of the search failed by its configuration's own fault."""
        return frozenset(r.run.trial for r in self.search_records() if r.result and r.result.reason in OWN_FAULTS)

    @property
    def incumbent(self) -> tuple[Trial, Result] | None:
        """Return the best trial of the search so far; None before the first result."""
        return self.ranking[0] if self.ranking else None

    def elapsed_seconds(self, now: float) -> float:
        """Return the wall-clock time that controllers have spent on the study, a running one's until `now`.

        Time between a controller's death and its successor's start does not count.
        """
        if not self._stretches:
            return 0.0
        *past, (start, last) = self._stretches
        return sum(end - begin for begin, end in past) + max(now, last) - start

    @property
    def session_began(self) -> float:
        """Return when the present session began, or its clock jumped."""
        return self._stretches[-1][0] if self._stretches else self.started_at

    @property
    def last_event_at(self) -> float:
        """Return when the journal's last event happened."""
        return self._stretches[-1][1] if self._stretches else self.started_at

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

    def refit_records(self) -> Iterator[RunRecord]:
        """Yield the records of the refits."""
        return (record for record in self.runs.values() if record.run.purpose is Purpose.REFIT)

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
        """Return the ids of the refitted networks; where none came through, the best of the search's that is there."""
        refits = [run.id for run in self.refit.runs] if self.refit else []
        complete = tuple(run_id for run_id in refits if self.runs[run_id].state is RunState.COMPLETE)
        return complete or self.checkpoints_of_search[:1]

    @property
    def checkpoints_of_search(self) -> tuple[str, ...]:
        """Return the runs of the ranking of which the checkpoints are there, best first."""
        return tuple(result.run_id for _, result in self.ranking if result.run_id not in self.cleaned)
