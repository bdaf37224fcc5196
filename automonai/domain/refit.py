"""Which configurations are trained to the end, on which folds and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from automonai.domain.events import RefitChosen
from automonai.domain.run import Purpose, Run, Trial
from automonai.domain.study import Study

ENSEMBLE_SHARE = 0.03
"""Part of a time budget that is kept for choosing and testing the ensemble, beside the predictions it takes."""
EPOCHS_MARGIN = 1.15
"""A refit plans for somewhat more epochs than measured speed promises; its loop shortens them to what fits."""


@dataclass(frozen=True)
class Room:
    """What is left of a time budget for the refit."""

    seconds: float
    slots: int

    def epochs_each(self, members: int, seconds_per_epoch: float) -> float:
        """Return the epochs that each of so many members gets."""
        waves = -(-members // self.slots)
        return self.seconds / waves / max(seconds_per_epoch, 1e-9)


def choose_refit(study: Study, *, now: float, test_cases: int) -> RefitChosen:
    """Return what to refit, best configuration first.

    Without a time budget every chosen configuration is trained on all folds. Under one, as many members as can each
    get `refit.min_epochs_factor * budget.max_epochs` epochs are trained, for equal shares of what is left.
    """
    chosen = _configurations(study)
    if not chosen:
        return RefitChosen(at=now, runs=(), why="no run of the search completed")
    if study.spec.budget.time is None:
        members = study.spec.refit.members or len(chosen) * study.spec.split.folds
        epochs = study.spec.refit.epochs or study.spec.budget.max_epochs
        return RefitChosen(at=now, runs=_runs(study, chosen, members, epochs), why=f"{epochs} epochs each")
    room = Room(_seconds_left(study, now, test_cases), study.spec.execution.max_parallel_runs)
    cost = study.seconds_per_epoch(chosen[0].number) or 1.0
    members = study.spec.refit.members or _members(study, room, cost, len(chosen))
    epochs = study.spec.refit.epochs or max(1, int(EPOCHS_MARGIN * room.epochs_each(members, cost)))
    why = f"{members} networks in the {room.seconds:.0f} s that are left"
    return RefitChosen(at=now, runs=_runs(study, chosen, members, epochs), why=why)


def refit_deadline_seconds(study: Study, run: Run, *, now: float, test_cases: int) -> float | None:
    """Return how long a refit that starts now may take; None without a time budget.

    What is left is shared by the waves of refits that have not started, this one's included.
    """
    if study.spec.budget.time is None or study.refit is None:
        return None
    started = {record.run.id for record in study.runs.values() if record.state.is_final}
    waiting = [other for other in study.refit.runs if other.id not in started]
    running = [other for other in waiting if other.id in study.runs and other.id != run.id]
    slots = study.spec.execution.max_parallel_runs
    waves = -(-max(1, len(waiting) - len(running)) // slots)
    return max(30.0, _seconds_left(study, now, test_cases) / waves)


def _configurations(study: Study) -> list[Trial]:
    ranking = study.ranking
    if not ranking:
        return []
    wanted = study.spec.refit.configurations or (1 if study.spec.budget.time is None else 2)
    best = ranking[0][1].loss or 0.0
    tolerance = study.spec.refit.tolerance
    return [trial for trial, result in ranking[:wanted] if (result.loss or 0.0) <= best + tolerance]


def _members(study: Study, room: Room, seconds_per_epoch: float, configurations: int) -> int:
    """Return the largest number of networks that all get enough epochs, at least one."""
    enough = study.spec.refit.min_epochs_factor * study.spec.budget.max_epochs
    most = configurations * study.spec.split.folds
    fitting = [n for n in range(1, most + 1) if room.epochs_each(n, seconds_per_epoch) >= enough]
    return max(fitting, default=min(room.slots, most))


def _runs(study: Study, chosen: list[Trial], members: int, epochs: int) -> tuple[Run, ...]:
    """Return the members fold by fold, so that configurations meet on the same held-out cases."""
    folds = range(study.spec.split.folds)
    order = [(trial, fold) for fold in folds for trial in chosen]
    return tuple(
        Run(trial=trial.number, budget_epochs=epochs, fold=fold, purpose=Purpose.REFIT)
        for trial, fold in order[:members]
    )


def _seconds_left(study: Study, now: float, test_cases: int) -> float:
    time = study.spec.budget.time or 0.0
    members = study.spec.refit.members or 2 * study.spec.execution.max_parallel_runs
    per_case = max(
        (record.result.prediction_seconds_per_case or 0.0 for record in study.runs.values() if record.result),
        default=0.0,
    )
    held_out = min(24, study.spec.training.validation_cases or 24)
    predictions = per_case * members * (test_cases + held_out)
    reserve = time * ENSEMBLE_SHARE + min(predictions, 0.15 * time)
    return max(60.0, time - study.elapsed_seconds(now) - reserve)
