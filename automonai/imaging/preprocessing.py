"""Preparing cases: cropped, resampled, cached on disk, and the way back to the original grid.

Normalising is pointwise and is done when a patch is read, from the case's own statistics: so one cached volume, in the
file's own unit and often in its small integer type, serves all normalisations. Volumes are (C, X, Y, Z) in RAS order.

Resampling is linear with voxels as little boxes, both grids covering the same extent (torch's align_corners=False), so
that sizes alone say where a voxel lies.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from automonai.domain.configuration import Crop, Normalisation
from automonai.domain.dataset import Case, Dataset
from automonai.domain.fingerprint import ChannelFacts, IntTriple, Triple
from automonai.domain.records import Record
from automonai.errors import DatasetError
from automonai.imaging.content import file_digest, remembered_digest
from automonai.imaging.measuring import Measures, measure, non_finite_count
from automonai.imaging.nifti import MAX_VOXELS
from automonai.imaging.prepared_room import make_room, making, note_use
from automonai.imaging.reading import Volume, read_image, read_label
from automonai.storage.local import write_whole

logger = logging.getLogger(__name__)

FOREGROUND_SAMPLE = 5000
"""Voxels per class whose coordinates are kept: enough to centre patches on, whatever the size of the structure."""

_FORMAT = 3  # of a cached case; a change of what is computed must raise it
_FOREGROUND_SEED = 20_250_101
_PIECE_VOXELS = 1 << 20


class Placement(Record):
    """Where a prepared volume lies in the original RAS grid: a box of it, at another voxel size perhaps."""

    shape_voxels: IntTriple
    """Of the original volume."""
    box_start: IntTriple
    box_shape: IntTriple
    prepared_shape: IntTriple
    """Of the prepared volume, which covers exactly the box."""


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case as training and prediction read it.

    Attributes:
        id: Of the case.
        image: (C, X, Y, Z), memory-mapped if cached; the file's own unit; integers if the file has them and nothing
            was resampled, else float32.
        label: (X, Y, Z) uint8 class indices; None without a label.
        statistics: Of each channel, over the original voxels that are not background.
        foreground: Class index to (n, 3) int32 coordinates of some of its voxels, at most FOREGROUND_SAMPLE; read from
            the file each time if cached.
        spacing_mm: Voxel size of the prepared volume.
        placement: How to go back.
        background: Each channel's value where there is nothing; None if there is no background.
        original_label: Returns the label of the placement's box on the original grid, (X, Y, Z) uint8 class indices,
            mapped each time if cached; None without a label, or where `label` is on that grid.
    """

    id: str
    image: NDArray
    label: NDArray[np.uint8] | None
    statistics: tuple[ChannelFacts, ...]
    foreground: Mapping[int, NDArray[np.int32]]
    spacing_mm: Triple
    placement: Placement
    background: tuple[float, ...] | None
    original_label: Callable[[], NDArray[np.uint8]] | None = None


@dataclass(frozen=True)
class _StoredForeground(Mapping[int, NDArray[np.int32]]):
    """Coordinates that stay in a cached case's file, which is mapped for as long as one of its arrays is in use.

    In memory they took 60 KB for each class and case, of which a patch needs one row; and a map that is kept would be
    a third open file for each case.
    """

    path: Path
    """Of rows (class index, x, y, z) int32, by class."""
    offset: int
    """Bytes before the first row."""
    rows: dict[int, slice]
    """Of each class, in ascending order."""

    @classmethod
    def of(cls, path: Path) -> _StoredForeground:
        stored = np.load(path, mmap_mode="r")
        found = np.unique(stored[:, 0], return_index=True, return_counts=True)
        classes = zip(*(numbers.tolist() for numbers in found), strict=True)
        return cls(path, stored.offset, {index: slice(start, start + count) for index, start, count in classes})

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        rows = self.rows[index]
        return self._mapped()[rows, 1:]

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def items(self) -> ItemsView[int, NDArray[np.int32]]:
        """Return classes and coordinates, for one opening of the file."""
        mapped = self._mapped()
        return {index: mapped[rows, 1:] for index, rows in self.rows.items()}.items()

    def _mapped(self) -> NDArray[np.int32]:
        return np.asarray(np.memmap(self.path, np.int32, "r", self.offset)).reshape(-1, 4)


class _CachedFacts(Record):
    """What is stored beside a cached case's arrays."""

    statistics: tuple[ChannelFacts, ...]
    spacing_mm: Triple
    placement: Placement
    background: tuple[float, ...] | None


