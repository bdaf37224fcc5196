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

    @property
    def configurations(self) -> frozenset[Configuration]:
        """Return every configuration that was tried or is being tried."""
        return frozenset((*(item.configuration for item in self.observations), *self.pending))


class Proposal(Record):
    """A configuration and where it came from."""

    configuration: Configuration
    origin: Origin
    model_budget_epochs: int | None = None
    """The budget whose model proposed it."""
    note: str = ""
    """Why a proposal fell back to a random draw; empty otherwise."""


class Sampler(Protocol):
    """Proposes configurations; the same history, index and budget always give the same answer.

    Trial 0 is the standard configuration, unless the history has it already. No proposal repeats one of the
    history's configurations, pending ones included.
    """

    def propose(self, history: History, *, index: int, budget_epochs: int) -> Proposal | None:
        """Propose trial number `index`, to start at `budget_epochs`; None when no point is left."""
        ...


def propose_standard(standard: Configuration, history: History, *, index: int) -> Proposal | None:
    """Return the proposal of trial 0; None for every other trial, or if the history has the standard."""
    if index != 0 or standard in history.configurations:
        return None
    return Proposal(configuration=standard, origin=Origin.STANDARD)
