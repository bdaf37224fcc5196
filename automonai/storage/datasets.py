"""Datasets in a store: pushed once, fetched once per machine into a cache that all its processes share.

A dataset's objects have its files' names; its manifest, put last, names them with size and SHA-256 and makes them
count. The cache, below CACHE/datasets:

    <digest of the manifest>/   an entry: whole, each file verified
    <digest>.lock               exclusive while it is fetched, shared while it is used; its time tells the last use.
                                Never deleted: another process may be about to lock it
    .fetching-<digest>/         what is fetched so far, the manifest first; whoever comes next goes on with it
    .lock                       held while room is made
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from automonai.domain.records import Record
from automonai.errors import CorruptObjectError, DatasetError, ObjectNotFoundError, UserError
from automonai.storage.local import UNFINISHED, check_key, exclusively, sha256_of, write_whole
from automonai.storage.opening import gib_from_environment, open_store
from automonai.storage.store import Store

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

MANIFEST = ".automonai-manifest.json"
"""Hidden, so that no file of a dataset has this name: hidden files are not pushed."""
LIMIT_VARIABLE = "AUTOMONAI_DATASET_CACHE_GIB"
_LIMIT = f"{LIMIT_VARIABLE} (on a cluster the chart's cache.datasetsGiB)"
DEFAULT_LIMIT_GIB = 100.0
TRANSFERS = 4
"""Files at once."""

_FETCHING, _EVICTED = ".fetching-", ".evicted-"
_leases: dict[Path, int] = {}
"""Descriptors of the locks that keep this process's datasets in the cache, until it ends."""


class FileFacts(Record):
    """One file of a dataset."""

    path: str
    """Relative to the dataset's folder, parts separated by `/`."""
    bytes: int
    sha256: str


class DatasetManifest(Record):
    """Every file of a dataset, by path."""

    version: Literal[1] = 1
    files: tuple[FileFacts, ...]

    @property
    def bytes(self) -> int:
        """Return the size of all files."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class _Entry:
    """A dataset's place in the cache."""

    location: str
    root: Path
    content: bytes
    """Of the manifest."""
    manifest: DatasetManifest

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:32]

    @property
    def folder(self) -> Path:
        return self.root / self.digest

    @property
    def place(self) -> Path:
        """Where it is fetched to."""
        return self.root / f"{_FETCHING}{self.digest}"

    @property
    def lock(self) -> Path:
        return self.root / f"{self.digest}.lock"


class Push(Record):
    """What a push did."""

    files: int
    uploaded: int
    """The others were there already."""
    bytes_uploaded: int


def push_dataset(folder: Path, location: str, *, on_file: Callable[[str, int, int], None] | None = None) -> Push:
    """Upload a dataset's files, except hidden ones; what is there with the same checksum is not sent again.

    An interrupted push counts for nothing until it is repeated, which goes on where it stopped.

    Args:
        folder: With a dataset.json.
        location: `s3://bucket/datasets/NAME`, or a folder.
        on_file: Told after each file its path, how many are done, and of how many.

    Raises:
        UserError: If the folder holds no dataset, or the location cannot be one.
        StorageError: If the store fails.
    """
    if "#" in location:
        raise UserError(f"{location}: a dataset's location must not contain '#', which pins one of its versions")
    paths = _dataset_files(folder)
    store = open_store(location)
    present = set(store.list())
    files, uploaded = [], []

    def push(path: str) -> tuple[FileFacts, bool]:
        source = folder / path
        facts = FileFacts(path=path, bytes=source.stat().st_size, sha256=sha256_of(source))
        is_there = path in present and store.sha256(path) == facts.sha256
        if not is_there:
            store.upload(source, path)
        return facts, is_there

    for done, (facts, was_there) in enumerate(_concurrently(push, paths), start=1):
        files.append(facts)
        if not was_there:
            uploaded.append(facts.bytes)
        if on_file is not None:
            on_file(facts.path, done, len(paths))
    store.put(MANIFEST, DatasetManifest(files=tuple(files)).model_dump_json(indent=1).encode())
    return Push(files=len(files), uploaded=len(uploaded), bytes_uploaded=sum(uploaded))


