"""The search space: what of a configuration varies, drawn, checked and counted in plain Python values."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from automonai.domain.configuration import HYPERPARAMETERS, Configuration
from automonai.domain.seeds import derive_seed
from automonai.errors import SpecError
from automonai.spec import (
    Choice,
    Dimension,
    IntegerRange,
    Ordered,
    RealRange,
    Scalar,
    SearchSpec,
    explain,
)

SIGNIFICANT_DIGITS = 6
"""Reals are rounded to so many digits: a configuration equals itself after any encoding and after JSON."""
_REDRAWS = 20
_ENUMERABLE = 100_000
"""Finite spaces of up to so many points are searched for what is left when redrawing finds nothing new."""


@dataclass(frozen=True)
class SearchSpace:
    """The dimensions that vary, around the standard configuration.

    Build it by `search_space`, which checks it. A point is the standard with other values in them.
    """

    dimensions: Mapping[str, Dimension]
    """In the order of Configuration's fields; without fixed hyperparameters."""
    standard: Configuration

    @property
    def size(self) -> int | None:
        """Return the number of points; None if a real number varies."""
        counts = [_count(dimension) for dimension in self.dimensions.values()]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def configuration(self, values: Mapping[str, Scalar]) -> Configuration:
        """Return the point with these values, reals rounded to their significant digits.

        Args:
            values: One value per dimension; numpy's scalars become plain ones.
        """
        plain = {name: _plain(dimension, values[name]) for name, dimension in self.dimensions.items()}
        return Configuration.model_validate({**dict(self.standard), **plain})

    def values(self, configuration: Configuration) -> dict[str, Scalar]:
        """Return the values of the dimensions that vary, as the spec writes them."""
        return {name: _written(configuration, name) for name in self.dimensions}

    def contains(self, configuration: Configuration) -> bool:
        """Return whether the configuration is a point of this space, what is fixed included."""
        return self.problem(configuration) is None

    def problem(self, configuration: Configuration) -> str | None:
        """Return the first reason why a configuration is no point of this space; None if it is one."""
        for name in HYPERPARAMETERS:
            value = _written(configuration, name)
            if name in self.dimensions:
                if not _lies_in(self.dimensions[name], value):
                    return f"{name}: {value!r} is not in {_describe(self.dimensions[name])}"
            elif value != _written(self.standard, name):
                return f"{name}: {value!r} is not the fixed {_written(self.standard, name)!r}"
        return None

    def draw(self, seed: int) -> Configuration:
        """Return a uniformly drawn point; ranges with `log` are uniform on that scale."""
        generator = np.random.default_rng(seed)
        return self.configuration({name: _draw(dimension, generator) for name, dimension in self.dimensions.items()})

    def draw_new(self, seed: int, *, known: Collection[Configuration]) -> Configuration | None:
        """Return a drawn point that is not known yet; None when every point of a finite space is known."""
        for attempt in range(_REDRAWS):
            configuration = self.draw(derive_seed(seed, "redraw", attempt))
            if configuration not in known:
                return configuration
        if self.size is None or self.size > _ENUMERABLE:
            return configuration
        left = [point for point in self._points() if point not in known]
        return left[seed % len(left)] if left else None

    def _points(self) -> Iterator[Configuration]:
        axes = [range(_count(dimension) or 0) for dimension in self.dimensions.values()]
        for flat in range(math.prod(len(axis) for axis in axes)):
            positions = np.unravel_index(flat, [len(axis) for axis in axes]) if axes else ()
            yield self.configuration(
                {
                    name: _at(dimension, int(position))
                    for (name, dimension), position in zip(self.dimensions.items(), positions, strict=True)
                }
            )


def search_space(search: SearchSpec) -> SearchSpace:
    """Return the spec's search space, every rule checked.

    Raises:
        SpecError: If a name is unknown, a value is one that no pipeline takes or is there twice, or the
            standard configuration lies outside; the message names the field.
    """
    for name, entry in search.space.items():
        _check_entry(name, entry)
    named = {name: search.space[name] for name in HYPERPARAMETERS if name in search.space}
    dimensions = {
        name: entry for name, entry in named.items() if isinstance(entry, IntegerRange | RealRange | Ordered | Choice)
    }
    space = SearchSpace(dimensions, standard_configuration(search))
    problem = space.problem(space.standard)
    if problem:
        raise SpecError(f"search.standard.{problem}; name in search.standard a value that the space has")
    return space


