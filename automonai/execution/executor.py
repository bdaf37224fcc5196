"""The Executor port: where requests become results."""

from __future__ import annotations

from typing import Protocol, Self

from pydantic import model_validator

from automonai.domain.records import Record
from automonai.domain.request import EnsembleRequest, TrainRequest
from automonai.domain.run import LossCause


class Report(Record):
    """What became of a request: its result lies in the store, or it was lost."""

    run_id: str
    lost: str | None = None
    """Why the infrastructure lost it; None: `result.json` (or `ensemble.json`) has the answer."""
    cause: LossCause | None = None
    """What kind of reason that is; set if and only if it was lost."""

    @model_validator(mode="after")
    def _check_cause(self) -> Self:
        if (self.lost is None) is not (self.cause is None):
            raise ValueError(f"a report has why a run was lost ({self.lost}) and its cause ({self.cause}), or neither")
        return self


class Notice(Record):
    """What happened to a request that goes on: a worker took it up, or one was taken from it."""

    run_id: str
    cause: LossCause | None = None
    """Why its worker was taken away; None: a worker took it up."""
    why: str = ""
    """The cause in words, with the name of what was taken away; empty for a start."""


def left_without_answer(exit_code: int, last_words: str = "") -> str:
    """Return why a run is lost whose worker left by itself.

    Args:
        exit_code: The worker's, not negative.
        last_words: What the worker said of its end (its `--last-words`); empty where it could not.
    """
    why = f"its worker left with exit code {exit_code} and without a result"
    return f"{why}: {last_words}" if last_words else why


LONGEST_PAUSE_SECONDS = 300.0


def pause_before(strikes: int) -> float:
    """Return how long a lost run's next attempt waits, in its slot: what took it away may last, as a drive's absence.

    Nothing else gets the slot meanwhile, so that a search proposes the same whatever is lost.
    """
    return min(LONGEST_PAUSE_SECONDS, 5.0 * 4 ** (min(strikes, 9) - 1)) if strikes else 0.0


class Executor(Protocol):
    """Runs requests elsewhere and says what became of them; nothing of it raises for a run's own failure."""

    def free_slots(self) -> int:
        """Return how many more requests would start at once."""
        ...

    def submit(self, request: TrainRequest | EnsembleRequest) -> None:
        """Start a request, once a slot is free; one whose run id is already running is adopted, not started twice.

        One that was lost before waits a while first, longer each time.
        """
        ...

    def poll(self, timeout_seconds: float) -> list[Report]:
        """Return what ended since the last call, waiting at most so long for the first; each end is reported once."""
        ...

    def notices(self) -> list[Notice]:
        """Return what has happened to requests since the last call, ended ones included, each thing once.

        A start is told no later than the end. Each executor tells of it once per submit, so that a successor hears
        again of what it adopts; a request that has its answer already when it is submitted is not started.
        """
        ...

    def cancel(self, run_id: str) -> None:
        """Stop a request and free its slot; it is not reported any more."""
        ...

    def close(self) -> None:
        """Free all slots and resources; safe to call twice.

        What still runs is stopped where nobody could take it up again, else left to a successor that adopts it.
        """
        ...
