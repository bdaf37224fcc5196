"""The Executor port: where requests become results."""

from __future__ import annotations

from typing import Protocol

from automonai.domain.records import Record
from automonai.domain.request import EnsembleRequest, TrainRequest


class Report(Record):
    """What became of a request: its result lies in the store, or it was lost."""

    run_id: str
    lost: str | None = None
    """Why the infrastructure lost it; None: `result.json` (or `ensemble.json`) has the answer."""


class Executor(Protocol):
    """Runs requests elsewhere and says what became of them; nothing of it raises for a run's own failure."""

    def free_slots(self) -> int:
        """Return how many more requests would start at once."""
        ...

    def submit(self, request: TrainRequest | EnsembleRequest) -> None:
        """Start a request; one whose run id is already running is adopted, not started twice."""
        ...

    def poll(self, timeout_seconds: float) -> list[Report]:
        """Return what ended since the last call, waiting at most so long for the first; each end is reported once."""
        ...

    def cancel(self, run_id: str) -> None:
        """Stop a request and free its slot; it is not reported any more."""
        ...

    def close(self) -> None:
        """Free all slots and resources; safe to call twice.

        What still runs is stopped where nobody could take it up again, else left to a successor that adopts it.
        """
        ...
