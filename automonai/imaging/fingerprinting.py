"""The fingerprint of a study: the facts of its development cases, and of no test case."""

from __future__ import annotations

from collections.abc import Iterable

from automonai.domain.fingerprint import Fingerprint
from automonai.imaging.checking import CheckedDataset


def fingerprint(checked: CheckedDataset, ids: Iterable[str]) -> Fingerprint:
    """Return the facts of those cases, ordered by id, so that neither the split's nor the files' order matters.

    Args:
        checked: The dataset.
        ids: Of the development cases; a test case among them would leak into the search.

    Raises:
        KeyError: If an id is not in the dataset.
    """
    return Fingerprint(cases=tuple(checked.facts[case_id] for case_id in sorted(ids)))
