"""What files hold, as hashes: whether a case is still the one that it was, and which prepared case is its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from automonai.domain.dataset import Case, Dataset
from automonai.errors import DatasetError
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
    return hashlib.sha256(" ".join(map(digest_of, dataset.case_paths(case))).encode()).hexdigest()
