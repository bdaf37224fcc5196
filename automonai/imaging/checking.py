"""Checking a dataset: every fault of every case in one pass, each case read once, nothing written."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from automonai.domain.dataset import Case, Dataset
from automonai.domain.fingerprint import CaseFacts
from automonai.errors import DatasetError
from automonai.imaging.layouts import survey_dataset
from automonai.imaging.measuring import Measures, measure, non_finite_count
from automonai.imaging.reading import Volume, class_indices, describe_difference, read_image

Progress = Callable[[int, int], None]
"""Is told how many cases are done, and of how many."""


@dataclass(frozen=True)
class CheckedDataset:
    """A dataset without fault, and the facts of every case by its id."""

    dataset: Dataset
    facts: dict[str, CaseFacts]


@dataclass(frozen=True)
class _Findings:
    """What the check of one case gave.

    Attributes:
        problems: One line per fault.
        facts: None if there is a fault that leaves them unknown.
        content: A hash of the image's values, the same however they are stored; None if it cannot be read.
    """

    case_id: str
    problems: tuple[str, ...]
    facts: CaseFacts | None = None
    content: str | None = None


def check_dataset(root: str | Path, *, processes: int = 1, progress: Progress | None = None) -> CheckedDataset:
    """Find and check a dataset.

    Image and label must have one shape, and affines whose corners of the volume lie within a tenth of the smallest
    voxel size of each other (`Geometry.agrees`).

    Args:
        root: The dataset's folder.
        processes: How many read at once; each needs the memory of one case. A script that asks for more than one
            must be importable (`if __name__ == "__main__"`).
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
    for done, findings in enumerate(_check_cases(dataset, processes), start=1):
        found[findings.case_id] = findings
        if progress is not None:
            progress(done, len(dataset.cases))
    ordered = [found[case.id] for case in dataset.cases]
    problems = [*survey.problems, *(problem for findings in ordered for problem in findings.problems)]
    problems.extend(_duplicates(ordered))
    if problems:
        raise DatasetError(problems)
    return CheckedDataset(dataset, {f.case_id: f.facts for f in ordered if f.facts is not None})


def content_digest(paths: Iterable[Path]) -> str:
    """Return the SHA-256 over the bytes of the files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _check_cases(dataset: Dataset, processes: int) -> Iterator[_Findings]:
    """Yield the findings of each case as it is done."""
    workers = min(processes, len(dataset.cases))
    if workers <= 1:
        yield from (_check_case(dataset, case) for case in dataset.cases)
        return
    slim = dataset.model_copy(update={"cases": ()})  # what is sent with each case
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_check_case, slim, case) for case in dataset.cases]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DatasetError(
                [f"{dataset.root}: a checking process was killed, likely for memory; check with fewer processes"]
            ) from error


def _check_case(dataset: Dataset, case: Case) -> _Findings:
    problems: list[str] = []
    image = _read(list(dataset.image_paths(case)), problems)
    label = _read([dataset.label_path(case)], problems)
    indices = None
    if label is not None:
        indices = _check_label(dataset, case, label, problems)
    if image is not None:
        _check_image(dataset, case, image, problems)
    if image is not None and label is not None:
        difference = describe_difference(image.geometry, label.geometry)
        if difference:
            problems.append(f"image and label lie on different grids: the label has {difference}")
    content = None if image is None else _image_hash(image)
    facts = None
    if image is not None and indices is not None and not problems:
        facts = _facts(dataset, case, image, indices)
    return _Findings(case.id, tuple(f"case {case.id}: {problem}" for problem in problems), facts, content)


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


def _facts(dataset: Dataset, case: Case, image: Volume, indices: NDArray[np.uint8]) -> CaseFacts:
    measures: Measures = measure(image.voxels, indices)
    x, y, z = image.voxels.shape[1:]
    values = sorted(dataset.labels)
    return CaseFacts(
        id=case.id,
        digest=content_digest([*dataset.image_paths(case), dataset.label_path(case)]),
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
