"""Which configurations are trained to the end, on which folds and for how long."""

from __future__ import annotations

from dataclasses import dataclass, replace

from automonai.domain.events import RefitChosen
from automonai.domain.run import Origin, Purpose, Result, Run, Trial
from automonai.domain.schedule import refit_validations
from automonai.domain.study import Study

ENSEMBLE_SHARE = 0.03
"""Part of a time budget that is kept for choosing and testing the ensemble, beside the predictions it takes."""
MOST_PREDICTION = 0.3
"""Largest part of a time budget that is kept for these predictions."""
HELD_OUT_CASES = 24
LEAST_SECONDS = 60.0
"""A refit gets so much however little the search has left."""
EPOCHS_MARGIN = 1.15
"""A refit plans for somewhat more epochs than measured speed promises; its loop shortens them to what fits."""
ALIKE = 0.003
"""Losses that differ by less are taken for equal: under a time budget the cheaper configuration then comes first."""
TELLING_STEPS = 120
"""Optimiser steps after which configurations rank about as they do in the end; on the phantom, 60 do not suffice."""


@dataclass(frozen=True)
class _Pace:
    """How fast a configuration trains."""

    seconds_per_epoch: float
    """Of training alone, if that is known."""
    seconds_per_validation: float

    def epochs_in(self, seconds: float) -> float:
        """Return the epochs that fit with the validations that a refit of that time makes."""
        validations = refit_validations(seconds, self.seconds_per_validation)
        return max(0.0, seconds - validations * self.seconds_per_validation) / self.seconds_per_epoch


