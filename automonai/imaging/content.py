"""What files hold, as hashes: whether a case is still the one that it was, and which prepared case is its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from automonai.domain.dataset import Case, Dataset
from automonai.errors import DatasetError
from automonai.imaging.itk_headers import voxels_elsewhere
from automonai.storage.local import sha256_of, write_whole


def remembered_digest(path: Path, cache_folder: Path) -> str:
    """Return a file's SHA-256, from a note if it has not changed since: every start would hash all cases again.

    Raises:
        DatasetError: If it cannot be read.
    """
    try:
        status = path.stat()
        identity = f"{path.resolve()} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
        note = cache_folder / "digests" / hashlib.sha256(identity.encode()).hexdigest()[:32]
        if note.is_file():
            return note.read_text(encoding="ascii")
        digest = sha256_of(path)
    except OSError as error:
        raise DatasetError([f"{path}: cannot be read: {error.strerror or error}"]) from error
    write_whole(note, lambda stream: stream.write(digest.encode("ascii")))
    return digest


def case_digest(dataset: Dataset, case: Case, *, digest_of: Callable[[Path], str] = sha256_of) -> str:
    """Return a hash of all files of a case: images in the channels' order, then the label.

    Args:
        dataset: Of the case, on this machine.
        case: Any of it.
        digest_of: A file's SHA-256.
    """
    digests = [file_digest(path, digest_of) for path in dataset.case_paths(case)]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def file_digest(path: Path, digest_of: Callable[[Path], str]) -> str:
    """Return a hash of an image's file, and of the one that holds its voxels where its header only names it.

    Raises:
        DatasetError: If its voxels lie in several files.
    """
    elsewhere = voxels_elsewhere(path)
    return digest_of(path) if elsewhere is None else f"{digest_of(path)} {digest_of(elsewhere)}"


def refuse_changed_case(dataset: Dataset, case: Case, *, expected: str | None, cache_folder: Path) -> None:
    """Refuse a case whose files are not those with which the study was started; None: they are not known.

    Raises:
        DatasetError: If they are others, or cannot be read.
    """
    change = describe_change(dataset, case, expected=expected, cache_folder=cache_folder)
    if change is not None:
        raise DatasetError([change])


def describe_change(dataset: Dataset, case: Case, *, expected: str | None, cache_folder: Path) -> str | None:
    """Return what is wrong with a case whose files are not those with which the study was started; None if nothing is.

    Raises:
        DatasetError: If they cannot be read.
    """
    digest_of = partial(remembered_digest, cache_folder=cache_folder)
    if expected is None or case_digest(dataset, case, digest_of=digest_of) == expected:
        return None
    why = "its files are not those with which the study was started; restore them, or start another study"
    return f"case {case.id}: {why}"
