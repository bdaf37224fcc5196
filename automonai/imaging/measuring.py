"""Background, bounding box and intensities of one volume: the same figures for a check, a training and a prediction.

Volumes are (C, X, Y, Z), masks and labels (X, Y, Z). Nothing here holds more than one boolean volume and one channel's
masked values beside its input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automonai.domain.fingerprint import ChannelFacts, IntTriple

_SAMPLE_VALUES = 1_000_000
"""Percentiles come from a sample of this size, at most twice it; see `_sample`."""
_SAMPLE_SEED = 20_251_101

_CHUNK_VALUES = 1 << 20


@dataclass(frozen=True)
class Measures:
    """Facts of one volume.

    Attributes:
        background: Each channel's value where there is nothing; None if the volume has no background.
        box_start: First voxel of the box around what is not background, or labelled.
        box_shape: The box's extent; the whole volume if there is no background.
        channels: Intensities over the voxels that are not background.
    """

    background: tuple[float, ...] | None
    box_start: IntTriple
    box_shape: IntTriple
    channels: tuple[ChannelFacts, ...]


def measure(voxels: NDArray, label: NDArray[np.uint8] | None = None) -> Measures:
    """Measure a volume of finite values.

    A value counts as background if it fills more than half of the volume's six outer faces, in every channel; it
    need not be zero. A voxel is background where all channels have theirs.

    Args:
        voxels: (C, X, Y, Z) in the image's own unit.
        label: (X, Y, Z) class indices; the box extends over what is labelled.
    """
    background = _background(voxels)
    if background is None:
        return Measures(None, (0, 0, 0), _triple(voxels.shape[1:]), tuple(_facts(c) for c in voxels))
    content = _content(voxels, background)
    # Files are stored x first: picking voxels in memory's order instead of (x, y, z) is three times as fast.
    flat = content.ravel(order="K")
    channels = tuple(_facts(channel.ravel(order="K")[flat]) for channel in voxels)
    if label is not None:
        content |= label > 0
    start, shape = _box(content)
    return Measures(background, start, shape, channels)


def non_finite_count(channel: NDArray) -> int:
    """Return how many voxels of a channel are NaN or infinite."""
    if channel.dtype.kind != "f":
        return 0
    return sum(int(np.count_nonzero(~np.isfinite(chunk))) for chunk in _chunks(channel))


def _background(voxels: NDArray) -> tuple[float, ...] | None:
    found = []
    for channel in voxels:
        faces = np.concatenate([channel.take(end, axis).ravel() for axis in range(3) for end in (0, -1)])
        values, counts = np.unique(faces, return_counts=True)
        most = int(counts.argmax())
        if 2 * counts[most] <= len(faces):
            return None
        found.append(float(values[most]))
    return tuple(found)


def _content(voxels: NDArray, background: tuple[float, ...]) -> NDArray[np.bool_]:
    """Return where any channel differs from its background; everywhere if none does."""
    content = voxels[0] != voxels.dtype.type(background[0])
    for channel, value in zip(voxels[1:], background[1:], strict=True):
        content |= channel != voxels.dtype.type(value)
    if not content.any():
        content[:] = True
    return np.asarray(content)


def _box(content: NDArray[np.bool_]) -> tuple[IntTriple, IntTriple]:
    starts, sides = [], []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        filled = np.flatnonzero(content.any(axis=others))
        starts.append(int(filled[0]))
        sides.append(int(filled[-1] - filled[0] + 1))
    return _triple(starts), _triple(sides)


def _facts(values: NDArray) -> ChannelFacts:
    flat = values.ravel(order="K")
    low, high = (float(value) for value in np.percentile(_sample(flat), (0.5, 99.5)))
    mean, std = _moments(flat, np.inf)
    clipped_mean, clipped_std = _moments(flat, high)
    return ChannelFacts(
        minimum=float(flat.min()),
        maximum=float(flat.max()),
        mean=mean,
        std=std,
        percentile_00_5=low,
        percentile_99_5=high,
        clipped_mean=clipped_mean,
        clipped_std=clipped_std,
    )


def _sample(flat: NDArray) -> NDArray:
    """Return one value of each of a million or more equal stretches, by a generator of fixed seed; few values all.

    The standard error of the percentiles' ranks is 0.007 % at most (of a million independent draws; stretches that
    differ make it smaller), whatever the order of the values. A fixed step would take the same columns of every row
    where it divides the row's length.
    """
    stretch = len(flat) // _SAMPLE_VALUES
    if stretch < 2:
        return flat
    starts = np.arange(0, len(flat) - stretch + 1, stretch)
    return flat[starts + np.random.default_rng(_SAMPLE_SEED).integers(0, stretch, len(starts))]


def _moments(flat: NDArray, ceiling: float) -> tuple[float, float]:
    """Return mean and standard deviation once values above the ceiling are set to it; sums are double precision."""
    shift = min(float(flat[len(flat) // 2]), ceiling)  # keeps the squares small where the mean is large
    total = squares = 0.0
    for chunk in _chunks(flat):
        apart = np.minimum(chunk, ceiling, dtype=np.float64) - shift
        total += float(apart.sum())
        squares += float(apart @ apart)
    mean = total / len(flat)
    return mean + shift, float(np.sqrt(max(0.0, squares / len(flat) - mean**2)))


def _chunks(values: NDArray) -> Iterator[NDArray]:
    flat = values.ravel(order="K")
    for start in range(0, len(flat), _CHUNK_VALUES):
        yield flat[start : start + _CHUNK_VALUES]


def _triple(values: Sequence[int]) -> IntTriple:
    x, y, z = values
    return (x, y, z)
