"""Telling whoever counts of every request to a store that is reached over a network, those that fail included."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

T = TypeVar("T")

Operation = Literal["get", "put", "head", "list", "delete"]
DONE = "2xx"
"""The code of what was done; the client does not tell which of them it was."""


@dataclass(frozen=True)
class Request:
    """One try of an operation; what takes several messages, as a large upload does, is one request."""

    operation: Operation
    code: str
    """`2xx`; the answer's HTTP status; or `unanswered`, `no_identity`, `corrupt`."""
    seconds: float
    sent_bytes: int = 0
    """Of the object; 0 for a try that failed."""
    received_bytes: int = 0
    """Of the object; 0 for a try that failed."""


class Observer(Protocol):
    """Hears of requests from whichever thread made them; it must not raise."""

    def on_request(self, request: Request) -> None:
        """Take note of a request that has ended."""
        ...


_observers: list[Observer] = []
"""Of the whole process: many parts of it open stores of their own."""


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Tell an observer of all requests that this process makes meanwhile."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers[:] = [other for other in _observers if other is not observer]


def observed(
    work: Callable[[], T],
    *,
    operation: Operation,
    code_of: Callable[[Exception], str],
    sent_bytes: int = 0,
    received_bytes: Callable[[T], int] = lambda _: 0,
) -> T:
    """Do one request, tell the observers, and return or raise what came of it.

    Args:
        work: Makes the request.
        operation: What it is.
        code_of: Says what kind of failure an error is.
        sent_bytes: Of the object that `work` sends.
        received_bytes: Says how much there is in what `work` returned.
    """
    began = time.monotonic()
    try:
        answer = work()
    except Exception as error:
        _tell(Request(operation=operation, code=code_of(error), seconds=time.monotonic() - began))
        raise
    seconds, received = time.monotonic() - began, received_bytes(answer)
    _tell(Request(operation, DONE, seconds, sent_bytes=sent_bytes, received_bytes=received))
    return answer


def _tell(request: Request) -> None:
    for observer in tuple(_observers):
        observer.on_request(request)
