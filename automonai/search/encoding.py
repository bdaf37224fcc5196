"""The search space as ConfigSpace sees it: numbers in ranges and positions of choices."""

from __future__ import annotations

from collections.abc import Mapping

from ConfigSpace import ConfigurationSpace
from ConfigSpace.hyperparameters import (
    CategoricalHyperparameter,
    Hyperparameter,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)

from automonai.domain.configuration import Configuration
from automonai.search.space import SearchSpace, significant
from automonai.spec import Choice, Dimension, IntegerRange, Ordered, RealRange, Scalar


def config_space(space: SearchSpace, *, seed: int = 0) -> ConfigurationSpace:
    """Return ConfigSpace's form of the space; `encode` and `decode` translate its points.

    Ordered values and choices are their positions: HpBandSter takes no ordinals, and ConfigSpace would turn
    the values of a choice into numpy's own types.
    """
    encoded = ConfigurationSpace(seed=seed)
    encoded.add([_hyperparameter(name, dimension) for name, dimension in space.dimensions.items()])
    return encoded


def encode(space: SearchSpace, configuration: Configuration) -> dict[str, int | float]:
    """Return a point of the space in ConfigSpace's values."""
    values = space.values(configuration)
    return {name: _encoded(dimension, values[name]) for name, dimension in space.dimensions.items()}


def decode(space: SearchSpace, values: Mapping[str, int | float]) -> Configuration:
    """Return the point of ConfigSpace's values, in plain Python types whatever scalars they are."""
    return space.configuration(
        {name: _decoded(dimension, values[name]) for name, dimension in space.dimensions.items()}
    )


def _hyperparameter(name: str, dimension: Dimension) -> Hyperparameter:
    match dimension:
        case IntegerRange(low=low, high=high, log=log):
            return UniformIntegerHyperparameter(name, low, high, log=log)
        case RealRange(low=low, high=high, log=log):
            return UniformFloatHyperparameter(name, significant(low), significant(high), log=log)
        case Ordered(values=values):
            return UniformIntegerHyperparameter(name, 0, len(values) - 1)
        case Choice(values=values):
            return CategoricalHyperparameter(name, list(range(len(values))))


def _encoded(dimension: Dimension, value: Scalar) -> int | float:
    if isinstance(dimension, Ordered | Choice):
        return dimension.values.index(value)
    return int(value) if isinstance(dimension, IntegerRange) else float(value)


def _decoded(dimension: Dimension, value: int | float) -> Scalar:
    return dimension.values[int(value)] if isinstance(dimension, Ordered | Choice) else value
