"""Dataset, Case and Split: what was found on disk, before any choice."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from automonai.domain.records import Record


class Layout(StrEnum):
    """How a dataset lies on disk."""

    MSD = "msd"
    NNUNET = "nnunet"


class Case(Record):
    """One patient's image files (one 4D file, or one per channel) and label, relative to the dataset's root."""

    id: str
    images: tuple[str, ...]
    label: str | None = None


class Dataset(Record):
    """All labelled cases with their channel and class names; paths are relative to `root`."""

    version: int = 1
    name: str
    root: str
    layout: Layout
    channels: tuple[str, ...]
    """Channel names, in the order of the image's channels."""
    labels: dict[int, str]
    """Label value to class name, background (0) included."""
    cases: tuple[Case, ...]

    @property
    def foreground(self) -> dict[int, str]:
        """Label value to class name, without the background."""
        return {value: name for value, name in self.labels.items() if value != 0}

    def case(self, case_id: str) -> Case:
        """Return the case of that id.

        Raises:
            KeyError: If there is none.
        """
        for case in self.cases:
            if case.id == case_id:
                return case
        raise KeyError(case_id)

    def image_paths(self, case: Case) -> tuple[Path, ...]:
        """Return where the case's image files lie."""
        return tuple(Path(self.root) / image for image in case.images)

    def label_path(self, case: Case) -> Path:
        """Return where the case's label lies.

        Raises:
            ValueError: If the case has no label.
        """
        if case.label is None:
            raise ValueError(f"case {case.id} has no label")
        return Path(self.root) / case.label

    def case_paths(self, case: Case) -> tuple[Path, ...]:
        """Return where all files of a case lie, its label last.

        Raises:
            ValueError: If the case has no label.
        """
        return (*self.image_paths(case), self.label_path(case))


class Split(Record):
    """Which cases test, and which are held out by each fold; written once, with its seed."""

    version: int = 1
    seed: int
    test: tuple[str, ...]
    folds: tuple[tuple[str, ...], ...]

    def validation(self, fold: int) -> tuple[str, ...]:
        """Return the ids that the fold holds out."""
        return self.folds[fold]

    def training(self, fold: int) -> tuple[str, ...]:
        """Return the ids that the fold trains on: all other folds' cases."""
        return tuple(case for index, ids in enumerate(self.folds) if index != fold for case in ids)

    @property
    def development(self) -> tuple[str, ...]:
        """Return every id that is not in the test set."""
        return tuple(case for ids in self.folds for case in ids)


def select(dataset: Dataset, ids: Iterable[str]) -> tuple[Case, ...]:
    """Return the cases of those ids, in their order."""
    by_id = {case.id: case for case in dataset.cases}
    return tuple(by_id[case_id] for case_id in ids)
