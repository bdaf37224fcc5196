"""What follows from a study's facts: the next action, and what is still needed. Pure; nothing is done here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

from automonai.domain.bracket import Bracket, promoted
from automonai.domain.facts import RunRecord
from automonai.domain.refit import LEAST_SECONDS
from automonai.domain.run import Purpose, Run, RunState
from automonai.domain.study import Phase, Study
from automonai.spec import SamplerName

HOPELESS = 50
"""So many failed runs in a row end the search: they cost no epochs, so a budget would not. A grid has an end of its
own."""
HOPELESS_LATER = 500
"""The same once a run has completed: of a space in which little fits the memory many are refused in a row."""
LOST_RUNS = 5
"""So many runs in a row that the infrastructure lost for good are no fault of theirs."""
OVERDUE_SECONDS = 60.0
"""A run that no worker has taken up so long after the search's time was spent may wait for a GPU for ever."""
ANSWER_SHARE = 0.9
"""Of a time budget: so much may go into a search that has no result yet, whatever is kept for the refit."""
SPENT = "the search's share of the time is spent"
OVERTIME = 1.25
"""A run's first steps may foretell so much more time than its search has left: they are few, and noisy."""


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
class GiveUp:
    """Leave the study as it is: the infrastructure has to be mended first."""

    why: str


@dataclass(frozen=True)
class Wait:
    """Nothing can start before something ends."""


Action = Propose | Queue | EndSearch | ChooseRefit | ChooseEnsemble | EndStudy | GiveUp | Wait


@dataclass(frozen=True)
class Progress:
    """Where one bracket stands."""

    missing: int
    """Places of the first rung that no trial has taken yet."""
    new_runs: tuple[Run, ...]
    """New trials' runs that may be queued."""
    promoted_runs: tuple[Run, ...]
    """Promoted trials' next runs that may be queued, the lowest rung's first."""
    undecided: frozenset[str]
    """Ids of ended runs whose trial may still be promoted, or has been and its next run has not ended."""
    is_over: bool


def bracket_progress(study: Study, bracket: Bracket) -> Progress:
    """Return where a bracket stands.

    A trial is promoted as soon as none of its rung's runs that are still to end can take its place: who is promoted is
    what the whole rung decides, but nobody waits for its slowest run. Of nine runs of which three are promoted, the
    best is after the seventh, the best two are after the eighth.
    """
    trials = study.trials_of(bracket.index)
    missing = to_come = 0 if study.exhausted else max(0, bracket.sizes[0] - len(trials))
    startable, undecided, is_over = list[tuple[Run, ...]](), set[str](), True
    for rung, budget in enumerate(bracket.budgets_epochs):
        runs = {trial: Run(trial=trial, budget_epochs=budget) for trial in trials}
        startable.append(tuple(run for run in runs.values() if run.id not in study.runs))
        losses = {trial: study.loss_of(run.id) for trial, run in runs.items() if study.is_final(run.id)}
        to_end = len(runs) - len(losses) + to_come
        is_over = is_over and to_end == 0
        if rung + 1 == len(bracket.sizes):
            break
        places, above = bracket.sizes[rung + 1], bracket.budgets_epochs[rung + 1]
        best = promoted(losses, places)
        certain = best[: max(0, places - to_end)]
        # A lost run that is taken up again makes uncertain what was decided: who has gone on stays.
        gone_on = tuple(trial for trial in losses if trial not in certain and _run_id(trial, above) in study.runs)
        trials = (*certain, *gone_on)
        fit = sum(isfinite(loss) for loss in losses.values()) + to_end
        to_come = max(0, min(places, fit) - len(trials))
        undecided |= {runs[trial].id for trial in best if not study.is_final(_run_id(trial, above))}
    return Progress(
        missing=missing,
        new_runs=startable[0],
        promoted_runs=tuple(run for runs_ in startable[1:] for run in runs_),
        undecided=frozenset(undecided),
        is_over=is_over,
    )


def next_action(study: Study, now: float) -> Action:
    """Return what to do next, given that a slot is free; the same events and time give the same answer."""
    if len(lost := study.lost_in_a_row) >= LOST_RUNS:
        if any(record.state is RunState.RUNNING for record in study.open_runs):
            return Wait()  # one bad node or GPU may have lost them all, and an answer from another one says so
        return GiveUp(f"{len(lost)} runs in a row were lost for good; {lost[-1].run_id} was {lost[-1].message}")
    is_late = study.search_ended is not None or is_overdue(study, now)
    for record in study.runs.values():
        if record.state is RunState.LOST and not (is_late and record.run.purpose is Purpose.SEARCH):
            return Queue(record.run, record.resume_from)
    match study.phase:
        case Phase.SEARCH:
            return _next_in_search(study, now)
        case Phase.REFIT:
            return _next_in_refit(study)
        case _:
            return _next_in_ensemble(study)


