"""One writer per study on one machine: a file lock that the controller's workers inherit."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from automonai.errors import StudyLockedError
from automonai.storage.local import unwritable

ORPHANS_SECONDS = 60.0
"""How long a killed controller's workers may take to commit and leave before this counts as locked."""


@contextmanager
def locked(folder: Path, *, study: str | None = None) -> Iterator[int]:
    """Hold a study's lock; yield its file descriptor, which workers inherit.

    A controller that was killed leaves the lock to its workers until they have left too: they are waited for.

    Args:
        folder: Where the lock lies. It protects among the processes that see this folder.
        study: How messages call the study; None: by the folder.

    Raises:
        StudyLockedError: If another controller is alive, or a dead one's workers do not leave.
        StoreAccessError: If the folder cannot be made or written to.
    """
    descriptor = _opened(folder)
    try:
        _acquire(descriptor, study or str(folder))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        os.set_inheritable(descriptor, True)
        yield descriptor
    finally:
        os.close(descriptor)


def _opened(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise unwritable(folder, error) from error


def _acquire(descriptor: int, study: str) -> None:
    deadline = time.monotonic() + ORPHANS_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode() or "?"
            if owner.isdigit() and _is_alive(int(owner)):
                raise StudyLockedError(
                    f"{study} is being written by process {owner}; wait for it, or stop it with: kill {owner}"
                ) from None
            if time.monotonic() > deadline:
                raise StudyLockedError(
                    f"{study} is still used by workers of process {owner}, which is gone; end them"
                    " (they are called automonai.worker) and try again"
                ) from None
            time.sleep(0.2)
        else:
            return


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
