from collections.abc import Iterator

import pytest

from automonai.domain.events import RunLost, SearchEnded
from automonai.domain.run import LossCause
from automonai.errors import CorruptObjectError
from automonai.storage import keys
from automonai.storage.journal import Journal
from automonai.storage.memory import MemoryStore


def test_events_come_back_in_order_from_another_journal_over_the_same_store() -> None:
    store = MemoryStore()
    events = [RunLost(at=float(n), run_id=f"run-{n}", cause=LossCause.CRASH, why="gone") for n in range(12)]
    journal = Journal(store)
    for event in events:
        journal.append(event)
    assert Journal(store).read() == events


def test_a_successor_appends_after_what_is_there() -> None:
    store = MemoryStore()
    Journal(store).append(SearchEnded(at=1, why="a"))
    Journal(store).append(SearchEnded(at=2, why="b"))
    assert [event.at for event in Journal(store).read()] == [1, 2]


def test_events_of_one_append_are_there_together_or_not_at_all() -> None:
    store = MemoryStore()
    Journal(store).append(SearchEnded(at=1, why="a"), SearchEnded(at=2, why="b"))
    assert list(store.list(keys.JOURNAL)) == [keys.journal_entry(1)]


class CountingStore(MemoryStore):
    """Remembers what was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def get(self, key: str) -> bytes:
        self.asked.append(key)
        return super().get(key)

    def list(self, prefix: str = "") -> Iterator[str]:
        self.asked.append(f"{prefix}*")
        return super().list(prefix)


def test_a_reader_that_follows_gets_each_event_once_and_asks_for_no_older_one() -> None:
    store = CountingStore()
    writer, reader = Journal(store), Journal(store)
    writer.append(SearchEnded(at=1, why="a"))
    assert [event.at for event in reader.read_new()] == [1]
    writer.append(SearchEnded(at=2, why="b"), SearchEnded(at=3, why="c"))
    writer.append(SearchEnded(at=4, why="d"))
    store.asked.clear()
    assert [event.at for event in reader.read_new()] == [2, 3, 4]
    assert store.asked == [keys.journal_entry(number) for number in (2, 3, 4)]
    assert reader.read_new() == []
    assert store.asked[3:] == [keys.journal_entry(4)]


def test_a_reader_may_follow_from_before_the_first_event() -> None:
    store = MemoryStore()
    reader = Journal(store)
    assert reader.read_new() == []
    Journal(store).append(SearchEnded(at=1, why="a"))
    assert [event.at for event in reader.read_new()] == [1]


def test_a_gap_is_an_error_that_names_the_missing_entry() -> None:
    store = MemoryStore()
    for number in (1, 3):
        store.put(keys.journal_entry(number), b'{"version":1,"events":[]}')
    with pytest.raises(CorruptObjectError, match="00000002"):
        Journal(store).read()


@pytest.mark.parametrize("content", [b"", b"{", b'{"version":2,"events":[]}', b'{"version":1,"events":[{"kind":"x"}]}'])
def test_an_entry_that_is_no_event_list_of_this_version_is_an_error(content: bytes) -> None:
    store = MemoryStore()
    store.put(keys.journal_entry(1), content)
    with pytest.raises(CorruptObjectError, match="00000001"):
        Journal(store).read()