def is_overdue(study: Study, now: float) -> bool:
    """Whether a search with a result has used up its time, and some more: what has not begun by now is given up."""
    is_late = study.elapsed_seconds(now) >= search_seconds(study) + OVERDUE_SECONDS
    return is_late and study.search_ended is None and study.has_answer


def overdue_runs(study: Study, now: float) -> tuple[str, ...]:
    """Return the ids of the search's runs that no worker has taken up although its time is over."""
    if not is_overdue(study, now):
        return ()
    return tuple(record.run.id for record in study.search_records() if _waits(study, record, now))


def _waits(study: Study, record: RunRecord, now: float) -> bool:
    """Whether no worker is at a run: none has been, or none in this session, which may have fewer slots."""
    is_settled = now - study.session_began >= OVERDUE_SECONDS
    is_left_over = record.state is RunState.RUNNING and record.run.id not in study.taken_up
    return record.state is RunState.QUEUED or (is_left_over and is_settled)


def needed_checkpoints(study: Study) -> set[str]:
    """Return the ids of the runs whose checkpoints may still be used; all others may go."""
    if study.ensemble is not None:
        return {member.run_id for member in study.ensemble.members}
    needed = {record.run.id for record in study.runs.values() if record.run.purpose is Purpose.REFIT}
    needed |= set(study.checkpoints_of_search[:3])
    for record in study.runs.values():
        if not record.state.is_final or record.is_lost_for_good:
            needed.add(record.run.id)
            if record.resume_from is not None:
                needed.add(record.resume_from.split("/")[1])
    if study.search_ended is None:
        for bracket in _open_brackets(study):
            progress = bracket_progress(study, bracket)
            needed |= progress.undecided
            if progress.missing:  # or the space is spent and the rung has ended, which a new session does not know yet
                needed |= _last_ended(study, bracket)
    return needed


def _last_ended(study: Study, bracket: Bracket) -> set[str]:
    """Return the id of the last run of each of a bracket's trials that has ended."""
    last: set[str] = set()
    for trial in study.trials_of(bracket.index):
        runs = [_run_id(trial, budget) for budget in bracket.budgets_epochs]
        last |= set([run for run in runs if study.is_final(run)][-1:])
    return last


def search_seconds(study: Study) -> float:
    """Return the seconds of the time budget that the search may use; infinite without one."""
    time = study.spec.budget.time
    return float("inf") if time is None else time * (1 - study.spec.budget.refit_share)


def most_seconds_per_epoch(study: Study, run: Run) -> float | None:
    """Return the cap on a run's time per epoch, None without one: the spec's, or what its search has left for it.

    All slots wait for the search's last run, and the refit with them: one that would take much longer than the search
    had left when it was queued is given up. The others fit, by what was known of their trial. While there is no answer
    yet, one of the runs at hand has a deadline instead, to give one. A run that was lost may have been almost
    done, and one that was queued under a larger budget as well: they are held to the spec's cap alone, refits to none.
    """
    if run.purpose is Purpose.REFIT:
        return None
    record, cap = study.runs[run.id], study.spec.budget.max_seconds_per_epoch
    if study.spec.budget.time is None or record.losses or is_to_answer(study, run):
        return cap
    left = search_seconds(study) - study.elapsed_at(record.queued_at)
    if left <= 0:
        return cap
    of_time = OVERTIME * left / _epochs_of(study, Queue(run, record.resume_from))
    return of_time if cap is None else min(cap, of_time)


def is_to_answer(study: Study, run: Run) -> bool:
    """Whether a run of the search is the one that must end with an answer, for there is none yet."""
    return not study.has_answer and study.runs[run.id].is_to_answer


def search_deadline_seconds(study: Study, run: Run, *, now: float) -> float | None:
    """Return how long the run that must give an answer may take: it is shortened to what its search has left.

    None for any other run, and without a time budget. Where the search's share went into runs that failed, what is kept
    for the refit serves: one network is more than none.
    """
    if study.spec.budget.time is None or not is_to_answer(study, run):
        return None
    elapsed = study.elapsed_seconds(now)
    left = search_seconds(study) - elapsed
    return max(LEAST_SECONDS, left if left >= LEAST_SECONDS else ANSWER_SHARE * study.spec.budget.time - elapsed)


def _next_in_search(study: Study, now: float) -> Action:
    refused = SPENT if is_overdue(study, now) else ""
    is_endless = study.spec.search.sampler is not SamplerName.GRID
    if is_endless and (failed := study.failures_in_a_row) >= (HOPELESS_LATER if study.has_answer else HOPELESS):
        which = "last" if study.has_answer else "first"
        return Wait() if study.open_runs else EndSearch(f"the {which} {failed} runs all failed")
    for action in _candidates(study):
        why = _why_not(study, action, now)
        if not why:
            return action
        refused = refused or why
    return Wait() if study.open_runs else EndSearch(refused or _natural_end(study))


