"""The journal: a study's ordered events as numbered objects, over any Store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from pydantic import ValidationError

from automonai.domain.events import Event
from automonai.domain.records import Record
from automonai.errors import CorruptObjectError, ObjectNotFoundError
from automonai.storage import keys
from automonai.storage.store import Store

READERS = 16
"""Entries read at once: a long journal is thousands of objects, and far storage takes its time for each."""


class _Entry(Record):
    version: Literal[1] = 1
    events: tuple[Event, ...]


class Journal:
    """Appends events, each call as one object, and reads them back in order. One writer at a time."""

    def __init__(self, store: Store) -> None:
        """Remember the store; nothing is read yet."""
        self._store = store
        self._last: int | None = None

    def read(self) -> list[Event]:
        """Return all events, oldest first; empty where there is no study.

        Raises:
            CorruptObjectError: If an entry is missing or does not hold events of a known version.
        """
        names = list(self._store.list(keys.JOURNAL))
        expected = [keys.journal_entry(number) for number in range(1, len(names) + 1)]
        if names != expected:
            missing = next(key for key in expected if key not in names)
            raise CorruptObjectError(f"the journal lacks {missing}; restore it from a backup")
        self._last = len(names)
        with ThreadPoolExecutor(READERS) as pool:
            return [event for entry in pool.map(self._entry, names) for event in entry.events]

    def read_new(self) -> list[Event]:
        """Return the events that were written since the last call of `read` or of this; it asks for no older ones.

        Raises:
            CorruptObjectError: If an entry does not hold events of a known version.
        """
        if self._last is None:
            return self.read()
        events: list[Event] = []
        while True:
            try:
                entry = self._entry(keys.journal_entry(self._last + 1))
            except ObjectNotFoundError:
                return events
            self._last += 1
            events += entry.events

    def append(self, *events: Event) -> None:
        """Write events; after return they survive a crash."""
        if self._last is None:
            self.read()
        self._last = (self._last or 0) + 1
        content = _Entry(events=events).model_dump_json(exclude_defaults=False)
        self._store.put(keys.journal_entry(self._last), content.encode())

    def _entry(self, key: str) -> _Entry:
        try:
            return _Entry.model_validate_json(self._store.get(key))
        except ValidationError as error:
            raise CorruptObjectError(f"{key} holds no events of version 1: {error}") from error
