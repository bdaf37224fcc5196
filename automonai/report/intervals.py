"""Means over cases with 95 % confidence intervals by the bootstrap."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from automonai.domain.records import Record

RESAMPLES = 5000
_FEWEST_FOR_BCA = 8
"""BCa's acceleration comes from a jackknife, which says little about fewer cases."""


class Interval(Record):
    """A mean over cases with its 95 % confidence interval."""

    mean: float | None
    """None if no case has the figure."""
    low: float | None
    """Lower end of the interval; None for fewer than two cases."""
    high: float | None
    """Upper end of the interval; None for fewer than two cases."""
    median: float | None
    """Over the cases that have the figure; None if none has."""
    cases: int
    """Cases that have the figure."""
    undefined: int
    """Cases in which it has no meaning, such as the distance to a structure that is not there."""


def interval_of(values: Sequence[float | None], *, seed: int) -> Interval:
    """Return the mean of one figure over the cases that have it."""
    defined = np.array([value for value in values if value is not None and np.isfinite(value)])
    low, high = _bounds(defined[:, None], seed)
    return Interval(
        mean=float(defined.mean()) if defined.size else None,
        low=low,
        high=high,
        median=float(np.median(defined)) if defined.size else None,
        cases=int(defined.size),
        undefined=len(values) - int(defined.size),
    )


def interval_of_class_means(rows: Sequence[Sequence[float | None]], *, seed: int) -> Interval:
    """Return the mean over classes of their means over cases; whole cases are resampled.

    Args:
        rows: One per case, with the case's figure of each class; None where it has no meaning.
        seed: Of the resampling.
    """
    table = np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=float)
    table = table.reshape(len(rows), len(rows[0]) if rows else 0)
    table = table[np.isfinite(table).any(axis=1)]
    low, high = _bounds(table, seed)
    per_case = [float(np.nanmean(row)) for row in table]
    return Interval(
        mean=float(_mean_of_means(*table.T, axis=0)) if table.size else None,
        low=low,
        high=high,
        median=float(np.median(per_case)) if per_case else None,
        cases=len(table),
        undefined=len(rows) - len(table),
    )


def _mean_of_means(*classes: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Return the mean of the classes' means; a class that a resample misses altogether does not count."""
    sums = np.stack([np.nansum(values, axis=axis) for values in classes])
    counts = np.stack([np.isfinite(values).sum(axis=axis) for values in classes])
    means = sums / np.maximum(counts, 1)
    result: NDArray[np.float64] = means.sum(axis=0) / (counts > 0).sum(axis=0)
    return result


def _bounds(table: NDArray[np.float64], seed: int) -> tuple[float | None, float | None]:
    if len(table) < 2:
        return None, None
    from scipy.stats import bootstrap  # takes most of a second to import, and `status` rarely needs it

    if all(np.nanmax(column) == np.nanmin(column) for column in table.T if np.isfinite(column).any()):
        constant = float(_mean_of_means(*table.T, axis=0))
        return constant, constant
    methods: tuple[Literal["BCa", "percentile"], ...] = (
        ("BCa", "percentile") if len(table) >= _FEWEST_FOR_BCA else ("percentile",)
    )
    for method in methods:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a degenerate BCa says so by NaN as well
            found = bootstrap(
                list(table.T),
                _mean_of_means,
                paired=True,
                n_resamples=RESAMPLES,
                method=method,
                random_state=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite(found.low) and np.isfinite(found.high):
            break
    return float(found.low), float(found.high)
