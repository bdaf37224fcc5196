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


class EpochMeter:
    """Counts the epochs that a run has trained, and passes everything on."""

    def __init__(self, meter: Meter) -> None:
        """Remember whom to tell."""
        self._meter = meter
        self._first = self._last = 0

    @property
    def epochs(self) -> int:
        """Return how many epochs were trained to their end since this began."""
        return self._last - self._first

    def stepped(self, tally: Tally, *, epoch: int, loss: float) -> None:
        self._first, self._last = self._first or epoch, epoch
        self._meter.stepped(tally, epoch=epoch, loss=loss)

    def validated(self, tally: Tally, point: CurvePoint) -> None:
        self._meter.validated(tally, point)

    def committed(self, *, seconds: float, size_bytes: int) -> None:
        self._meter.committed(seconds=seconds, size_bytes=size_bytes)
