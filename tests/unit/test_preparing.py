from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from automonai import api, preparing
from automonai.errors import DatasetError
from automonai.imaging import checking
from automonai.spec import SplitSpec, TrainingSpec


def prepare(folder: Path) -> object:
    return preparing.prepare_data(folder, split=SplitSpec(), training=TrainingSpec(), cache_folder=folder)


@pytest.mark.parametrize("read_all", [api.check, prepare])
def test_a_dataset_is_checked_with_all_cores_and_within_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_all: Callable[[Path], object]
) -> None:
    asked: dict[str, object] = {}

    def check_dataset(root: Path, **options: object) -> None:
        asked.update(options)
        raise DatasetError(["enough"])

    monkeypatch.setattr(checking, "check_dataset", check_dataset)
    monkeypatch.setattr(preparing, "usable_cores", lambda: 3)
    monkeypatch.setattr(preparing, "usable_memory_bytes", lambda: 1000)
    with pytest.raises(DatasetError, match="enough"):
        read_all(tmp_path)
    assert (asked["readers"], asked["memory_bytes"]) == (3, 800)
