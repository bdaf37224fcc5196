"""The Store port: bytes and files under relative keys such as `runs/trial-0001/result.json`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import ValidationError

from automonai.domain.records import Record
from automonai.errors import CorruptObjectError
from automonai.spec import explain

R = TypeVar("R", bound=Record)


class Store(Protocol):
    """Objects under keys with `/` between their parts; a put is whole or absent, and replaces what was there.

    A key has no empty part, no `.` and no `..`; others raise ValueError.
    """

    def get(self, key: str) -> bytes:
        """Return an object's content.

        Raises:
            ObjectNotFoundError: If there is none.
        """
        ...

    def put(self, key: str, content: bytes) -> None:
        """Write an object; after return it survives a crash."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is an object under that key."""
        ...

    def sha256(self, key: str) -> str | None:
        """Return the SHA-256 of an object's content in hexadecimal digits; None if it is not there or not known."""
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that start with `prefix`, in ascending order."""
        ...

    def upload(self, source: Path, key: str) -> None:
        """Write a file's content as an object without holding it in memory."""
        ...

    def download(self, key: str, destination: Path) -> None:
        """Write an object's content to a file, whole or not at all.

        Raises:
            ObjectNotFoundError: If there is none.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...


def read_record(store: Store, key: str, kind: type[R]) -> R:
    """Return the record that an object holds.

    Raises:
        ObjectNotFoundError: If there is none.
        CorruptObjectError: If it holds something else, as an object of another version of this package does.
    """
    content = store.get(key)
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first, *more = explain(error).split("; ")
        others = f" (and {len(more)} more)" if more else ""
        raise CorruptObjectError(
            f"{key}: is no {kind.__name__} as this version of automonai writes it: {first}{others}; read it with the"
            " version that wrote it, or start anew under another name"
        ) from error
