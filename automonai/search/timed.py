"""A sampler whose time is told: while it thinks, a free slot waits."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from automonai.search.sampler import History, Proposal, Sampler


class TimedSampler:
    """Proposes what another sampler proposes, and tells how many seconds that took."""

    def __init__(self, sampler: Sampler, on_proposal: Callable[[float], None]) -> None:
        """Remember who proposes, and whom to tell."""
        self._sampler = sampler
        self._on_proposal = on_proposal

    def propose(self, history: History, *, index: int, budget_epochs: int) -> Proposal | None:
        began = perf_counter()
        proposal = self._sampler.propose(history, index=index, budget_epochs=budget_epochs)
        self._on_proposal(perf_counter() - began)
        return proposal
