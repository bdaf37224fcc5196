"""How far a study is, in runs; pure."""

from __future__ import annotations

from math import ceil

from automonai.domain.study import Study


def runs_done_and_planned(study: Study, now: float) -> tuple[int, int]:
    """Return how many of a study's runs have ended and how many there will be: an estimate while the search goes on.

    Never more are done than planned, and only what is over has done them all; so with each of its two parts.
    """
    searched, to_search = search_done_and_planned(study, now)
    refitted, to_refit = refit_done_and_planned(study)
    return searched + refitted, to_search + to_refit


def search_done_and_planned(study: Study, now: float) -> tuple[int, int]:
    """Return how many of the search's runs have ended and how many there will be."""
    done = sum(record.state.is_final for record in study.search_records())
    return done, done if study.search_ended is not None else max(done + 1, _planned_search(study, done, now))


def refit_done_and_planned(study: Study) -> tuple[int, int]:
    """Return how many refits have ended and how many there will be; the ensemble's choice counts as one."""
    done = sum(record.state.is_final for record in study.refit_records()) + (study.ensemble is not None)
    if study.is_over:
        return done, done
    planned = len(study.refit.runs) if study.refit is not None else study.spec.refit.members or study.folds
    return done, max(done, planned) + 1


def _planned_search(study: Study, ended: int, now: float) -> int:
    """Return how many runs the search will have by the limit that is nearest; at least those that are there."""
    budget = study.spec.budget
    shares = []
    if budget.epochs is not None:
        shares.append(study.epochs_spent / budget.epochs)
    if budget.time is not None:
        shares.append(study.elapsed_seconds(now) / (budget.time * (1 - budget.refit_share)))
    planned = [ceil(ended / share) for share in shares if share > 0]
    if budget.iterations is not None:
        planned.append(_runs_of_brackets(study, budget.iterations))
    there = sum(1 for _ in study.search_records())
    return max(there, min(planned, default=there))


def _runs_of_brackets(study: Study, count: int) -> int:
    """Return the runs of so many brackets, which may be as good as endless; they repeat after one for each rung."""
    in_turn = [sum(study.bracket(index).sizes) for index in range(len(study.rungs))]
    rounds, rest = divmod(count, len(in_turn))
    return rounds * sum(in_turn) + sum(in_turn[:rest])
