"""Keeps the cache of prepared cases within its bound: what was used longest ago goes, never what a process uses.

Each process notes what it uses in a file of its own, whose lock it holds until it ends: one descriptor however many
cases there are. A file whose lock is free is a dead process's.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from automonai.storage.local import UNFINISHED, exclusively
from automonai.storage.opening import gib_from_environment

logger = logging.getLogger(__name__)

LIMIT_VARIABLE = "AUTOMONAI_PREPARED_CACHE_GIB"
"""Names what all prepared cases of a folder may take; where it is not set there is no bound."""
_USERS, _LOCK, _EVICTED = "users", "room.lock", ".evicted-"


@dataclass
class _Note:
    """This process's list of what it uses of a folder."""

    descriptor: int
    names: set[str] = field(default_factory=set)


_notes: dict[tuple[int, Path], _Note] = {}
"""By process, as a fork inherits descriptors and locks, and cache folder."""


@contextmanager
def making(entry: Path) -> Iterator[Path]:
    """Hold an entry's lock, which the system takes back if this process dies; yield the folder to write it in."""
    with exclusively(_lock_of(entry)):
        yield entry.with_name(f"{UNFINISHED}{entry.name}")


def note_use(entry: Path) -> None:
    """Keep an entry, a folder, from being evicted until this process ends or forgets it; count it as used now.

    Raises:
        FileNotFoundError: If it is not there any more.
    """
    with exclusively(entry.parent / _LOCK):  # who evicts reads this note, or has taken the entry away before
        note = _note(entry.parent)
        os.utime(entry)
        if entry.name not in note.names:
            os.write(note.descriptor, f"{entry.name}\n".encode())
            note.names.add(entry.name)


def forget_uses(cache_folder: Path) -> None:
    """Let go of all entries that this process has noted: one that serves run after run needs only the last one's."""
    note = _notes.get((os.getpid(), cache_folder))
    if note is not None:
        with exclusively(cache_folder / _LOCK):
            os.ftruncate(note.descriptor, 0)
            note.names.clear()


def make_room(cache_folder: Path, needed_bytes: int, *, limit_bytes: int | None = None) -> None:
    """Evict entries until one more of that size fits under the bound; if too many are in use, go on all the same.

    What killed processes have left unfinished goes in any case.

    Args:
        cache_folder: Whose folders are the entries; those whose names begin with a dot are not finished.
        needed_bytes: Of the entry that is about to be written.
        limit_bytes: None: what LIMIT_VARIABLE says.

    Raises:
        UserError: If that is no positive number.
    """
    limit = gib_from_environment(LIMIT_VARIABLE) if limit_bytes is None else limit_bytes
    _take_unfinished_away(cache_folder)
    excess = 0 if limit is None else _evict_down_to(cache_folder, limit - needed_bytes)
    for remains in cache_folder.glob(f"{_EVICTED}*"):  # those of a killed process as well
        shutil.rmtree(remains, ignore_errors=True)
    if excess > 0:
        logger.warning(
            "%s: %s is exceeded by %.2f GiB: runs use what is there", cache_folder, LIMIT_VARIABLE, excess / 2**30
        )


def _evict_down_to(cache_folder: Path, allowed_bytes: int) -> int:
    """Take away what was used longest ago until no more than that is there; return what is there beyond it."""
    with exclusively(cache_folder / _LOCK):
        sizes = {entry: _size(entry) for entry in _entries(cache_folder)}
        excess = sum(sizes.values()) - allowed_bytes
        used = _in_use(cache_folder / _USERS) if excess > 0 else set()
        for entry in sorted(sizes, key=lambda entry: entry.stat().st_mtime):
            if excess > 0 and entry.name not in used:
                _take_away(entry)
                logger.debug("evicted %s", entry)
                excess -= sizes[entry]
    return excess


def _take_unfinished_away(cache_folder: Path) -> None:
    """Take away what a process began to write that does not live any more."""
    for unfinished in cache_folder.glob(f"{UNFINISHED}*"):
        entry = cache_folder / unfinished.name.removeprefix(UNFINISHED)
        with exclusively(_lock_of(entry), wait=False) as is_free:
            if is_free and unfinished.is_dir():
                _take_away(unfinished)


def _take_away(folder: Path) -> None:
    """Rename a folder whose lock the caller has: it is gone at once, however long its deletion will take."""
    folder.rename(folder.with_name(f"{_EVICTED}{folder.name.lstrip('.')}-{uuid.uuid4().hex[:8]}"))


def _entries(cache_folder: Path) -> Iterator[Path]:
    """Yield the finished entries; they are the folders that have a `case.json`."""
    return (
        folder
        for folder in cache_folder.iterdir()
        if not folder.name.startswith(".") and (folder / "case.json").is_file()
    )


def _size(entry: Path) -> int:
    return sum(file.stat().st_size for file in entry.iterdir())


def _note(cache_folder: Path) -> _Note:
    """Return this process's note; the caller has the lock, or another might take a new one for a dead process's."""
    owner = (os.getpid(), cache_folder)
    if owner not in _notes:
        users = cache_folder / _USERS
        users.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(users / uuid.uuid4().hex, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _notes[owner] = _Note(descriptor)
    return _notes[owner]


def _in_use(users: Path) -> set[str]:
    """Return the names of the entries that living processes use; forget the dead ones."""
    names: set[str] = set()
    for note in users.glob("*"):
        descriptor = os.open(note, os.O_RDWR)  # NFS refuses an exclusive lock on what is open for reading alone
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            note.unlink()
        except BlockingIOError:
            names |= set(note.read_text(encoding="ascii").split())
        finally:
            os.close(descriptor)
    return names


def _lock_of(entry: Path) -> Path:
    return entry.parent / "locks" / entry.name
