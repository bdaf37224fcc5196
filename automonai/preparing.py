"""From a dataset, wherever it lies, to what all workers of a study share."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from automonai.domain.dataset import Case
from automonai.domain.request import StudyData
from automonai.errors import DatasetError, ObjectNotFoundError, SpecError
from automonai.execution.machine import HEADROOM
from automonai.host import usable_cores, usable_memory_bytes
from automonai.spec import ExecutionSpec, SplitSpec, TrainingSpec
from automonai.storage.datasets import fetch_dataset, pinned
from automonai.storage.opening import is_remote, open_store, user_cache_folder

if TYPE_CHECKING:
    from automonai.imaging.checking import CheckedDataset

CACHE_FOLDER = ".cache"
"""Beside the studies of a folder; preprocessed cases are shared by all of them."""


def prepare_data(
    dataset: str | Path,
    *,
    split: SplitSpec,
    training: TrainingSpec,
    cache_folder: Path,
    execution: ExecutionSpec | None = None,
) -> StudyData:
    """Check, divide and measure a dataset; the fingerprint sees no test case."""
    from automonai.domain.splitting import make_split, parse_split
    from automonai.imaging.fingerprinting import fingerprint

    own_split = None if split.file is None else _content(split.file)  # before the check, which reads every voxel
    folder = dataset_here(dataset, cache_folder)
    checked = check_folder(folder)
    ids = [case.id for case in checked.dataset.cases]
    if own_split is not None:
        division = parse_split(own_split, ids, where=f"{split.file}")
    else:
        division = make_split(ids, test=split.test, folds=split.folds, seed=split.seed)
    root = pinned(str(dataset), folder) if is_remote(dataset) else checked.dataset.root
    return StudyData(
        dataset=checked.dataset.model_copy(update={"root": root}),
        split=division,
        fingerprint=fingerprint(checked, division.development),
        training=training,
        execution=execution or ExecutionSpec(),
        contents={} if is_remote(dataset) else checked.digests,
    )


def check_folder(folder: Path, *, on_case: Callable[[int, int], None] | None = None) -> CheckedDataset:
    """Check a dataset on this machine with as many readers as its cores and memory allow.

    Raises:
        DatasetError: With every fault of every case.
    """
    from automonai.imaging.checking import check_dataset

    memory_bytes = int(usable_memory_bytes() * HEADROOM)
    return check_dataset(folder, readers=usable_cores(), memory_bytes=memory_bytes, progress=on_case)


def refuse_changed_files(data: StudyData, cache_folder: Path) -> None:
    """Refuse a dataset on this machine of which files are gone, out of reach, or not what they were.

    A bucket's is left to who fetches it: its place says which version is meant.

    Args:
        data: Of a started study.
        cache_folder: Where hashes of files are remembered that have not changed.

    Raises:
        DatasetError: Naming each file or case.
    """
    dataset = data.dataset
    if is_remote(dataset.root):
        return
    from automonai.imaging.content import describe_change

    paths = [path for case in dataset.cases for path in dataset.case_paths(case)]
    missing = [f"{path}: was there when the study was started, and is not now" for path in paths if not path.is_file()]
    if missing:
        raise DatasetError(missing)

    def change_of(case: Case) -> str | None:
        return describe_change(dataset, case, expected=data.contents.get(case.id), cache_folder=cache_folder)

    with ThreadPoolExecutor(usable_cores()) as pool:
        changed = list(filter(None, pool.map(change_of, dataset.cases)))
    if changed:
        raise DatasetError(changed)


def dataset_here(dataset: str | Path, cache_folder: Path) -> Path:
    """Return a dataset's folder on this machine, to where it is fetched if it is in a bucket."""
    return fetch_dataset(str(dataset), cache_folder=cache_folder) if is_remote(dataset) else Path(dataset)


def _content(location: str) -> bytes:
    """Return a file that may lie in a bucket."""
    try:
        if is_remote(location):
            folder, _, name = location.rpartition("/")
            return open_store(folder).get(name)
        return Path(location).read_bytes()
    except (OSError, ObjectNotFoundError) as error:
        raise SpecError(f"{location}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def cache_folder_of(store: str) -> Path:
    """Return where the runs of a store's studies share what they prepare."""
    return user_cache_folder() if is_remote(store) else Path(store) / CACHE_FOLDER