def standard_configuration(search: SearchSpec) -> Configuration:
    """Return the configuration that is tried first: the package's, the space's fixed values, search.standard.

    Raises:
        SpecError: If `search.standard` has an unknown name, an impossible value, or contradicts a fixed one.
    """
    for name, value in search.standard.items():
        where = f"search.standard.{name}"
        _check_value(where, name, value)
        fixed = search.space.get(name)
        if isinstance(fixed, bool | int | float | str) and fixed != value:
            raise SpecError(f"{where}: {value!r} contradicts search.space.{name}, which fixes it at {fixed!r}")
    fixed_values = {n: v for n, v in search.space.items() if isinstance(v, bool | int | float | str)}
    values: dict[str, Scalar] = {**fixed_values, **search.standard}
    return Configuration.model_validate(
        {name: significant(value) if type(value) is float else value for name, value in values.items()}
    )


def significant(value: float) -> float:
    """Return a real number rounded to the digits that a configuration keeps."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def _check_entry(name: str, entry: Dimension | Scalar) -> None:
    where = f"search.space.{name}"
    match entry:
        case IntegerRange() | RealRange():
            _check_value(f"{where}.low", name, entry.low)
            _check_value(f"{where}.high", name, entry.high)
            if isinstance(entry, RealRange):
                if significant(entry.low) == significant(entry.high):
                    raise SpecError(
                        f"{where}: {entry.low!r} and {entry.high!r} are one value in the {SIGNIFICANT_DIGITS} digits"
                        " that a configuration keeps; write that value alone"
                    )
                # A field of whole numbers takes 2.0 and 6.0, but not what lies between them.
                _check_value(where, name, entry.low + 0.3183 * (entry.high - entry.low))
        case Ordered() | Choice():
            for position, value in enumerate(entry.values):
                _check_value(f"{where}.values[{position}]", name, value)
                if value in entry.values[:position]:
                    raise SpecError(f"{where}.values: {value!r} is there twice; write each value once")
        case _:
            _check_value(where, name, entry)


def _check_value(where: str, name: str, value: Scalar) -> None:
    if name not in HYPERPARAMETERS:
        raise SpecError(f"{where}: there is no hyperparameter '{name}'; known: {', '.join(HYPERPARAMETERS)}")
    try:
        taken = _written(Configuration.model_validate({name: value}), name)
    except ValidationError as error:
        raise SpecError(f"{where}: {explain(error)}") from error
    if taken != value:
        raise SpecError(f"{where}: found {value!r} ({type(value).__name__}), expected it as {taken!r}")


def _written(configuration: Configuration, name: str) -> Scalar:
    value: Scalar = getattr(configuration, name)
    return str(value) if isinstance(value, str) else value


def _count(dimension: Dimension) -> int | None:
    match dimension:
        case IntegerRange():
            return dimension.high - dimension.low + 1
        case RealRange():
            return None
        case _:
            return len(dimension.values)


def _at(dimension: Dimension, position: int) -> Scalar:
    """Return the value at a position of a dimension that can be counted."""
    if isinstance(dimension, IntegerRange):
        return dimension.low + position
    assert not isinstance(dimension, RealRange)
    return dimension.values[position]


def _plain(dimension: Dimension, value: Scalar) -> Scalar:
    match dimension:
        case IntegerRange():
            return int(value)
        case RealRange():
            return min(max(significant(float(value)), significant(dimension.low)), significant(dimension.high))
        case _:
            return dimension.values[dimension.values.index(value)]


def _lies_in(dimension: Dimension, value: Scalar) -> bool:
    match dimension:
        case IntegerRange() | RealRange():
            return isinstance(value, int | float) and (
                significant(dimension.low) <= value <= significant(dimension.high)
            )
        case _:
            return value in dimension.values


def _describe(dimension: Dimension) -> str:
    if isinstance(dimension, IntegerRange | RealRange):
        return f"{dimension.low} to {dimension.high}"
    return "{" + ", ".join(str(value) for value in dimension.values) + "}"


def _draw(dimension: Dimension, generator: np.random.Generator) -> Scalar:
    match dimension:
        case IntegerRange(low=low, high=high):
            if not dimension.log:
                return int(generator.integers(low, high + 1))
            # Half a step on both sides, so that the ends are as likely as the scale says.
            drawn = math.exp(generator.uniform(math.log(low - 0.5), math.log(high + 0.5)))
            return min(max(round(drawn), low), high)
        case RealRange(low=low, high=high):
            if not dimension.log:
                return float(generator.uniform(low, high))
            return math.exp(generator.uniform(math.log(low), math.log(high)))
        case _:
            return dimension.values[int(generator.integers(len(dimension.values)))]
