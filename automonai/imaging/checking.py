"""Checking a dataset: every fault of every case in one pass, each case read once, nothing written."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition

import numpy as np
from numpy.typing import NDArray

from automonai.domain.dataset import Case, Dataset
from automonai.domain.fingerprint import CaseFacts
from automonai.errors import DatasetError
from automonai.imaging.content import case_digest
from automonai.imaging.layouts import survey_dataset
from automonai.imaging.measuring import Measures, measure, non_finite_count
from automonai.imaging.reading import (
    Volume,
    along_axes_of,
    class_indices,
    describe_difference,
    kept_bytes,
    read_image,
)

Progress = Callable[[int, int], None]
"""Is told how many cases are done, and of how many."""

_MOST_READERS = 8
"""A disk gives no more to more, and what each does in the interpreter adds up."""
_SMALL_CASE_BYTES = 2**19
"""Where the files of a case have less on average one reader does: the interpreter has more to do with them than zlib.

On two cores a second reader made 200 cases of 35x50x35 voxels (0.1 MB) take 1.65 s instead of 1.46, but six of
160x160x128 (1 MB) 0.53 s instead of 0.72, and six of 240x240x155 with four channels (10 MB) 4.2 s instead of 6.1.
"""
_CHECK_TIMES, _CHECK_BYTES = 3, 64 * 2**20
"""Bound what a check takes: a case's voxels, joined channels, class indices and masks; and pieces of them as 64-bit
numbers, whatever the case's size. Measured for 2.7 and 26 million voxels of uint8 to float32: 0.4 to 0.8 of it."""


@dataclass(frozen=True)
class CheckedDataset:
    """A dataset without fault, and for every case by its id the facts and the digest of its files."""

    dataset: Dataset
    facts: dict[str, CaseFacts]
    digests: dict[str, str]


@dataclass(frozen=True)
class _Findings:
    """What the check of one case gave.

    Attributes:
        problems: One line per fault.
        facts: None if there is a fault that leaves them unknown.
        digest: Of the case's files; None without facts.
        content: A hash of the image's values, the same however they are stored; None if it cannot be read.
    """

    case_id: str
    problems: tuple[str, ...]
    facts: CaseFacts | None = None
    digest: str | None = None
    content: str | None = None


def check_dataset(
    root: str | Path, *, readers: int = 1, memory_bytes: int | None = None, progress: Progress | None = None
) -> CheckedDataset:
    """Find and check a dataset.

    Image and label must have one shape, and affines whose corners of the volume lie within a tenth of the smallest
    voxel size of each other (`Geometry.agrees`).

    Args:
        root: The dataset's folder.
        readers: Threads that may read cases at once; eight at most are taken, and one where cases are small. Unpacking,
            sorting and hashing leave the interpreter to the others.
        memory_bytes: What all cases that are read at once may take; one is read in any event. None: no bound.
        progress: Is called after each case.

    Raises:
        DatasetError: With every problem of dataset.json and of all cases: files that are missing, cut off or
            unreadable; grids that differ; unexpected label values; NaN or infinity; constant images; empty labels; a
            wrong number of channels; one image under several names; singular affines. Cases are left out only where
            channels or labels are not understood.
    """
    survey = survey_dataset(root)
    dataset = survey.dataset
    if dataset is None:
        raise DatasetError(survey.problems)
    found = {}
    for done, findings in enumerate(_check_cases(dataset, readers, _Room(memory_bytes)), start=1):
        found[findings.case_id] = findings
        if progress is not None:
            progress(done, len(dataset.cases))
    ordered = [found[case.id] for case in dataset.cases]
    problems = [*survey.problems, *(problem for findings in ordered for problem in findings.problems)]
    problems.extend(_duplicates(ordered))
    if problems:
        raise DatasetError(problems)
    return CheckedDataset(
        dataset,
        {f.case_id: f.facts for f in ordered if f.facts is not None},
        {f.case_id: f.digest for f in ordered if f.digest is not None},
    )


class _Room:
    """Memory that cases share: one that finds too little waits until others are done, or is alone."""

    def __init__(self, total_bytes: int | None) -> None:
        self._total_bytes = total_bytes
        self._taken_bytes = 0
        self._changed = Condition()

    @contextmanager
    def taken(self, needed_bytes: int | None) -> Iterator[None]:
        """Take so much of it for a while; None: all of it."""
        total = self._total_bytes
        if total is None:
            yield
            return
        needed = total if needed_bytes is None else min(needed_bytes, total)
        with self._changed:
            self._changed.wait_for(lambda: self._taken_bytes + needed <= total)
            self._taken_bytes += needed
        try:
            yield
        finally:
            with self._changed:
                self._taken_bytes -= needed
                self._changed.notify_all()


