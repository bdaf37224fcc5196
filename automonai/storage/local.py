"""A Store in a folder."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from automonai.errors import ObjectNotFoundError, StoreAccessError

UNFINISHED = ".writing-"
"""What the names of files begin with until they are whole."""


def _mode() -> int:
    """Return what the umask leaves of a file's rights; asked once, since asking sets it for all threads."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


_MODE = _mode()


@contextmanager
def exclusively(lock: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file's lock, which the system takes back if this process dies; make it and its folder if need be.

    Args:
        lock: The file.
        wait: Whether to wait for whoever has it.

    Yields:
        Whether it was got, which without waiting it may not be.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as stream:
        is_held = True
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            is_held = False
        yield is_held


def unwritable(folder: Path, error: OSError) -> StoreAccessError:
    """Return what to say of a folder that cannot be made or written to."""
    return StoreAccessError(f"{folder}: cannot be written to ({error.strerror}); name another place")


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, before anything is computed for it.

    Raises:
        StoreAccessError: Naming it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error


class LocalStore:
    """Objects as files below `root`; written beside their place, synced, then renamed."""

    def __init__(self, root: Path) -> None:
        """Remember the folder; it is made when something is first put."""
        self.root = root

    def get(self, key: str) -> bytes:
        try:
            return self.path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise ObjectNotFoundError(f"{key}: no such object in {self.root}") from error

    def put(self, key: str, content: bytes) -> None:
        self._write(key, lambda stream: stream.write(content))

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def sha256(self, key: str) -> str | None:
        path = self.path(key)
        return sha256_of(path) if path.is_file() else None

    def list(self, prefix: str = "") -> Iterator[str]:
        folder = self.root / prefix.rpartition("/")[0]
        found = (path.relative_to(self.root).as_posix() for path in folder.rglob("*") if _is_object(path))
        yield from sorted(key for key in found if key.startswith(prefix))

    def upload(self, source: Path, key: str) -> None:
        with source.open("rb") as content:
            self._write(key, lambda stream: shutil.copyfileobj(content, stream, 1 << 20))

    def download(self, key: str, destination: Path) -> None:
        source = self.path(key)
        if not source.is_file():
            raise ObjectNotFoundError(f"{key}: no such object in {self.root}")
        with source.open("rb") as content:
            write_whole(destination, lambda stream: shutil.copyfileobj(content, stream, 1 << 20))

    def delete(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    def path(self, key: str) -> Path:
        """Return the file that holds a key's object.

        Raises:
            ValueError: If the key is not a valid one.
        """
        check_key(key)
        return self.root / key

    def _write(self, key: str, write: Callable[[BinaryIO], object]) -> None:
        write_whole(self.path(key), write)


def check_key(key: str) -> None:
    """Refuse a key that is not a relative path of plain parts.

    Raises:
        ValueError: If a part is empty, `.` or `..`, or hidden behind a backslash.
    """
    if not key or "\\" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"'{key}' is not a key: parts between '/' must not be empty, '.' or '..'")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is there whole or not at all, and survives a crash of the machine once this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(_MODE)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def discard_unfinished(folder: Path) -> None:
    """Delete what writers that were killed have left below a folder; for whoever knows that none is at work there."""
    for path in folder.rglob(f"{UNFINISHED}*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def _is_object(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
