"""A Store in memory, for tests and dry runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from automonai.errors import ObjectNotFoundError
from automonai.storage.local import check_key, write_whole


class MemoryStore:
    """Objects in a dictionary of this process."""

    def __init__(self) -> None:
        """Start empty."""
        self._objects: dict[str, bytes] = {}

    def get(self, key: str) -> bytes:
        check_key(key)
        try:
            return self._objects[key]
        except KeyError as error:
            raise ObjectNotFoundError(f"{key}: no such object in memory") from error

    def put(self, key: str, content: bytes) -> None:
        check_key(key)
        self._objects[key] = content

    def exists(self, key: str) -> bool:
        check_key(key)
        return key in self._objects

    def sha256(self, key: str) -> str | None:
        check_key(key)
        content = self._objects.get(key)
        return None if content is None else hashlib.sha256(content).hexdigest()

    def list(self, prefix: str = "") -> Iterator[str]:
        yield from sorted(key for key in self._objects if key.startswith(prefix))

    def upload(self, source: Path, key: str) -> None:
        self.put(key, source.read_bytes())

    def download(self, key: str, destination: Path) -> None:
        content = self.get(key)
        write_whole(destination, lambda stream: stream.write(content))

    def delete(self, key: str) -> None:
        check_key(key)
        self._objects.pop(key, None)
