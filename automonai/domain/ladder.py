"""Rungs and iterations that fit a time: the arithmetic of `automonai init`."""

from __future__ import annotations

from automonai.domain.bracket import hyperband_bracket, rung_budgets
from automonai.domain.records import Record

FEWEST_TRIALS = 24
"""Configurations that a search should be able to try; a higher ladder would try fewer."""
FEWEST_STEPS = 60
"""Optimiser steps of the lowest rung: on the hippocampus, networks come to 0.75 training Dice in 40 and differ then."""
LONGEST_EPOCHS = 200
"""The source work's highest budget; more time buys more brackets instead."""
MOST_RUNGS = 3


class Ladder(Record):
    """The rungs of a search and how many brackets fit."""

    min_epochs: int
    max_epochs: int
    eta: int
    iterations: int


def fit_ladder(affordable_epochs: float, *, steps_per_epoch: float, eta: int = 3) -> Ladder:
    """Return the ladder with most rungs, and of those the highest, on which `FEWEST_TRIALS` trials are affordable.

    With too little time for a ladder of one rung of `FEWEST_STEPS`, one shorter rung is returned.

    Args:
        affordable_epochs: Epochs of the standard configuration that all slots can train in the search's time.
        steps_per_epoch: Optimiser steps of one epoch.
        eta: Factor between rungs.
    """
    lowest = fewest_epochs(steps_per_epoch)
    longest = max(LONGEST_EPOCHS, lowest * eta ** (MOST_RUNGS - 1))  # a few large volumes: epochs of a few steps
    for rungs in range(MOST_RUNGS, 0, -1):
        factor, bottom = eta ** (rungs - 1), lowest
        if _trials(affordable_epochs, bottom, bottom * factor, eta) < FEWEST_TRIALS:
            continue
        while (bottom + 1) * factor <= longest and _trials(
            affordable_epochs, bottom + 1, (bottom + 1) * factor, eta
        ) >= FEWEST_TRIALS:
            bottom += 1
        return _ladder(affordable_epochs, bottom, bottom * factor, eta)
    highest = max(1, min(lowest, int(affordable_epochs / FEWEST_TRIALS)))
    return _ladder(affordable_epochs, highest, highest, eta)


def fewest_epochs(steps_per_epoch: float) -> int:
    """Return the epochs of a lowest rung that there is time for: `FEWEST_STEPS` steps of them."""
    return max(1, -(-FEWEST_STEPS // max(1, round(steps_per_epoch))))


def results_on_one_rung(ladder: Ladder) -> int:
    """Return how many results the rung with most of them will have: what a model can be built from."""
    budgets = rung_budgets(ladder.min_epochs, ladder.max_epochs, ladder.eta)
    results = dict.fromkeys(budgets, 0)
    for index in range(ladder.iterations):
        bracket = hyperband_bracket(index, budgets, ladder.eta)
        for budget, size in zip(bracket.budgets_epochs, bracket.sizes, strict=True):
            results[budget] += size
    return max(results.values())


def _ladder(epochs: float, lowest: int, highest: int, eta: int) -> Ladder:
    """Return the ladder with as many brackets as fit, at least one, and one more: some cost less than the standard."""
    budgets, spent, count = rung_budgets(lowest, highest, eta), 0, 0
    while spent <= epochs and count < 1000:
        spent += hyperband_bracket(count, budgets, eta).epochs_continued
        count += 1
    return Ladder(min_epochs=lowest, max_epochs=highest, eta=eta, iterations=max(1, count))


def _trials(epochs: float, lowest: int, highest: int, eta: int) -> float:
    """Return how many trials whole rounds of brackets try in so many epochs."""
    budgets = rung_budgets(lowest, highest, eta)
    brackets = [hyperband_bracket(index, budgets, eta) for index in range(len(budgets))]
    per_round = sum(bracket.sizes[0] for bracket in brackets)
    return epochs / sum(bracket.epochs_continued for bracket in brackets) * per_round
