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


def validated_epochs(length: int, every: int, validations: int) -> tuple[int, ...]:
    """Return the epochs before its last after which a refit of `length` epochs validates.

    They divide it into so many parts, but are at least `every` epochs apart. None is shortly before the end: less than
    half a part.
    """
    part = _part(length, every, validations)
    return tuple(epoch for epoch in range(part, length, part) if length - epoch >= part / 2)


def is_validated(epoch: int, *, last: int, length: int, every: int, validations: int) -> bool:
    """Whether a refit validates after an epoch, its length being what it is foretold to be by now.

    Args:
        epoch: That has ended.
        last: The epoch after which it validated last; 0 if it has not.
        length: In epochs; it changes while the refit goes on, and must let it validate neither twice for one of the
            `validated_epochs` nor never.
        every: As there.
        validations: As there.
    """
    half = _part(length, every, validations) / 2
    is_due = any(last + half <= due <= epoch for due in validated_epochs(length, every, validations))
    return is_due and length - epoch >= half


def _part(length: int, every: int, validations: int) -> int:
    return max(every, -(-length // validations))
