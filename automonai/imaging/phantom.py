"""A seeded dataset of its own: nested structures in a head, in MSD layout, for trying things out and for tests.

What makes it hard enough to tell models apart: contrast that varies from case to case and fades into noise, a bias
field, an arbitrary intensity scale, smooth deformations, and look-alikes without a label (the organ's mirror image
on the other side of the head, and lesions outside of the organ), so that position counts and flips do harm.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from automonai.domain.fingerprint import IntTriple
from automonai.errors import SpecError
from automonai.imaging.nifti import write_nifti
from automonai.storage.local import write_whole

_ORIENTATIONS = ("RAS", "LPS", "LAS", "ASL")
_MIN_SIDE = 16
_MAX_CLASSES = 8
_KNOTS = 5  # of the smooth random fields along each axis
_HEAD_HALF_AXES = (0.78, 0.86, 0.80)  # of the volume's half extent: some 70 % of the voxels are background


@dataclass(frozen=True)
class _Pose:
    """Where the organ lies in a case; lengths are shares of the head's half axes."""

    center: NDArray[np.float32]
    half_axes: NDArray[np.float32]
    rotation: NDArray[np.float32]


def write_phantom(
    folder: Path,
    *,
    cases: int = 24,
    seed: int = 0,
    shape: IntTriple = (48, 56, 40),
    channels: int = 1,
    classes: int = 2,
) -> None:
    """Write a dataset; the same arguments give the same voxels.

    Args:
        folder: Where to; dataset.json comes last, existing files of the same names are replaced.
        cases: How many.
        seed: Of everything random.
        shape: Voxels of the largest case along x, y and z; the others have down to 85 % of it along each axis.
        channels: Contrasts of the same anatomy.
        classes: Structures: an organ, and lesions nested in it.

    Raises:
        SpecError: If an axis has fewer than 16 voxels, or a count is out of range.
    """
    if min(shape) < _MIN_SIDE:
        raise SpecError(f"phantom: shape {shape} has an axis below {_MIN_SIDE} voxels")
    if cases < 1 or channels < 1 or not 1 <= classes <= _MAX_CLASSES:
        raise SpecError(
            f"phantom: {cases} cases, {channels} channels, {classes} classes; "
            f"expected at least one of each and at most {_MAX_CLASSES} classes"
        )
    digits = max(3, len(str(cases)))
    names = [f"phantom_{number:0{digits}d}" for number in range(1, cases + 1)]
    for number, name in enumerate(names):
        generator = np.random.default_rng([seed, number])
        _write_case(folder, name, generator, _sizes(generator, shape, number), channels, classes)
    document = json.dumps(_document(names, channels, classes), indent=1).encode()
    write_whole(folder / "dataset.json", lambda stream: stream.write(document))


def _document(names: Sequence[str], channels: int, classes: int) -> dict[str, object]:
    return {
        "name": "Phantom",
        "description": "Synthetic: an organ with nested lesions in a head",
        "tensorImageSize": "4D" if channels > 1 else "3D",
        "modality": {str(number): f"contrast {number + 1}" for number in range(channels)},
        "labels": {"0": "background", "1": "organ"} | {str(k): f"lesion {k - 1}" for k in range(2, classes + 1)},
        "numTraining": len(names),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names],
        "test": [],
    }


def _sizes(generator: np.random.Generator, shape: IntTriple, number: int) -> IntTriple:
    shares = generator.uniform(0.85, 1.0, 3) if number else np.ones(3)
    x, y, z = (max(_MIN_SIDE, round(side * share)) for side, share in zip(shape, shares, strict=True))
    return (x, y, z)


def _write_case(
    folder: Path, name: str, generator: np.random.Generator, shape: IntTriple, channels: int, classes: int
) -> None:
    spacing = (0.9 * generator.uniform(0.9, 1.1), 0.9 * generator.uniform(0.9, 1.1), generator.uniform(1.2, 2.4))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = generator.uniform(-50, 50, 3)
    image, label = _case(generator, shape, channels, classes)
    codes = _ORIENTATIONS[int(generator.integers(len(_ORIENTATIONS)))]
    write_nifti(folder / "imagesTr" / f"{name}.nii.gz", *_oriented(image, affine, codes))
    write_nifti(folder / "labelsTr" / f"{name}.nii.gz", *_oriented(label, affine, codes))


def _oriented(values: NDArray, affine: NDArray[np.float64], codes: str) -> tuple[NDArray, NDArray[np.float64]]:
    """Return a RAS array and its affine in another axis order; a single channel needs no fourth axis."""
    transform = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    stored = nib.orientations.apply_orientation(values, transform)
    back = nib.orientations.inv_ornt_aff(transform, values.shape[:3])
    return stored[..., 0] if stored.shape[3:] == (1,) else stored, affine @ back


