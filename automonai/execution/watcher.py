"""A thread that keeps a watch on one kind of object open, whatever becomes of the connection."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from automonai.errors import ClusterError
from automonai.execution.cluster_api import GONE, ClusterApi, Stream, WatchEvent
from automonai.execution.cluster_objects import Change, Job, Kind, Pod

logger = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 10.0
SHORT_SECONDS = 1.0
"""A watch that ends sooner, though without an error, is a server or proxy that does not keep watches open."""


@dataclass(frozen=True)
class Relisted:
    """Everything of a kind that there is: what is not in it is gone."""

    kind: Kind
    objects: tuple[Job | Pod, ...]


News = WatchEvent | Relisted


class Watcher:
    """Lists, then watches, and goes on where it was after a break; after 410 Gone it lists anew."""

    def __init__(self, api: ClusterApi, kind: Kind, selector: str, tell: Callable[[News], None]) -> None:
        """Remember what to watch and whom to tell.

        Args:
            api: The cluster.
            kind: Of the objects.
            selector: Their labels.
            tell: Gets a Relisted first, then every change, from the thread.
        """
        self.kind = kind
        self.relists = 0
        """How often everything was listed."""
        self._api, self._selector, self._tell = api, selector, tell
        self._stopping = threading.Event()
        self._stream: Stream | None = None
        self._seen: str | None = None
        self._failures = 0
        """Breaks in a row without a change between them."""
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"watch-{kind}")

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def is_watching(self) -> bool:
        """Whether the thread is at work, be it on its way back after a break; an error that nobody foresaw ends it."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread; safe to call twice."""
        self._stopping.set()
        stream = self._stream
        if stream is not None:
            stream.end()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                if self._seen is None:
                    self._seen = self._list()
                self._watch(self._seen)
                why = "it ended at once" if time.monotonic() - began < SHORT_SECONDS else ""
            except ClusterError as error:
                if error.status == GONE:
                    self._seen = None
                why = str(error)
            if why and not self._stopping.is_set():
                self._failures += 1
                logger.warning("watching %s: %s; trying again", self.kind, why)
                self._stopping.wait(pause_seconds(self._failures))

    def _list(self) -> str:
        listing = self._api.list(self.kind, self._selector)
        self.relists += 1
        self._tell(Relisted(self.kind, listing.objects))
        return listing.resource_version

    def _watch(self, version: str) -> None:
        """Pass on changes until the server ends the watch; `_seen` then says where to go on."""
        self._stream = self._api.watch(self.kind, self._selector, version)
        if self._stopping.is_set():  # `stop` may have looked before there was a stream to end
            self._stream.end()
        try:
            for event in self._stream:
                self._failures = 0
                self._seen = event.object.metadata.resource_version
                if event.change is not Change.BOOKMARK:
                    self._tell(event)
        finally:
            self._stream = None


def pause_seconds(failures: int) -> float:
    """Return how long to wait before the next try: doubled each time, bounded, with jitter."""
    return min(LONGEST_PAUSE_SECONDS, 0.25 * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)
