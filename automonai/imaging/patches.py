"""Read training patches from memory-mapped cases: the patch and a margin, never the volume.

Everything random follows from (seed, epoch, index), so that any batch can be had again in any order and by any thread.
Axes: image_BCXYZ, label_BXYZ, spacing_B3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from automonai.domain.fingerprint import IntTriple
from automonai.domain.plan import Plan
from automonai.domain.seeds import derive_seed
from automonai.imaging.preprocessing import PreparedCase, normalise


@dataclass(frozen=True)
class Batch:
    """Patches with their margins, and the voxel size of each in mm."""

    image_BCXYZ: Tensor
    """float32, normalised, 0 outside of the volume."""
    label_BXYZ: Tensor
    """uint8 class indices, 0 outside of the volume."""
    spacing_B3: NDArray[np.float64]


class PatchReader:
    """One patch of each case per epoch, in an order and at positions that (seed, epoch, index) settle."""

    def __init__(
        self, cases: Sequence[PreparedCase], plan: Plan, *, seed: int, margin_voxels: IntTriple = (0, 0, 0)
    ) -> None:
        """Remember the cases.

        Args:
            cases: With labels, at least one.
            plan: Gives patch, batch size, normalisation and foreground oversampling.
            seed: Of the trial.
            margin_voxels: Read beyond the patch on each side, for the corners that a rotation turns in.
        """
        self._cases = tuple(cases)
        self._plan = plan
        self._seed = seed
        self._margin = margin_voxels

    @property
    def steps_per_epoch(self) -> int:
        """Return the batches of an epoch; the last one may be smaller."""
        return ceil(len(self._cases) / self._plan.batch_size)

    def read(self, step: int) -> Batch:
        """Return the batch of that step, counted from the start of the training."""
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self._plan.batch_size
        order = np.random.default_rng(derive_seed(self._seed, "order", epoch)).permutation(len(self._cases))
        chosen = order[place * size : (place + 1) * size]
        cases = [self._cases[case] for case in chosen]
        sides = [side + 2 * margin for side, margin in zip(self._plan.patch_voxels, self._margin, strict=True)]
        image_BCXYZ = np.zeros((len(cases), cases[0].image.shape[0], *sides), np.float32)
        label_BXYZ = np.zeros((len(cases), *sides), np.uint8)
        for number, case in enumerate(cases):
            generator = np.random.default_rng(derive_seed(self._seed, "patch", epoch, place * size + number))
            self._read_patch(case, generator, into=(image_BCXYZ[number], label_BXYZ[number]))
        return Batch(
            image_BCXYZ=torch.from_numpy(image_BCXYZ),
            label_BXYZ=torch.from_numpy(label_BXYZ),
            spacing_B3=np.array([case.spacing_mm for case in cases]),
        )

    def _read_patch(
        self, case: PreparedCase, generator: np.random.Generator, *, into: tuple[NDArray[np.float32], NDArray[np.uint8]]
    ) -> None:
        image_CXYZ, label_XYZ = into
        assert case.label is not None
        start = patch_start(case, self._plan.patch_voxels, generator, self._plan.configuration.foreground_oversampling)
        begin = [at - margin for at, margin in zip(start, self._margin, strict=True)]
        source, target = _overlap(begin, label_XYZ.shape, case.label.shape)
        assert len(case.image) == len(image_CXYZ)
        image_CXYZ[(slice(None), *target)] = normalise(
            case.image[(slice(None), *source)],
            normalisation=self._plan.configuration.normalisation,
            statistics=case.statistics,
        )
        label_XYZ[target] = case.label[source]


def batch_sizes(cases: int, plan: Plan) -> set[int]:
    """Return the sizes of the batches of an epoch of so many cases."""
    return {min(cases, plan.batch_size), cases % plan.batch_size} - {0}


def patch_start(
    case: PreparedCase, patch: IntTriple, generator: np.random.Generator, foreground_share: float
) -> IntTriple:
    """Return the patch's first voxel in the volume; negative where the volume is smaller than the patch.

    Along an axis on which the volume is larger, the patch lies anywhere inside; where it is smaller, the volume lies
    anywhere inside the patch. A `foreground_share` of the patches is moved to centre a voxel of a class of the case,
    each class as often.
    """
    assert case.label is not None
    slack = [length - side for length, side in zip(case.label.shape, patch, strict=True)]
    low, high = [min(0, room) for room in slack], [max(0, room) for room in slack]
    start = [int(generator.integers(a, b + 1)) for a, b in zip(low, high, strict=True)]
    is_foreground = generator.random() < foreground_share
    foreground = {index: voxels for index, voxels in case.foreground.items() if index} if is_foreground else {}
    classes = sorted(index for index, voxels in foreground.items() if len(voxels))
    if classes:
        voxels = foreground[classes[int(generator.integers(len(classes)))]]
        centre = voxels[int(generator.integers(len(voxels)))]
        wanted = [int(at) - side // 2 for at, side in zip(centre, patch, strict=True)]
        start = [min(max(at, a), b) for at, a, b in zip(wanted, low, high, strict=True)]
    return (start[0], start[1], start[2])


def _overlap(
    begin: Sequence[int], sides: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where in the volume the box's part inside of it lies, and where in the box."""
    source, target = [], []
    for start, side, length in zip(begin, sides, shape, strict=True):
        first, last = min(max(start, 0), length), max(min(start + side, length), 0)
        last = max(first, last)
        source.append(slice(first, last))
        target.append(slice(first - start, last - start))
    return tuple(source), tuple(target)
