"""Successive halving and HyperBand in whole numbers (Li et al. 2018, JMLR 18, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping

from automonai.domain.records import Record


class Bracket(Record):
    """One successive-halving ladder: how many trials reach each of its rungs."""

    index: int
    budgets_epochs: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def epochs_continued(self) -> int:
        """Return the epochs that the bracket costs when a promoted trial continues its training."""
        steps = [b - a for a, b in zip((0, *self.budgets_epochs), self.budgets_epochs, strict=False)]
        return sum(size * step for size, step in zip(self.sizes, steps, strict=True))

    @property
    def epochs_restarted(self) -> int:
        """Return the epochs that the bracket costs when every rung starts over, as the paper's do."""
        return sum(size * budget for size, budget in zip(self.sizes, self.budgets_epochs, strict=True))


def rung_budgets(min_epochs: int, max_epochs: int, eta: int) -> tuple[int, ...]:
    """Return the rungs' budgets in epochs, lowest first, the highest being exactly `max_epochs`.

    The number of rungs is decided by integer products, never by a logarithm: (1, 243, 3) gives 6.
    Budgets are `max_epochs / eta**k` rounded half up, so the lowest may exceed `min_epochs`: (5, 200, 3)
    gives 7, 22, 67, 200.

    Raises:
        ValueError: If not 1 <= min_epochs <= max_epochs and eta >= 2.
    """
    if not 1 <= min_epochs <= max_epochs:
        raise ValueError(f"rungs need 1 <= min_epochs <= max_epochs, not {min_epochs} and {max_epochs}")
    if eta < 2:
        raise ValueError(f"rungs need eta >= 2, not {eta}")
    count, power = 1, eta
    while min_epochs * power <= max_epochs:
        count, power = count + 1, power * eta
    return tuple((2 * max_epochs + eta**k) // (2 * eta**k) for k in reversed(range(count)))


def hyperband_bracket(index: int, budgets_epochs: tuple[int, ...], eta: int) -> Bracket:
    """Return HyperBand's bracket number `index`: 0 starts on the lowest rung, 1 on the next, then they rotate.

    With R rungs and s halvings the first rung takes floor(R / (s + 1)) eta^s trials, as HpBandSter's BOHB does:
    (5, 200, 3) costs 3,800 epochs in five restarted brackets before its budgets are rounded.
    """
    rungs = len(budgets_epochs)
    halvings = rungs - 1 - index % rungs
    first = rungs // (halvings + 1) * eta**halvings
    sizes = tuple(max(1, first // eta**k) for k in range(halvings + 1))
    return Bracket(index=index, budgets_epochs=budgets_epochs[rungs - halvings - 1 :], sizes=sizes)


def halving_bracket(index: int, budgets_epochs: tuple[int, ...], eta: int) -> Bracket:
    """Return plain successive halving's bracket: always from the lowest rung."""
    return hyperband_bracket(index * len(budgets_epochs), budgets_epochs, eta).model_copy(update={"index": index})


def flat_bracket(index: int, max_epochs: int, size: int) -> Bracket:
    """Return a ladder of one rung, for searches that train everything to the end."""
    return Bracket(index=index, budgets_epochs=(max_epochs,), sizes=(size,))


def promoted(losses: Mapping[int, float], count: int) -> tuple[int, ...]:
    """Return the `count` trials of lowest loss, best first; a tie goes to the earlier trial.

    Args:
        losses: Loss of each trial of a finished rung; a failed trial's is infinite and is never promoted.
        count: How many the next rung takes.
    """
    finite = [(loss, trial) for trial, loss in losses.items() if loss < float("inf")]
    return tuple(trial for _, trial in sorted(finite)[:count])
