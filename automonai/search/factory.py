"""From the spec to its sampler."""

from __future__ import annotations

from automonai.search.grid import GridSampler
from automonai.search.random_search import RandomSampler
from automonai.search.sampler import Sampler
from automonai.search.space import search_space
from automonai.spec import SamplerName, SearchSpec


def make_sampler(search: SearchSpec) -> Sampler:
    """Return the sampler that the spec names, over its checked space.

    HyperBand and successive halving draw at random: what they add is the ladder, which is the study's.

    Raises:
        SpecError: If the space or the standard configuration breaks a rule, or BOHB has nothing to vary.
    """
    space = search_space(search)
    match search.sampler:
        case SamplerName.BOHB:
            from automonai.search.bohb import BohbSampler

            return BohbSampler(space, seed=search.seed, random_fraction=search.random_fraction)
        case SamplerName.GRID:
            return GridSampler(space, points=search.grid_points, seed=search.seed)
        case SamplerName.RANDOM | SamplerName.HYPERBAND | SamplerName.SUCCESSIVE_HALVING:
            return RandomSampler(space, seed=search.seed)
