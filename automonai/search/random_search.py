"""Random search; behind successive halving it makes HyperBand."""

from __future__ import annotations

from automonai.domain.run import Origin
from automonai.domain.seeds import derive_seed
from automonai.search.sampler import History, Proposal, propose_standard
from automonai.search.space import SearchSpace


class RandomSampler:
    """Draws every configuration uniformly from the space, none twice."""

    def __init__(self, space: SearchSpace, *, seed: int) -> None:
        """Store the space and the study's seed."""
        self._space = space
        self._seed = seed

    def propose(self, history: History, *, index: int, budget_epochs: int) -> Proposal | None:
        standard = propose_standard(self._space.standard, history, index=index)
        if standard is not None:
            return standard
        seed = derive_seed(self._seed, "proposal", index)
        configuration = self._space.draw_new(seed, known=history.configurations)
        if configuration is None:
            return None
        return Proposal(configuration=configuration, origin=Origin.RANDOM)
