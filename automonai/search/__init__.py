"""What to try next: the search space and the samplers that propose its points.

`make_sampler` is the way in; it loads HpBandSter (a second) only for BOHB.
"""

from automonai.search.factory import make_sampler
from automonai.search.sampler import History, Observation, Proposal, Sampler
from automonai.search.space import SearchSpace, search_space, standard_configuration

__all__ = [
    "History",
    "Observation",
    "Proposal",
    "Sampler",
    "SearchSpace",
    "make_sampler",
    "search_space",
    "standard_configuration",
]