@dataclass(frozen=True)
class _Room:
    """What is left of a time budget for the refit, and how fast each configuration trains."""

    seconds: float
    slots: int
    enough_epochs: int
    paces: dict[int, _Pace]

    def epochs(self, trial: int, members: int) -> float:
        """Return the epochs that one of so many members gets if it is of this trial."""
        waves = -(-members // self.slots)
        return self.paces[trial].epochs_in(self.seconds / waves)

    def is_enough(self, trial: int, members: int) -> bool:
        """Whether these epochs make the member worth training."""
        return self.epochs(trial, members) >= self.enough_epochs


def choose_refit(study: Study, *, now: float, test_cases: int) -> RefitChosen:
    """Return what to refit, best configuration first.

    Without a time budget every chosen configuration is trained on all folds. Under one, as many members as can each
    get `refit.min_epochs_factor * budget.max_epochs` epochs are trained, for equal shares of what is left; a further
    configuration that would get fewer is left out unless `refit.configurations` asks for it, and so are members with
    which the best would get less than it had in the search. After a search of a few steps only, the standard
    configuration is trained beside the best, and the choice of the ensemble decides between them.
    """
    if study.spec.budget.time is None:
        chosen = _configurations(study, [trial for trial, _ in _contenders(study)], most=1)
        members = study.spec.refit.members or len(chosen) * study.folds
        epochs = study.spec.refit.epochs or study.spec.budget.max_epochs
        runs = [_run(trial, fold, epochs) for trial, fold in _order(study, chosen)[:members]]
        return _chosen(now, runs, f"{epochs} epochs each")
    chosen = _configurations(study, _cheapest_of_equals(study), most=2)
    hedge = _hedge(study, chosen)
    if hedge is not None:
        chosen = [chosen[0], hedge]
    networks = min(study.spec.refit.members or 2 * study.spec.execution.max_parallel_runs, len(chosen) * study.folds)
    first = [trial.number for trial in chosen[:1]] * networks
    room = _room(study, chosen, seconds=_seconds_left(study, first, now=now, test_cases=test_cases))
    order = _members(study, room, chosen, is_hedged=hedge is not None)
    wanted = len(order)
    while order:
        seconds = _seconds_left(study, [trial.number for trial, _ in order], now=now, test_cases=test_cases)
        room = replace(room, seconds=seconds)
        if study.spec.refit.epochs or len(order) == 1 or not _is_in_vain(study, room, order):
            break
        order.pop()
    runs = []
    for trial, fold in order:
        epochs = study.spec.refit.epochs or max(1, int(EPOCHS_MARGIN * room.epochs(trial.number, len(order))))
        runs.append(_run(trial, fold, epochs))
    if not study.spec.refit.epochs and _is_in_vain(study, room, order):
        return RefitChosen(at=now, runs=(), why="what is left of the time is less than the search trained its best")
    why = f"equal shares of the {room.seconds:.0f} s"
    why += " (the least that it gets)" if room.seconds <= LEAST_SECONDS else " that are left"
    if study.spec.refit.members is not None and len(order) < wanted:
        why += f"; with all {wanted} members the best would be trained less than in the search"
    if hedge is not None and hedge in [trial for trial, _ in order]:
        why += "; the standard configuration beside the best, since so short a search does not tell them apart"
    return _chosen(now, runs, why)


def _is_in_vain(study: Study, room: _Room, order: list[tuple[Trial, int]]) -> bool:
    """Whether the best configuration would get fewer epochs than it has had in the search."""
    had = {trial.number: result.curve_epochs for trial, result in _contenders(study)}
    return bool(order) and room.epochs(order[0][0].number, len(order)) < had[order[0][0].number]


def refit_deadline_seconds(study: Study, run: Run, *, now: float, test_cases: int) -> float | None:
    """Return how long a refit that starts now may take; None without a time budget.

    What is left is shared by the waves of refits that have not started, this one's included. A study that is taken up
    with fewer slots has more open refits than can run.
    """
    if study.spec.budget.time is None or study.refit is None:
        return None
    waiting = [other for other in study.refit.runs if not study.is_final(other.id)]
    slots = study.spec.execution.max_parallel_runs
    running = min(slots - 1, sum(other.id in study.runs and other.id != run.id for other in waiting))
    waves = -(-max(1, len(waiting) - running) // slots)
    networks = [other.trial for other in study.refit.runs]
    return max(30.0, _seconds_left(study, networks, now=now, test_cases=test_cases) / waves)


def _chosen(now: float, runs: list[Run], why: str) -> RefitChosen:
    return RefitChosen(at=now, runs=tuple(runs), why=why if runs else "no run of the search completed")


def _configurations(study: Study, order: list[Trial], *, most: int) -> list[Trial]:
    """Return the first of the order, and further ones whose loss is within the tolerance of the best."""
    losses = {trial.number: result.loss or 0.0 for trial, result in _contenders(study)}
    limit = min(losses.values(), default=0.0) + study.spec.refit.tolerance
    return [trial for trial in order if losses[trial.number] <= limit][: study.spec.refit.configurations or most]


def _contenders(study: Study) -> list[tuple[Trial, Result]]:
    """Return the ranking without the trials that failed when they trained for longer; all where each has."""
    failed = study.failed_trials
    return [(trial, result) for trial, result in study.ranking if trial.number not in failed] or list(study.ranking)


def _hedge(study: Study, chosen: list[Trial]) -> Trial | None:
    """Return the standard configuration where the search was too short to tell that the best one is better."""
    refit = study.spec.refit
    if refit.configurations is not None or refit.members == 1 or not chosen or chosen[0].origin is Origin.STANDARD:
        return None
    results = {trial.number: result for trial, result in _contenders(study)}
    best = results[chosen[0].number]
    if best.steps_per_epoch is None or best.steps_per_epoch * best.curve_epochs >= TELLING_STEPS:
        return None
    return next((trial for trial, _ in _contenders(study) if trial.origin is Origin.STANDARD), None)


def _cheapest_of_equals(study: Study) -> list[Trial]:
    """Return the ranking, but those that are as good as the best in ascending order of their cost."""
    contenders = _contenders(study)
    best = min((result.loss or 0.0 for _, result in contenders), default=0.0)
    alike = [trial for trial, result in contenders if (result.loss or 0.0) <= best + ALIKE]
    alike.sort(key=lambda trial: _pace(study, trial.number).seconds_per_epoch)
    return alike + [trial for trial, _ in contenders if trial not in alike]


def _room(study: Study, chosen: list[Trial], *, seconds: float) -> _Room:
    return _Room(
        seconds=seconds,
        slots=study.spec.execution.max_parallel_runs,
        enough_epochs=study.spec.refit.min_epochs_factor * study.spec.budget.max_epochs,
        paces={trial.number: _pace(study, trial.number) for trial in chosen},
    )


def _pace(study: Study, trial: int) -> _Pace:
    """Return a trial's pace by its last result that tells one, else by what its epochs or others' took in all."""
    for record in reversed(study.runs.values()):
        result = record.result
        if record.run.trial == trial and result and result.training_seconds_per_epoch and result.validation_seconds:
            return _Pace(result.training_seconds_per_epoch, result.validation_seconds)
    return _Pace(study.seconds_per_epoch(trial) or 1.0, 0.0)


def _members(study: Study, room: _Room, chosen: list[Trial], *, is_hedged: bool) -> list[tuple[Trial, int]]:
    """Return the networks to train: as many as each get enough epochs, at least one, and of a hedge both."""
    most = len(chosen) * study.folds
    by = chosen if is_hedged else chosen[:1]
    fitting = [n for n in range(1, most + 1) if all(room.is_enough(trial.number, n) for trial in by)]
    members = study.spec.refit.members or max(fitting, default=min(room.slots, most))
    if is_hedged:
        return _order(study, chosen)[: max(members, len(chosen))]
    is_asked_for = study.spec.refit.configurations is not None
    worth_it = chosen[:1] + [t for t in chosen[1:] if is_asked_for or room.is_enough(t.number, members)]
    return _order(study, worth_it)[:members]  # fewer than members where a configuration was left out


def _order(study: Study, chosen: list[Trial]) -> list[tuple[Trial, int]]:
    """Return configurations and folds, fold by fold, so that configurations meet on the same held-out cases.

    The first fold comes last: by its cases the search has chosen them, and the best of many is better there by luck.
    """
    return [(trial, fold) for fold in (*range(1, study.folds), 0) for trial in chosen]


def _run(trial: Trial, fold: int, epochs: int) -> Run:
    return Run(trial=trial.number, budget_epochs=epochs, fold=fold, purpose=Purpose.REFIT)


def _seconds_left(study: Study, networks: list[int], *, now: float, test_cases: int) -> float:
    """Return what is left for refits once the ensemble of these trials' networks is chosen and tested."""
    time = study.spec.budget.time or 0.0
    predictions = _prediction_seconds(study, networks, test_cases=test_cases)
    reserve = time * ENSEMBLE_SHARE + min(predictions, MOST_PREDICTION * time)
    return max(LEAST_SECONDS, time - study.elapsed_seconds(now) - reserve)


def _prediction_seconds(study: Study, networks: list[int], *, test_cases: int) -> float:
    """Return how long one device predicts for the ensemble.

    Every network predicts the test cases, and one of each configuration a held-out case: as many of these as there is
    time for, so that a few are counted on. Each prediction is one of every flip, which a validation does without.
    """
    seconds = {trial: _seconds_per_case(study, trial) for trial in networks}
    held_out = min(HELD_OUT_CASES, study.spec.training.validation_cases or HELD_OUT_CASES)
    return test_cases * sum(seconds[trial] for trial in networks) + held_out * sum(seconds.values())


def _seconds_per_case(study: Study, trial: int) -> float:
    """Return how long a network of a trial predicts a case, by its last validation, else by the slowest of all."""
    known = [
        (record.run.trial, record.result.prediction_seconds_per_case)
        for record in study.runs.values()
        if record.result and record.result.prediction_seconds_per_case
    ]
    own = [seconds for number, seconds in known if number == trial]
    one = own[-1] if own else max((seconds for _, seconds in known), default=0.0)
    return float(one * study.trials[trial].configuration.passes)
