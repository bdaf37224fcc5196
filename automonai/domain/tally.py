"""How far a training has come in this process, and how fast."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tally:
    """What a run has done since its process took it up; an earlier process's part of it is not counted."""

    steps: int = 0
    patches: int = 0
    """In the batches of these steps; the last batch of an epoch may be smaller than the plan's."""
    seconds: float = 0.0
    """Training and validation, start-up and preprocessing excluded."""
    data_wait_seconds: float = 0.0
    """Of `seconds`: the loop waited for the next batch."""
    step_seconds: float = 0.0
    """Of `seconds`: the optimiser's steps, from the batch to its loss and gradient."""

    @property
    def patches_per_second(self) -> float | None:
        """Return the mean rate, validations included; None before the first step."""
        return self.patches / self.seconds if self.steps else None

    @property
    def training_seconds(self) -> float:
        """Return the time of the steps and of waiting for their batches."""
        return self.data_wait_seconds + self.step_seconds