def _check_cases(dataset: Dataset, readers: int, room: _Room) -> Iterator[_Findings]:
    """Yield the findings of each case as it is done."""

    def check(case: Case) -> _Findings:
        with room.taken(_needed_bytes(dataset, case)):
            return _check_case(dataset, case)

    threads = min(readers, _MOST_READERS, len(dataset.cases))
    if threads <= 1 or _are_small(dataset):
        yield from (_check_case(dataset, case) for case in dataset.cases)
        return
    pool = ThreadPoolExecutor(threads, "check")
    try:
        futures = [pool.submit(check, case) for case in dataset.cases]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _are_small(dataset: Dataset) -> bool:
    paths = [path for case in dataset.cases for path in dataset.case_paths(case)]
    return sum(_file_bytes(path) for path in paths) < _SMALL_CASE_BYTES * len(dataset.cases)


def _file_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # its case will say why


def _needed_bytes(dataset: Dataset, case: Case) -> int | None:
    """Return what the check of a case takes by its headers; None where these do not say."""
    sizes = [kept_bytes(path) for path in dataset.case_paths(case)]
    return None if None in sizes else _CHECK_BYTES + _CHECK_TIMES * sum(size or 0 for size in sizes)


def _check_case(dataset: Dataset, case: Case) -> _Findings:
    problems: list[str] = []
    image = _read(list(dataset.image_paths(case)), problems)
    label = _read([dataset.label_path(case)], problems)
    indices = difference = None
    if image is not None and label is not None:
        difference = describe_difference(image.geometry, label.geometry)
        label = label if difference else along_axes_of(image, label)
    if label is not None:
        indices = _check_label(dataset, case, label, problems)
    if image is not None:
        _check_image(dataset, case, image, problems)
    if difference:
        problems.append(f"image and label lie on different grids: the label has {difference}")
    content = None if image is None else _image_hash(image)
    if problems or image is None or indices is None:
        return _Findings(case.id, tuple(f"case {case.id}: {problem}" for problem in problems), content=content)
    facts = _facts(case, image, indices, sorted(dataset.labels))
    return _Findings(case.id, (), facts, case_digest(dataset, case), content)


def _read(paths: list[Path], problems: list[str]) -> Volume | None:
    try:
        return read_image(paths)
    except DatasetError as error:
        problems.extend(error.problems)
        return None


def _check_label(dataset: Dataset, case: Case, label: Volume, problems: list[str]) -> NDArray[np.uint8] | None:
    """Return the class indices, None if some voxels have none."""
    indices, faults = class_indices(label, sorted(dataset.labels))
    problems.extend(f"{case.label}: {fault}" for fault in faults)
    if faults:
        return None
    if not indices.any():
        problems.append(f"{case.label}: is empty: it has no voxel of any structure; leave the case out or label it")
    return indices


def _check_image(dataset: Dataset, case: Case, image: Volume, problems: list[str]) -> None:
    names = ", ".join(case.images)
    found, expected = len(image.voxels), len(dataset.channels)
    if found != expected:
        problems.append(
            f"{names}: wrong number of channels: has {found}, dataset.json names {expected} "
            f"({', '.join(dataset.channels)})"
        )
    for number, channel in enumerate(image.voxels):
        name = dataset.channels[number] if found == expected else str(number)
        broken = non_finite_count(channel)
        if broken:
            problems.append(f"{names}: channel {name} has {broken} voxels that are NaN or infinite")
        elif channel.min() == channel.max():
            problems.append(f"{names}: channel {name} is constant: every voxel is {float(channel.min()):g}")


def _facts(case: Case, image: Volume, indices: NDArray[np.uint8], values: list[int]) -> CaseFacts:
    measures: Measures = measure(image.voxels, indices)
    x, y, z = image.voxels.shape[1:]
    return CaseFacts(
        id=case.id,
        shape_voxels=(x, y, z),
        spacing_mm=image.spacing_mm,
        box_start=measures.box_start,
        box_shape=measures.box_shape,
        channels=measures.channels,
        class_voxels={value: int((indices == index).sum()) for index, value in enumerate(values)},
    )


def _image_hash(image: Volume) -> str:
    """Hash the values in RAS order as float32: compression, integer type and orientation of the file do not matter."""
    digest = hashlib.sha256(str(image.voxels.shape).encode())
    for channel in image.voxels:
        for layer in np.moveaxis(channel, 2, 0):
            digest.update(np.asarray(layer.T, np.float32, order="C").data)
    return digest.hexdigest()


def _duplicates(findings: list[_Findings]) -> list[str]:
    names: dict[str, list[str]] = defaultdict(list)
    for found in findings:
        if found.content is not None:
            names[found.content].append(found.case_id)
    return [
        f"cases {', '.join(ids)}: duplicate case: their images have the same content; keep one of them"
        for ids in names.values()
        if len(ids) > 1
    ]
