"""The Sampler port: which configuration to try next."""

from __future__ import annotations

from typing import Protocol

from automonai.domain.configuration import Configuration
from automonai.domain.records import Record
from automonai.domain.run import Origin


class Observation(Record):
    """One recorded result, as a sampler sees it."""

    trial: int
    configuration: Configuration
    budget_epochs: int
    loss: float
    """Infinite for a run that FAILED: a bad configuration."""


class History(Record):
    """All that a proposal may depend on."""

    observations: tuple[Observation, ...] = ()
    """In the order in which the runs ended."""
    pending: tuple[Configuration, ...] = ()
    """Configurations that were proposed and have no result yet."""


class Proposal(Record):
    """A configuration and where it came from."""

    configuration: Configuration
    origin: Origin
    model_budget_epochs: int | None = None
    """The budget whose model proposed it."""
    note: str = ""
    """Why a proposal fell back to a random draw; empty otherwise."""


class Sampler(Protocol):
    """Proposes configurations; the same history, index and budget always give the same answer."""

    def propose(self, history: History, *, index: int, budget_epochs: int) -> Proposal | None:
        """Propose trial number `index`, to start at `budget_epochs`; None when the space is exhausted (a grid's end)."""
        ...
