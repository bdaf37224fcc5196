"""Rungs and iterations that fit a time: the arithmetic of `automonai init`."""

from __future__ import annotations

from automonai.domain.bracket import hyperband_bracket, rung_budgets
from automonai.domain.records import Record

ROUNDS = 2
"""HyperBand rounds (one bracket of each kind) that a ladder should leave room for, so that a model can form."""
LONGEST_EPOCHS = 200
"""The source work's highest budget; more time buys more brackets instead."""


class Ladder(Record):
    """The rungs of a search and how many brackets fit."""

    min_epochs: int
    max_epochs: int
    eta: int
    iterations: int


def fit_ladder(affordable_epochs: float, *, eta: int = 3) -> Ladder:
    """Return the highest ladder of three rungs of which `ROUNDS` rounds cost at most `affordable_epochs`.

    Args:
        affordable_epochs: Epochs of the standard configuration that all slots can train in the search's time.
        eta: Factor between rungs.

    Returns:
        A ladder from 1 epoch upwards; with very little time one rung of a single epoch.
    """
    highest = 1
    while highest < LONGEST_EPOCHS and _round_epochs(highest + 1, eta) * ROUNDS <= affordable_epochs:
        highest += 1
    lowest = max(1, highest // eta**2)
    iterations = _iterations(affordable_epochs, lowest, highest, eta)
    return Ladder(min_epochs=lowest, max_epochs=highest, eta=eta, iterations=iterations)


def _round_epochs(highest: int, eta: int) -> int:
    budgets = rung_budgets(max(1, highest // eta**2), highest, eta)
    return sum(hyperband_bracket(i, budgets, eta).epochs_continued for i in range(len(budgets)))


def _iterations(epochs: float, lowest: int, highest: int, eta: int) -> int:
    """Return how many brackets fit, at least one; each may cost less than the standard's, so allow one more."""
    budgets, spent, count = rung_budgets(lowest, highest, eta), 0, 0
    while spent <= epochs and count < 1000:
        spent += hyperband_bracket(count, budgets, eta).epochs_continued
        count += 1
    return max(1, count)
