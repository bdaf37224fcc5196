"""Grid search: every combination of a few values per dimension."""

from __future__ import annotations

import math

from automonai.domain.configuration import Configuration
from automonai.domain.run import Origin
from automonai.domain.seeds import derive_seed
from automonai.search.sampler import History, Proposal, propose_standard
from automonai.search.space import SearchSpace
from automonai.spec import Dimension, IntegerRange, RealRange, Scalar

_GOLDEN = (math.sqrt(5) - 1) / 2


class GridSampler:
    """Takes the points of a full factorial grid in an order that covers it evenly from the start; then None.

    The order steps by the golden section of the grid's size, as a low-discrepancy sequence does, so a search
    that ends early has seen every value of every dimension about equally often. The seed says where it
    starts.
    """

    def __init__(self, space: SearchSpace, *, points: int, seed: int) -> None:
        """Store the space, the number of values taken from each range, and the study's seed."""
        self._space = space
        self._points = points
        self._seed = seed

    @property
    def size(self) -> int:
        """Return the number of points of the grid, the standard not counted unless it lies on it."""
        return math.prod(len(axis) for axis in self._axes().values())

    def propose(self, history: History, *, index: int, budget_epochs: int) -> Proposal | None:
        standard = propose_standard(self._space.standard, history, index=index)
        if standard is not None:
            return standard
        known = history.configurations
        axes, size = self._axes(), self.size
        start, stride = derive_seed(self._seed, "grid") % size, _coprime_stride(size)
        for step in range(size):
            configuration = self._point(axes, (start + step * stride) % size)
            if configuration not in known:
                return Proposal(configuration=configuration, origin=Origin.GRID)
        return None

    def _axes(self) -> dict[str, tuple[Scalar, ...]]:
        return {name: _levels(entry, self._points) for name, entry in self._space.dimensions.items()}

    def _point(self, axes: dict[str, tuple[Scalar, ...]], flat: int) -> Configuration:
        values: dict[str, Scalar] = {}
        for name, levels in axes.items():
            flat, position = divmod(flat, len(levels))
            values[name] = levels[position]
        return self._space.configuration(values)


def _levels(dimension: Dimension, points: int) -> tuple[Scalar, ...]:
    """Return the values that the grid takes: all choices, or `points` of a range, ends included."""
    if not isinstance(dimension, IntegerRange | RealRange):
        return dimension.values
    steps = [step / (points - 1) for step in range(points)]
    low, high = dimension.low, dimension.high
    if dimension.log:
        reals = [low * (high / low) ** step for step in steps]
    else:
        reals = [low + (high - low) * step for step in steps]
    if isinstance(dimension, IntegerRange):
        return tuple(sorted({math.floor(real + 0.5) for real in reals}))
    return tuple(reals)


def _coprime_stride(size: int) -> int:
    """Return the number nearest below the golden section of `size` that shares no divisor with it."""
    stride = max(1, round(size * _GOLDEN))
    while math.gcd(stride, size) != 1:
        stride -= 1
    return stride
