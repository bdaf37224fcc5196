"""Dividing cases into a test set and folds: by patient, and the same for the same ids and seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from automonai.documents import parse_file
from automonai.domain.dataset import Split
from automonai.errors import SpecError


def make_split(case_ids: Iterable[str], *, test: float, folds: int, seed: int) -> Split:
    """Divide the cases at random; neither their order nor the platform matters.

    Args:
        case_ids: One id per patient.
        test: Share of the cases that only the last step sees; rounded half up, at least one case unless it is 0.
        folds: Number of folds of the rest; their sizes differ by one case at most.
        seed: Of the division.

    Raises:
        SpecError: If there are too few cases for a non-empty test set and folds, or an id comes twice.
    """
    ids = sorted(case_ids)
    twice = [case for case, count in Counter(ids).items() if count > 1]
    if twice:
        raise SpecError(f"split: case ids must be unique, these come more than once: {', '.join(twice)}")
    random.Random(f"split-{seed}").shuffle(ids)
    test_count = test_cases(len(ids), test)
    rest = ids[test_count:]
    if len(rest) < folds:
        raise SpecError(
            f"split: {len(ids)} cases are too few for {folds} folds and a test share of {test:g}: "
            f"at least {_cases_needed(test, folds)} are needed, or fewer folds (split.folds), or split.test: 0"
        )
    return Split(
        seed=seed,
        test=tuple(sorted(ids[:test_count])),
        folds=tuple(tuple(sorted(rest[fold::folds])) for fold in range(folds)),
    )


def test_cases(cases: int, share: float) -> int:
    """Return how many of the cases a share of them is for the test."""
    return max(1, int(cases * share + 0.5)) if share > 0 else 0


def parse_split(content: bytes, case_ids: Iterable[str], *, where: str) -> Split:
    """Return a user's split: JSON or YAML with `test: [ids]` (may be left out) and `folds: [[ids], ...]`.

    Args:
        content: The file's, in UTF-8.
        case_ids: Of the whole dataset.
        where: The file's place, for messages; an end in `.json` makes it JSON.

    Raises:
        SpecError: If the content has another form; if an id is unknown, comes twice or is missing; if there are fewer
            than two folds or one is empty. All such ids are named.
    """
    test, folds = _groups(where, _parsed(content, where))
    if len(folds) < 2 or not all(folds):
        sizes = [len(fold) for fold in folds]
        raise SpecError(f"{where}: expected at least two folds, none of them empty; found sizes {sizes}")
    problems = _id_problems([*test, *(case for fold in folds for case in fold)], set(case_ids))
    if problems:
        raise SpecError(f"{where}: {'; '.join(problems)}")
    return Split(seed=0, test=tuple(test), folds=tuple(tuple(fold) for fold in folds))


def _groups(where: str, document: dict[str, object]) -> tuple[list[str], list[list[str]]]:
    test, folds = document.get("test", []), document.get("folds")
    strange = sorted(set(document) - {"test", "folds", "seed", "version"})
    groups = [fold for fold in folds if _is_id_list(fold)] if isinstance(folds, list) else None
    if strange or not _is_id_list(test) or groups is None or groups != folds:
        found = f"; unknown: {', '.join(strange)}" if strange else ""
        raise SpecError(
            f"{where}: expected `test: [ids]` and `folds: [[ids], [ids], ...]`, every id a text in quotes{found}"
        )
    return test, groups


def _cases_needed(test: float, folds: int) -> int:
    """Return the smallest number of cases for which the folds get one each."""
    count = max(folds, int((folds - 0.5) / (1 - test)) - 1)
    while count - test_cases(count, test) < folds:
        count += 1
    return count


def _parsed(content: bytes, where: str) -> dict[str, object]:
    document = parse_file(content, name=where)
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise SpecError(f"{where}: expected `test: [ids]` and `folds: [[ids], ...]`, found {document!r:.60}")
    return document


def _is_id_list(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _id_problems(given: Sequence[str], known: set[str]) -> list[str]:
    groups = {
        "unknown case": sorted(set(given) - known),
        "listed more than once": sorted(case for case, count in Counter(given).items() if count > 1),
        "missing from the split": sorted(known - set(given)),
    }
    return [f"{fault}: {', '.join(ids)}" for fault, ids in groups.items() if ids]