def fetch_dataset(location: str, *, cache_folder: Path, limit_bytes: int | None = None) -> Path:
    """Return a folder with a pushed dataset's files, fetched unless another process or an earlier run has done it.

    The entry stays in the cache as long as this process lives. Others are evicted, the least recently used first.

    Args:
        location: Where it was pushed to, or what `pinned` made of that.
        cache_folder: Any number of processes may share it.
        limit_bytes: Of all datasets in the cache; None: what `AUTOMONAI_DATASET_CACHE_GIB` says, or 100 GiB.

    Raises:
        DatasetError: If there is no dataset at that location, or not the pinned one any more.
        UserError: If the dataset does not fit beside those in use.
        CorruptObjectError: If a file is not what the manifest says.
        StorageError: If the store fails.
    """
    place, _, pin = location.partition("#")
    root = cache_folder / "datasets"
    root.mkdir(parents=True, exist_ok=True)
    if pin and _hold(root / pin):
        return root / pin
    store = open_store(place)
    content = _manifest_bytes(store, place)
    entry = _Entry(place, root, content, _parsed(content, place))
    if pin not in ("", entry.digest):
        raise DatasetError([f"{place}: has changed since it was checked; push what it was, or start another study"])
    while not _hold(entry.folder):  # it may be evicted between being fetched and being held
        with exclusively(entry.lock):
            if not entry.folder.is_dir():
                _make_room(entry, limit_bytes=limit_from_environment() if limit_bytes is None else limit_bytes)
                _fetch(entry, store)
    return entry.folder


def pinned(location: str, folder: Path) -> str:
    """Return the location of the very files that were fetched to a folder: once the dataset changes, it is refused."""
    return f"{location.partition('#')[0]}#{folder.name}"


def limit_from_environment() -> int:
    """Return how large the cache of datasets may be, in bytes.

    Raises:
        UserError: If the variable is no positive number.
    """
    limit = gib_from_environment(LIMIT_VARIABLE)
    return int(DEFAULT_LIMIT_GIB * 2**30) if limit is None else limit


def _dataset_files(folder: Path) -> list[str]:
    if not (folder / "dataset.json").is_file():
        raise DatasetError([f"{folder}: there is no dataset.json; name a dataset's folder in MSD or nnU-Net layout"])
    found = sorted(_files_below(folder))
    odd = [path for path in found if "\\" in path]
    if odd:
        raise DatasetError([f"{folder}: {path}: a backslash cannot be part of a file's name on S3" for path in odd])
    return found


def _files_below(folder: Path) -> Iterator[str]:
    """Yield the files of a folder by their paths in it, hidden ones left out; linked folders are followed."""
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        if here.resolve() in (parent.resolve() for parent in here.parents):  # a link to a folder that it lies in
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and (here / name).is_file():
                yield (here / name).relative_to(folder).as_posix()


def _manifest_bytes(store: Store, location: str) -> bytes:
    try:
        return store.get(MANIFEST)
    except ObjectNotFoundError as error:
        raise DatasetError(
            [f"{location}: there is no dataset, or its push is not finished: automonai data push FOLDER {location}"]
        ) from error


def _parsed(content: bytes, location: str) -> DatasetManifest:
    try:
        manifest = DatasetManifest.model_validate_json(content)
        for file in manifest.files:
            check_key(file.path)
    except (ValidationError, ValueError) as error:
        raise CorruptObjectError(f"{location}/{MANIFEST}: is no manifest; push the dataset again") from error
    return manifest


