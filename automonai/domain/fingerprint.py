"""Fingerprint: facts of the training cases, no choices. All axes are in RAS order: (x, y, z)."""

from __future__ import annotations

from statistics import fmean, median
from typing import Annotated

from pydantic import Field

from automonai.domain.records import Record

Triple = tuple[float, float, float]
IntTriple = tuple[int, int, int]


class ChannelFacts(Record):
    """Intensities of one channel over the voxels that are not background, in the image's own unit."""

    minimum: float
    maximum: float
    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float
    clipped_mean: float | None = None
    """Mean once what exceeds the 99.5th percentile is set to it; None where that changes nothing."""
    clipped_std: float | None = None


class CaseFacts(Record):
    """Geometry and intensities of one case."""

    id: str
    shape_voxels: IntTriple
    spacing_mm: Triple
    box_start: IntTriple
    """First voxel of the box around what is not background (or is labelled)."""
    box_shape: IntTriple
    """Extent of that box in voxels; equals `shape_voxels` where there is no background."""
    channels: tuple[ChannelFacts, ...]
    class_voxels: dict[int, int]
    """Voxels of each label value, background included."""


class Fingerprint(Record):
    """Facts of the development cases of a study; no test case is among them."""

    version: int = 1
    cases: Annotated[tuple[CaseFacts, ...], Field(min_length=1)]

    @property
    def median_spacing_mm(self) -> Triple:
        """Return the median voxel size of each axis in mm."""
        return _per_axis(median, [case.spacing_mm for case in self.cases])

    @property
    def mean_spacing_mm(self) -> Triple:
        """Return the mean voxel size of each axis in mm."""
        return _per_axis(fmean, [case.spacing_mm for case in self.cases])

    @property
    def has_uniform_spacing(self) -> bool:
        """Whether every case has the same voxel size to 0.1 %, so that resampling changes nothing."""
        first = self.cases[0].spacing_mm
        return all(abs(a - b) <= 1e-3 * b for case in self.cases for a, b in zip(case.spacing_mm, first, strict=True))

    def median_shape_voxels(self, spacing_mm: Triple | None = None, *, cropped: bool = True) -> IntTriple:
        """Return the median extent of each axis in voxels.

        Args:
            spacing_mm: Count voxels of this size; None counts each case's own.
            cropped: Measure the box around what is not background instead of the whole volume.
        """
        shapes: list[Triple] = []
        for case in self.cases:
            shape = case.box_shape if cropped else case.shape_voxels
            target = spacing_mm or case.spacing_mm
            scaled = [max(1, round(n * s / t)) for n, s, t in zip(shape, case.spacing_mm, target, strict=True)]
            shapes.append((scaled[0], scaled[1], scaled[2]))
        x, y, z = _per_axis(median, shapes)
        return (round(x), round(y), round(z))


def _per_axis(statistic, rows: list[Triple]) -> Triple:  # type: ignore[no-untyped-def]
    x, y, z = (float(statistic([row[axis] for row in rows])) for axis in range(3))
    return (x, y, z)