def prepare_case(
    dataset: Dataset, case: Case, *, spacing_mm: Triple | None, crop: Crop, cache_folder: Path
) -> PreparedCase:
    """Return a case from the cache, preparing it first if it is not there.

    Whoever comes second waits for the first one's work. What a killed process left is removed by the next one.

    Args:
        dataset: Which says where the case's files lie and what label values there are.
        case: With or without a label.
        spacing_mm: Voxel size to resample to; None keeps the case's own.
        crop: Whether to keep only the box around what is not background.
        cache_folder: Any number of processes may share it.

    Raises:
        DatasetError: If the case's files cannot be read; `check_dataset` tells more.
    """
    folder = cache_folder / _cache_key(dataset, case, spacing_mm, crop, cache_folder)
    while True:
        if not folder.is_dir():
            with making(folder) as unfinished:
                if not folder.is_dir():
                    prepared = _read_and_prepare(dataset, case, spacing_mm=spacing_mm, crop=crop)
                    make_room(cache_folder, _stored_bytes(prepared))
                    _store(prepared, unfinished)
                    unfinished.rename(folder)
        try:
            note_use(folder)
        except FileNotFoundError:
            logger.debug("%s was evicted before it could be used", folder)
        else:
            return _load(case.id, folder)


def _read_and_prepare(dataset: Dataset, case: Case, *, spacing_mm: Triple | None, crop: Crop) -> PreparedCase:
    volume = read_image(dataset.image_paths(case))
    label = read_label(dataset.label_path(case), sorted(dataset.labels), image=volume) if case.label else None
    return _prepare(case.id, volume, label, spacing_mm=spacing_mm, crop=crop)


def prepare_image(case_id: str, volume: Volume, *, spacing_mm: Triple | None, crop: Crop) -> PreparedCase:
    """Prepare an image for prediction: as `prepare_case` does, without label and cache.

    Raises:
        DatasetError: If a voxel is NaN or infinite, or the spacing would give too many voxels.
    """
    return _prepare(case_id, volume, None, spacing_mm=spacing_mm, crop=crop)


def normalise(
    image: NDArray, *, normalisation: Normalisation, statistics: Sequence[ChannelFacts]
) -> NDArray[np.float32]:
    """Scale intensities voxel by voxel, so that a patch gets what the whole volume would give it.

    Args:
        image: (C, ...) in the file's own unit; is not changed.
        normalisation: Which scale.
        statistics: Of the case the image is from, one per channel.

    Returns:
        A new array of the same shape.
    """
    result = np.array(image, np.float32)
    for channel, facts in zip(result, statistics, strict=True):
        match normalisation:
            case Normalisation.NONE:
                continue
            case Normalisation.ZSCORE:
                offset, scale = facts.mean, facts.std
            case Normalisation.PERCENTILE_ZSCORE:
                np.minimum(channel, np.float32(facts.percentile_99_5), out=channel)
                offset = facts.mean if facts.clipped_mean is None else facts.clipped_mean
                scale = facts.std if facts.clipped_std is None else facts.clipped_std
            case Normalisation.MINMAX:
                np.clip(channel, np.float32(facts.minimum), np.float32(facts.maximum), out=channel)
                offset, scale = facts.minimum, facts.maximum - facts.minimum
        channel -= np.float32(offset)
        channel /= np.float32(scale) if scale > 1e-8 * abs(offset) else np.float32(1)
    return result