def _candidates(study: Study) -> Iterator[Propose | Queue]:
    """Yield what could start, the oldest bracket first; a new bracket last."""
    for bracket in _open_brackets(study):
        progress = bracket_progress(study, bracket)
        if progress.is_over:
            study.closed_brackets.add(bracket.index)
        yield from (Queue(run, None) for run in progress.new_runs)
        if progress.missing:
            yield Propose(len(study.trials), bracket.index, bracket.budgets_epochs[0])
        yield from (Queue(run, _resume_from(study, run, bracket)) for run in progress.promoted_runs)
    limit = study.spec.budget.iterations
    if not study.exhausted and (limit is None or study.brackets_opened < limit):
        bracket = study.bracket(study.brackets_opened)
        yield Propose(len(study.trials), bracket.index, bracket.budgets_epochs[0])


def _run_id(trial: int, budget_epochs: int) -> str:
    return Run(trial=trial, budget_epochs=budget_epochs).id


def _open_brackets(study: Study) -> Iterator[Bracket]:
    for index in range(study.brackets_opened):
        if index not in study.closed_brackets:
            yield study.bracket(index)


def _why_not(study: Study, action: Propose | Queue, now: float) -> str:
    """Return why the budget does not allow an action; empty if it does."""
    epochs = _epochs_of(study, action)
    limit = study.spec.budget.epochs
    if limit is not None and _epochs_committed(study) + epochs > limit:
        return f"the budget of {limit} epochs is spent"
    if study.spec.budget.time is None:
        return ""
    if not study.runs:  # the check of the dataset may have taken all of it
        return ""
    share = search_seconds(study)
    if not study.has_answer and not study.awaits_answer:
        share = max(share, ANSWER_SHARE * study.spec.budget.time)
    left = share - study.elapsed_seconds(now)
    trial = action.run.trial if isinstance(action, Queue) else None
    cost = epochs * (study.seconds_per_epoch(trial) or 0.0)
    if isinstance(action, Propose) and action.bracket >= study.brackets_opened and study.trials:
        half = _bracket_seconds(study, action.bracket) / 2  # a bracket that cannot come half way is not opened
        cost = max(cost, half)  # nor one whose first run would not be queued
    return SPENT if cost > left or left <= 0 else ""


def _natural_end(study: Study) -> str:
    if study.exhausted:
        return "every configuration of the space was tried"
    return "1 iteration is done" if (count := study.spec.budget.iterations) == 1 else f"{count} iterations are done"


def _next_in_refit(study: Study) -> Action:
    if study.refit is None:
        return ChooseRefit()
    for run in study.refit.runs:
        if run.id not in study.runs:
            return Queue(run, None)
    return Wait()


def _next_in_ensemble(study: Study) -> Action:
    if study.ensemble is not None:
        return EndStudy(succeeded=True, why="the ensemble is chosen")
    if study.ensemble_queued is not None:
        return Wait()
    gone = study.lost_refits
    if gone and not any(record.state is RunState.COMPLETE for record in study.refit_records()):
        return GiveUp(f"no refit completed, {len(gone)} were lost for good; {gone[-1].run_id} was {gone[-1].message}")
    candidates = study.ensemble_candidates
    if not candidates:
        return EndStudy(succeeded=False, why="no configuration could be trained")
    lost = study.ensemble_lost
    if lost is not None and study.ensemble_strikes > study.spec.execution.max_retries:
        return GiveUp(f"the choice of the ensemble was lost {study.ensemble_strikes} times, the last time: {lost.why}")
    return ChooseEnsemble(candidates)


def _bracket_seconds(study: Study, index: int) -> float:
    bracket = study.bracket(index)
    is_continued = study.spec.search.promotion == "continue"
    epochs = bracket.epochs_continued if is_continued else bracket.epochs_restarted
    return epochs * (study.seconds_per_epoch() or 0.0) / study.spec.execution.max_parallel_runs


def _epochs_of(study: Study, action: Propose | Queue) -> int:
    if isinstance(action, Propose):
        return action.budget_epochs
    return action.run.budget_epochs - (_rung_below(study, action.run) if action.resume_from else 0)


def _epochs_committed(study: Study) -> int:
    """Return the epochs that were trained or are about to be."""
    planned = (
        record.run.budget_epochs - (_rung_below(study, record.run) if record.resume_from else 0)
        for record in study.search_records()
        if not record.state.is_final
    )
    return study.epochs_spent + sum(planned)


def _rung_below(study: Study, run: Run) -> int:
    return max((budget for budget in study.rungs if budget < run.budget_epochs), default=0)


def _resume_from(study: Study, run: Run, bracket: Bracket) -> str | None:
    if study.spec.search.promotion == "restart":
        return None
    below = max(budget for budget in bracket.budgets_epochs if budget < run.budget_epochs)
    result = study.runs[_run_id(run.trial, below)].result
    return result.checkpoint if result else None