def _case(
    generator: np.random.Generator, shape: IntTriple, channels: int, classes: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Return image (X, Y, Z, C) and label (X, Y, Z) in RAS order."""
    position = _position(generator, shape)
    radius = np.sqrt(sum(axis**2 for axis in position))
    pose = _pose(generator)
    layers, label = _structures(generator, position, pose, classes)
    tissue = 1 + 0.12 * _smooth_field(generator, shape)
    gain = generator.uniform(150, 400)
    image = np.empty((*shape, channels), np.int16, order="F")
    for channel in range(channels):
        values = tissue + _contrasts(generator, layers, channel)
        values *= 1 + 0.2 * _smooth_field(generator, shape)
        values += np.float32(0.09) * generator.standard_normal(shape, np.float32)
        values *= gain * (radius < 1)
        image[..., channel] = np.clip(np.rint(values), 0, 32767)
    return image, label


def _position(generator: np.random.Generator, shape: IntTriple) -> list[NDArray[np.float32]]:
    """Return each voxel's place in the head along x, y and z, deformed smoothly; the head is the unit ball."""
    axes = [
        np.linspace(-1, 1, side, dtype=np.float32) / half for side, half in zip(shape, _HEAD_HALF_AXES, strict=True)
    ]
    grids = np.meshgrid(*axes, indexing="ij", sparse=True)
    return [grid + 0.06 * _smooth_field(generator, shape) for grid in grids]


def _smooth_field(generator: np.random.Generator, shape: IntTriple) -> NDArray[np.float32]:
    """Return a random field (X, Y, Z) of some unit variance: Gaussian bumps on a coarse grid, axis by axis."""
    field = generator.standard_normal((_KNOTS,) * 3, np.float32)
    for axis, side in enumerate(shape):
        knots = np.linspace(-1, 1, _KNOTS, dtype=np.float32)
        places = np.linspace(-1, 1, side, dtype=np.float32)
        basis = np.exp(-(((places[:, None] - knots) * (_KNOTS - 1) / 2) ** 2)).astype(np.float32)
        field = np.moveaxis(np.tensordot(basis, field, axes=(1, axis)), 0, axis)
    return np.asarray(field)


def _pose(generator: np.random.Generator) -> _Pose:
    angles = generator.uniform(-0.35, 0.35, 3)
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    return _Pose(
        center=(np.array([-0.38, 0.05, -0.05]) + generator.uniform(-0.08, 0.08, 3)).astype(np.float32),
        half_axes=(np.array([0.30, 0.42, 0.34]) * generator.uniform(0.8, 1.15, 3)).astype(np.float32),
        rotation=rotation.astype(np.float32),
    )


def _structures(
    generator: np.random.Generator, position: list[NDArray[np.float32]], pose: _Pose, classes: int
) -> tuple[list[NDArray[np.float32]], NDArray[np.uint8]]:
    """Return each structure's share of every voxel, look-alikes included, and the label (X, Y, Z)."""
    mirrored = [-position[0], position[1], position[2]]
    organ = _distance(position, pose.center, pose)
    inside = _filled(organ)
    label = inside.astype(np.uint8)
    layers = [np.maximum(_share(organ), _share(_distance(mirrored, pose.center, pose)))]
    for index in range(2, classes + 1):
        size = generator.uniform(0.38, 0.52) * 0.85 ** (index - 2)
        lesion = _Pose(_nested_center(generator, pose, size), pose.half_axes * np.float32(size), pose.rotation)
        distance = _distance(position, lesion.center, lesion)
        twin = _distance(mirrored, lesion.center, lesion)
        stray = _distance(position, _stray_center(generator), lesion)
        label[_filled(np.where(inside, distance, np.inf))] = index
        layers.append(np.maximum(_share(distance), np.maximum(_share(twin), _share(stray))))
    return layers, label


def _nested_center(generator: np.random.Generator, pose: _Pose, size: float) -> NDArray[np.float32]:
    """Return a random center for a lesion of that size (as a share of the organ) that lies within the organ."""
    direction = generator.standard_normal(3)
    direction *= generator.uniform(0, 0.9 * (1 - size)) / np.linalg.norm(direction)
    return np.asarray(pose.center + pose.rotation @ (direction * pose.half_axes), np.float32)


def _stray_center(generator: np.random.Generator) -> NDArray[np.float32]:
    """Return a place near the midline at the back, where no organ is."""
    return (np.array([0.0, -0.68, 0.1]) + generator.uniform(-0.12, 0.12, 3)).astype(np.float32)


def _distance(position: list[NDArray[np.float32]], center: NDArray[np.float32], pose: _Pose) -> NDArray[np.float32]:
    """Return each voxel's distance from the center in half axes: 1 on the surface."""
    total = np.zeros(position[0].shape, np.float32)
    for axis in range(3):
        along = sum(pose.rotation[k, axis] * (position[k] - center[k]) for k in range(3))
        total += (along / pose.half_axes[axis]) ** 2
    return np.asarray(np.sqrt(total))


def _share(distance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how much of a voxel a structure fills: edges are soft, as partial volumes make them."""
    return np.clip((1 - distance) / 0.2 + 0.5, 0, 1)


def _filled(distance: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the voxels within the surface, at least the one that is nearest to the center."""
    inside = distance < 1
    if not inside.any():
        inside.flat[distance.argmin()] = True
    return inside


def _contrasts(generator: np.random.Generator, layers: list[NDArray[np.float32]], channel: int) -> NDArray[np.float32]:
    """Return what structures add to the tissue: signs alternate with structure and channel, strengths vary by case."""
    total = np.zeros(layers[0].shape, np.float32)
    for index, layer in enumerate(layers):
        sign = -1 if (index + channel * (index + 1)) % 2 else 1
        total += np.float32(sign * generator.uniform(0.12, 0.32)) * layer
    return total