def restore_probabilities(
    probabilities: NDArray, placement: Placement, slab: int = 16
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield probabilities on the original RAS grid, slab by slab along x, so that they never exist as a whole.

    Args:
        probabilities: (K, X, Y, Z) on the prepared grid, memory-mapped perhaps, of any float type.
        placement: Of the prepared image.
        slab: Planes of the original grid per piece.

    Yields:
        First plane, and (K, planes, Y, Z) float32; outside of the box class 0 has 1.
    """
    classes = probabilities.shape[0]
    full_x, full_y, full_z = placement.shape_voxels
    box_x, box_y, box_z = _box_slices(placement)
    for start in range(0, full_x, slab):
        stop = min(start + slab, full_x)
        result = np.zeros((classes, stop - start, full_y, full_z), np.float32)
        result[0] = 1
        first, last = max(start, box_x.start), min(stop, box_x.stop)
        if first < last:
            planes = np.arange(first, last) - box_x.start
            result[:, first - start : last - start, box_y, box_z] = _planes(probabilities, placement, planes)
        yield start, result


def _planes(probabilities: NDArray, placement: Placement, planes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the box's planes (K, planes, Y, Z), interpolated linearly along x, then in the plane."""
    box, prepared = placement.box_shape, placement.prepared_shape
    if box == prepared:
        return np.asarray(probabilities[:, planes], np.float32)
    position = np.clip((planes + 0.5) * prepared[0] / box[0] - 0.5, 0, prepared[0] - 1)
    lower = np.floor(position).astype(np.int64)
    weight = (position - lower).astype(np.float32)[:, None, None]
    base = lower[0]
    needed = np.asarray(probabilities[:, base : lower[-1] + 2], np.float32)
    upper = np.minimum(lower + 1, prepared[0] - 1)
    mixed = needed[:, lower - base] * (1 - weight) + needed[:, upper - base] * weight
    plane = interpolate(torch.from_numpy(mixed), size=box[1:], mode="bilinear", align_corners=False)
    return np.asarray(plane.numpy())


def _box_slices(placement: Placement) -> tuple[slice, slice, slice]:
    x, y, z = (slice(start, start + side) for start, side in zip(placement.box_start, placement.box_shape, strict=True))
    return x, y, z


def _prepare(
    case_id: str, volume: Volume, label: NDArray[np.uint8] | None, *, spacing_mm: Triple | None, crop: Crop
) -> PreparedCase:
    if any(non_finite_count(channel) for channel in volume.voxels):
        raise DatasetError([f"{case_id}: has voxels that are NaN or infinite"])
    measures = measure(volume.voxels, label)
    placement = _place(case_id, volume, measures, spacing_mm=spacing_mm, crop=crop)
    box = _box_slices(placement)
    image = _resample_image(volume.voxels[(slice(None), *box)], placement.prepared_shape)
    prepared_label = None if label is None else _resample_label(label[box], placement.prepared_shape)
    is_kept = placement.prepared_shape == placement.box_shape
    return PreparedCase(
        id=case_id,
        image=image,
        label=prepared_label,
        statistics=measures.channels,
        foreground={} if prepared_label is None else _foreground(prepared_label),
        spacing_mm=volume.spacing_mm if is_kept or spacing_mm is None else spacing_mm,
        placement=placement,
        background=measures.background,
        original_label=None if label is None or is_kept else lambda: label[box],
    )


def _place(case_id: str, volume: Volume, measures: Measures, *, spacing_mm: Triple | None, crop: Crop) -> Placement:
    x, y, z = volume.voxels.shape[1:]
    shape = (x, y, z)
    start, box = ((0, 0, 0), shape) if crop is Crop.NONE else (measures.box_start, measures.box_shape)
    target = spacing_mm or volume.spacing_mm
    px, py, pz = (
        max(1, round(side * own / wanted)) for side, own, wanted in zip(box, volume.spacing_mm, target, strict=True)
    )
    if px * py * pz > MAX_VOXELS:
        raise DatasetError(
            [
                f"{case_id}: resampling {box} voxels of {volume.spacing_mm} mm to {target} mm gives more than"
                f" {MAX_VOXELS} voxels"
            ]
        )
    return Placement(shape_voxels=shape, box_start=start, box_shape=box, prepared_shape=(px, py, pz))


def _resample_image(image: NDArray, shape: IntTriple) -> NDArray:
    """Return the image on a grid of that shape, one channel at a time as float32; unchanged if it has that shape."""
    if image.shape[1:] == shape:
        return image
    result = np.empty((len(image), *shape), np.float32)
    for channel, resampled in zip(image, result, strict=True):
        resampled[...] = _linear(channel, shape)
    return result


def _resample_label(label: NDArray[np.uint8], shape: IntTriple) -> NDArray[np.uint8]:
    """Return each voxel's most likely class, memberships interpolated linearly; classes go through one by one.

    On a grid that is coarser by an even factor every border is a tie. The higher class has it, as by nnU-Net's
    `resample_data_or_seg`: a background that won would make all structures smaller.
    """
    if label.shape == shape:
        return label
    result = np.zeros(shape, np.uint8)
    best = np.zeros(shape, np.float32)
    for index in np.unique(label):
        membership = _linear(label == index, shape)
        wins = (membership >= best) & (membership > 0)
        result[wins] = index
        np.maximum(best, membership, out=best)
    return result


def _linear(volume: NDArray, shape: IntTriple) -> NDArray[np.float32]:
    tensor = torch.from_numpy(np.array(volume, np.float32, order="C"))
    resampled = interpolate(tensor[None, None], size=shape, mode="trilinear", align_corners=False)
    return np.asarray(resampled[0, 0].numpy())


def _foreground(label: NDArray[np.uint8]) -> dict[int, NDArray[np.int32]]:
    """Draw the coordinates of each class's voxels; the seed is fixed, so that a cache built again is the same."""
    generator = np.random.default_rng(_FOREGROUND_SEED)
    flat = np.ascontiguousarray(label).ravel()
    counts = np.zeros(256, np.int64)
    for _, piece in _pieces(flat):
        counts += np.bincount(piece, minlength=256)
    found = {}
    for index in (np.flatnonzero(counts[1:]) + 1).tolist():
        count = int(counts[index])
        ranks = np.arange(min(count, FOREGROUND_SAMPLE))
        if count > FOREGROUND_SAMPLE:
            ranks = np.sort(generator.choice(count, FOREGROUND_SAMPLE, replace=False))
        positions = _positions(flat, index, ranks)
        found[index] = np.stack(np.unravel_index(positions, label.shape), axis=1).astype(np.int32)
    return found


def _positions(flat: NDArray[np.uint8], index: int, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where a class's voxels of those ranks, in ascending order, are among all voxels."""
    seen, parts = 0, []
    for start, piece in _pieces(flat):
        places = np.flatnonzero(piece == index)
        first, last = np.searchsorted(ranks, (seen, seen + len(places)))
        parts.append(start + places[ranks[first:last] - seen])
        seen += len(places)
    return np.concatenate(parts)


def _pieces(flat: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield first position and voxels, so few that the 64-bit integers that numpy makes of them do not matter."""
    for start in range(0, len(flat), _PIECE_VOXELS):
        yield start, flat[start : start + _PIECE_VOXELS]


def _cache_key(dataset: Dataset, case: Case, spacing_mm: Triple | None, crop: Crop, cache_folder: Path) -> str:
    """Return the cache entry's name: a hash of the files' bytes and of every choice that shapes the arrays."""
    paths = [*dataset.image_paths(case), *([dataset.label_path(case)] if case.label else [])]
    parts = [
        _FORMAT,
        [file_digest(path, partial(remembered_digest, cache_folder=cache_folder)) for path in paths],
        sorted(dataset.labels) if case.label else None,
        spacing_mm,
        crop.value,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _store(prepared: PreparedCase, folder: Path) -> None:
    """Write a new cache entry in place of what a killed process left there; leave nothing if that fails."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        _write(prepared, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(prepared: PreparedCase, folder: Path) -> None:
    _save(folder / "image.npy", prepared.image)
    if prepared.label is not None:
        _save(folder / "label.npy", prepared.label)
    if prepared.original_label is not None:
        _save(folder / "original_label.npy", prepared.original_label())
    rows = [np.insert(places, 0, index, axis=1) for index, places in prepared.foreground.items()]
    _save(folder / "foreground.npy", np.concatenate([np.empty((0, 4), np.int32), *rows]))
    facts = _CachedFacts(
        statistics=prepared.statistics,
        spacing_mm=prepared.spacing_mm,
        placement=prepared.placement,
        background=prepared.background,
    )
    write_whole(folder / "case.json", lambda stream: stream.write(facts.model_dump_json().encode()))


def _stored_bytes(prepared: PreparedCase) -> int:
    places = sum(len(found) for found in prepared.foreground.values())
    labels = [] if prepared.label is None else [prepared.label]
    labels += [] if prepared.original_label is None else [prepared.original_label()]
    return prepared.image.nbytes + sum(label.nbytes for label in labels) + 16 * places


def _save(path: Path, array: NDArray) -> None:
    """Write an array in C order, layer by layer, so that no second copy of it is held; synced to the disk."""
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for part in array:
            for layer in part if array.ndim == 4 else [part]:
                stream.write(np.ascontiguousarray(layer).data)
        stream.flush()
        os.fsync(stream.fileno())


def _load(case_id: str, folder: Path) -> PreparedCase:
    facts = _CachedFacts.model_validate_json((folder / "case.json").read_text(encoding="utf-8"))
    label, original_label = folder / "label.npy", folder / "original_label.npy"
    return PreparedCase(
        id=case_id,
        image=np.load(folder / "image.npy", mmap_mode="r"),
        label=np.load(label, mmap_mode="r") if label.is_file() else None,
        statistics=facts.statistics,
        foreground=_StoredForeground.of(folder / "foreground.npy"),
        spacing_mm=facts.spacing_mm,
        placement=facts.placement,
        background=facts.background,
        original_label=partial(np.load, original_label, mmap_mode="r") if original_label.is_file() else None,
    )
