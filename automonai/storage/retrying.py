"""Trying again where a service fails for a while: exponential back-off with full jitter, bounded in total."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A generator of its own: the global one belongs to the training, whose numbers must not depend on the network's health.
_jitter = random.Random()


def _draw(limit: float) -> float:
    return _jitter.uniform(0.0, limit)


@dataclass(frozen=True)
class Retrying:
    """How long and how often to try again ("Exponential Backoff and Jitter", AWS Architecture Blog 2015)."""

    first_seconds: float = 0.2
    """Limit of the first wait; each wait is drawn between 0 and its limit, and the limit doubles."""
    longest_seconds: float = 10.0
    patience_seconds: float = 120.0
    """Give up when so much time has gone since the first failure: a restarted server is back well within it."""
    least_tries: int = 4
    """Before giving up, however long each took: one try of a large upload may outlast the patience."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[float], float] = _draw
    """Returns a number between 0 and its argument."""

    def call(self, work: Callable[[], T], *, transient: Callable[[Exception], str | None]) -> T:
        """Return what `work` returns; its last error is raised when it is not transient or the patience is over.

        Args:
            work: Safe to repeat.
            transient: Says in a few words what failed if trying again may help; None if not.
        """
        failing_since: float | None = None
        for tries in itertools.count(1):
            try:
                return work()
            except Exception as error:
                why = transient(error)
                now = self.clock()
                failing_since = now if failing_since is None else failing_since
                wait = self.draw(min(self.longest_seconds, self.first_seconds * 2 ** min(tries - 1, 30)))
                is_over = tries >= self.least_tries and now + wait - failing_since > self.patience_seconds
                if why is None or is_over:
                    raise
                logger.warning("%s; try %d in %.1f s", why, tries + 1, wait)
            self.sleep(wait)
        raise AssertionError("the loop ends by return or raise")
