from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from automonai.imaging.nifti import write_nifti

LABELS = {"0": "background", "1": "organ", "3": "lesion"}


class SmallDataset:
    """An MSD dataset of tiny cases whose files and dataset.json a test may spoil."""

    def __init__(self, root: Path, cases: int = 3, channels: int = 1) -> None:
        self.root = root
        self.affine = np.diag([1.0, 1.5, 2.0, 1.0])
        self.document: dict[str, object] = {
            "name": "Small",
            "modality": {str(n): f"m{n}" for n in range(channels)},
            "labels": dict(LABELS),
            "training": [
                {"image": f"./imagesTr/case_{n}.nii.gz", "label": f"./labelsTr/case_{n}.nii.gz"} for n in range(cases)
            ],
        }
        for number in range(cases):
            generator = np.random.default_rng(number)
            shape = (9, 8, 7) if channels == 1 else (9, 8, 7, channels)
            self.write_image(number, generator.normal(100, 10, shape).astype(np.float32))
            label = np.zeros((9, 8, 7), np.uint8)
            label[2:6, 2:6, 2:5] = 1
            label[3:5, 3:5, 3:4] = 3
            self.write_label(number, label)
        self.save()

    def image(self, number: int) -> Path:
        return self.root / "imagesTr" / f"case_{number}.nii.gz"

    def label(self, number: int) -> Path:
        return self.root / "labelsTr" / f"case_{number}.nii.gz"

    def write_image(self, number: int, values: np.ndarray, affine: np.ndarray | None = None) -> None:
        write_nifti(self.image(number), values, self.affine if affine is None else affine)

    def write_label(self, number: int, values: np.ndarray, affine: np.ndarray | None = None) -> None:
        write_nifti(self.label(number), values, self.affine if affine is None else affine)

    def save(self) -> None:
        (self.root / "dataset.json").write_text(json.dumps(self.document))


@pytest.fixture
def small_dataset(tmp_path: Path) -> Callable[..., SmallDataset]:
    return lambda **settings: SmallDataset(tmp_path / "data", **settings)