def _fetch(entry: _Entry, store: Store) -> None:
    """Fetch what is not there yet beside the entry's place, then rename; the caller holds the entry's lock."""
    logger.info("fetching %s: %d files, %d bytes", entry.location, len(entry.manifest.files), entry.manifest.bytes)

    def fetch(file: FileFacts) -> None:
        target = entry.place / file.path
        if target.is_file() and sha256_of(target) == file.sha256:
            return
        try:
            store.download(file.path, target)
        except ObjectNotFoundError as error:
            raise CorruptObjectError(f"{error}, though the manifest names it; push the dataset again") from error
        if sha256_of(target) != file.sha256:
            target.unlink()
            raise CorruptObjectError(
                f"{entry.location}/{file.path}: is not what the manifest says; push the dataset again"
            )

    for _ in _concurrently(fetch, entry.manifest.files):
        pass
    for remains in entry.place.rglob(f"{UNFINISHED}*"):  # of a process that was killed: nobody counts or removes them
        remains.unlink()
    entry.place.rename(entry.folder)


def _make_room(entry: _Entry, *, limit_bytes: int) -> None:
    """Set room aside for an entry; evict first what others left half-fetched, then what was used longest ago."""
    root, needed_bytes = entry.root, entry.manifest.bytes
    too_large = (
        f"{root}: a dataset of {needed_bytes / 2**30:.2f} GiB does not fit: {limit_bytes / 2**30:.2f} GiB are allowed"
    )
    if needed_bytes > limit_bytes:
        raise UserError(f"{too_large}; set {_LIMIT} higher")
    with exclusively(root / ".lock"):
        for remains in root.glob(f"{_EVICTED}*"):
            shutil.rmtree(remains, ignore_errors=True)
        others = [folder for folder in root.iterdir() if folder.is_dir() and _is_other(folder, entry)]
        sizes = {folder: _size(folder) for folder in others}
        excess = sum(sizes.values()) + needed_bytes - limit_bytes
        for folder in sorted(sizes, key=lambda folder: (not _is_half_fetched(folder), _last_use(folder))):
            if excess > 0 and _evict(folder):
                excess -= sizes[folder]
        if excess > 0:
            raise UserError(f"{too_large}, and runs use what is there; set {_LIMIT} higher or let them end")
        write_whole(entry.place / MANIFEST, lambda stream: stream.write(entry.content))


def _evict(folder: Path) -> bool:
    """Remove an entry, or what was fetched of it; False if a process uses it."""
    with exclusively(_lock_of(folder), wait=False) as is_free:
        if is_free and folder.is_dir():  # else it was renamed meanwhile, its fetch being over
            remains = folder.with_name(f"{_EVICTED}{folder.name.lstrip('.')}")
            folder.rename(remains)  # at once for all who look, however long the deletion takes
            shutil.rmtree(remains, ignore_errors=True)
            logger.info("evicted %s", folder)
            return True
        return False


def _is_other(folder: Path, entry: _Entry) -> bool:
    return folder not in (entry.folder, entry.place) and not folder.name.startswith(_EVICTED)


def _is_half_fetched(folder: Path) -> bool:
    return folder.name.startswith(_FETCHING)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name.removeprefix(_FETCHING)}.lock")


def _last_use(folder: Path) -> float:
    lock = _lock_of(folder)
    return lock.stat().st_mtime if lock.exists() else 0.0


def _size(folder: Path) -> int:
    """Return what a folder takes once it is fetched: other processes may be at it, or have just renamed it."""
    for place in (folder, folder.with_name(folder.name.removeprefix(_FETCHING))):
        with suppress(FileNotFoundError):
            return DatasetManifest.model_validate_json((place / MANIFEST).read_bytes()).bytes
    return 0


def _hold(folder: Path) -> bool:
    """Keep an entry in the cache until this process ends; False if it is not there. Waits while it is fetched."""
    if folder in _leases:
        return True
    lease = os.open(_lock_of(folder), os.O_RDWR | os.O_CREAT, 0o666)
    fcntl.flock(lease, fcntl.LOCK_SH)
    if not folder.is_dir():
        os.close(lease)
        return False
    os.utime(lease)
    _leases[folder] = lease
    return True


def _concurrently(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield each item's outcome in order, some worked on at once; the first error ends it."""
    pool = ThreadPoolExecutor(TRANSFERS)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
