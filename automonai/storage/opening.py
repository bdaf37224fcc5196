"""From a location, as users write it, to its store: a folder, or `s3://bucket/folder`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from automonai.errors import UserError
from automonai.storage.local import LocalStore
from automonai.storage.retrying import Retrying
from automonai.storage.store import Store

SCHEME = "s3://"


def is_remote(location: str | Path) -> bool:
    """Whether a location is in a bucket rather than a folder of this machine."""
    return isinstance(location, str) and location.startswith(SCHEME)


def open_store(location: str | Path, *, retrying: Retrying | None = None) -> Store:
    """Return the store at a location; nothing is read or made there yet.

    Args:
        location: A folder, or `s3://bucket/folder`.
        retrying: How a bucket's requests are tried again; None: as usual.

    Raises:
        UserError: If the location or the environment's S3 settings are malformed, or the S3 client is not installed.
    """
    if not is_remote(location):
        if str(location).startswith("s3:"):
            raise UserError(f"{location}: write s3://bucket/folder, in Python as text: a Path loses one of the slashes")
        return LocalStore(Path(location))
    try:
        from automonai.storage.s3 import S3Store
        from automonai.storage.s3_settings import S3Location, S3Settings
    except ModuleNotFoundError as error:
        raise UserError(
            f"{location}: {error.name} is not installed; install S3 support with: pip install '.[cluster]' in the clone"
        ) from error
    return S3Store(S3Location.parse(str(location)), S3Settings.from_environment(), retrying=retrying)


def join_location(location: str | Path, name: str) -> str:
    """Return the location of that name below another."""
    return f"{str(location).rstrip('/')}/{name}" if is_remote(location) else str(Path(location) / name)


def user_cache_folder() -> Path:
    """Return where what can be made anew is kept: `$XDG_CACHE_HOME/automonai`, else `~/.cache/automonai`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "automonai"


def gib_from_environment(variable: str) -> int | None:
    """Return the bytes that a variable states in GiB; None if it is not set.

    Raises:
        UserError: If it is no positive number.
    """
    text = os.environ.get(variable)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UserError(f"{variable} is '{text}'; expected a number of GiB, such as 100")
    return int(number * 2**30)


def place_on_this_machine(location: str | Path) -> Path:
    """Return the folder for a study's lock and its workers' logs: the study's own, or one in the user's cache.

    For a study in a bucket this folder is known on this machine only, and so is a lock in it.
    """
    if not is_remote(location):
        return Path(location)
    text = str(location).rstrip("/")
    return (
        user_cache_folder() / "studies" / f"{text.rpartition('/')[2]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    )
