"""When a refit validates: seldom, for nothing is decided by these scores but the last."""

from __future__ import annotations

MOST_VALIDATIONS = 4
_SHARE = 0.1


def refit_validations(seconds: float, seconds_per_validation: float) -> int:
    """Return how many validations a refit of that time makes, the last included, at most four.

    Those before the last, which only draw its learning curve and save its state, take no more than a tenth of the time.
    """
    if seconds_per_validation <= 0:
        return MOST_VALIDATIONS
    return 1 + min(MOST_VALIDATIONS - 1, int(_SHARE * max(0.0, seconds) / seconds_per_validation))


def refit_interval(length: int, every: int, validations: int) -> int:
    """Return after how many epochs a refit of `length` epochs validates, and not oftener than `every` so many."""
    return max(every, -(-length // validations))


def validations_before_end(length: int, every: int, validations: int, *, after: int) -> int:
    """Return how many validations a refit makes between an epoch and its end, at which it makes another.

    None is made shortly before the end: less than half an interval.
    """
    interval = refit_interval(length, every, validations)
    if not interval:
        return 0
    return sum(1 for epoch in range(interval, length, interval) if epoch > after and length - epoch >= interval / 2)
