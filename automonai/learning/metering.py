"""What a training tells whoever watches it: numbers that it has anyway."""

from __future__ import annotations

from typing import Protocol

from automonai.domain.run import CurvePoint
from automonai.domain.tally import Tally


class Meter(Protocol):
    """Hears of a training from the thread that trains; whatever it does delays the next step."""

    def stepped(self, tally: Tally, *, epoch: int, loss: float) -> None:
        """Take note of a step: what was done until now, the epoch at hand and the step's loss."""
        ...

    def validated(self, tally: Tally, point: CurvePoint) -> None:
        """Take note of a validation; its time is in the tally."""
        ...

    def committed(self, *, seconds: float, size_bytes: int) -> None:
        """Take note of a checkpoint that counts from now on: how long it took to write, and its file's size."""
        ...


class Unmetered:
    """A meter that takes no note."""

    def stepped(self, tally: Tally, *, epoch: int, loss: float) -> None:
        pass

    def validated(self, tally: Tally, point: CurvePoint) -> None:
        pass

    def committed(self, *, seconds: float, size_bytes: int) -> None:
        pass


UNMETERED = Unmetered()
