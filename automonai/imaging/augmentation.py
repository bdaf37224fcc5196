"""Random changes of training batches, on the device that trains: one resampling step, then intensities.

Rotation, scaling, elastic deformation and flips become one grid that each patch is sampled by, once. The kinds are
nnU-Net's (Isensee et al. 2021, supplementary note 4), mostly with its probabilities, but rotation and scaling are more
frequent (half of the patches each) and most ranges narrower; `strength` scales the ranges. The same seed gives the same
batch on one kind of device.
Axes: image_BCXYZ, label_BXYZ, grid_BXYZ3 (last: x, y, z in voxels).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, radians, sin

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from automonai.domain.fingerprint import IntTriple, Triple
from automonai.domain.plan import Plan

ROTATION_DEGREES = 15.0
SCALING = 1.25
"""A structure becomes up to this many times larger, or smaller."""
ELASTIC_SHARE = 0.04
"""Standard deviation of a displacement as a share of the patch's shortest side; some 1.5 voxels in 40."""

_ELASTIC_NODES = 5  # per axis; the deformation is linear between them
_ROTATION_PROBABILITY = 0.5
_SCALING_PROBABILITY = 0.5
_ELASTIC_PROBABILITY = 0.2
_FLIP_PROBABILITY = 0.5
_NOISE_PROBABILITY = 0.15
_BRIGHTNESS_PROBABILITY = 0.15
_CONTRAST_PROBABILITY = 0.15
_COARSE_PROBABILITY = 0.1
_GAMMA_PROBABILITY = 0.3
_LOG_GAMMA = (float(np.log(0.7)), float(np.log(1.5)))
_NOISE_STD = 0.25  # of the patch's own standard deviation
_MARGIN_SHARE = 0.15


@dataclass(frozen=True)
class Augmentation:
    """What is done to the patches of one plan."""

    strength: float
    patch_voxels: IntTriple
    flip_axes: tuple[int, ...]
    slice_axis: int | None = None
    """Of a 2D network: no rotation out of its slices and no displacement across them; None for 3D."""

    @classmethod
    def of(cls, plan: Plan) -> Augmentation:
        """Return a plan's augmentation."""
        is_flat = plan.network.spatial_dims == 2
        return cls(
            strength=plan.configuration.augmentation,
            patch_voxels=plan.patch_voxels,
            flip_axes=plan.flip_axes,
            slice_axis=plan.slice_axis if is_flat else None,
        )

    @property
    def margin_voxels(self) -> IntTriple:
        """Return what `augment` wants to see beyond the patch on each side, for the corners that turn in."""
        if self.strength == 0:
            return (0, 0, 0)
        x, y, z = (
            0 if axis == self.slice_axis else ceil(_MARGIN_SHARE * side) for axis, side in enumerate(self.patch_voxels)
        )
        return (x, y, z)


def augment(
    image_BCXYZ: Tensor,
    label_BXYZ: Tensor,
    *,
    augmentation: Augmentation,
    spacing_B3: NDArray[np.float64],
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return an augmented image_BCXYZ and label_BXYZ of the patch's size.

    Args:
        image_BCXYZ: float32, normalised, with the margin around the patch.
        label_BXYZ: uint8 class indices, with the same margin.
        augmentation: What to do.
        spacing_B3: Voxel size of each patch in mm: rotations are rotations in space, whatever the voxels.
        seed: Of this batch.
    """
    generator = np.random.default_rng(seed)
    images, labels = [], []
    for sample, spacing in enumerate(spacing_B3):
        part = slice(sample, sample + 1)
        flips = tuple(axis for axis in augmentation.flip_axes if generator.random() < _FLIP_PROBABILITY)
        warp = _draw_warp(augmentation, (spacing[0], spacing[1], spacing[2]), generator)
        image_1CXYZ, label_1XYZ = _resampled(image_BCXYZ[part], label_BXYZ[part], augmentation, warp)
        if augmentation.strength > 0:
            image_1CXYZ = _change_intensities(image_1CXYZ, augmentation, generator)
        images.append(image_1CXYZ.flip([2 + axis for axis in flips]) if flips else image_1CXYZ)
        labels.append(label_1XYZ.flip([1 + axis for axis in flips]) if flips else label_1XYZ)
    return torch.cat(images), torch.cat(labels)


@dataclass(frozen=True)
class _Warp:
    """A way from the patch's voxels to the image's, both counted from the centre, in voxels."""

    matrix_33: NDArray[np.float64]
    nodes_3XYZ: NDArray[np.float32] | None
    """Displacements at the corners of a coarse grid; None for no elastic deformation."""


def _draw_warp(augmentation: Augmentation, spacing_mm: Triple, generator: np.random.Generator) -> _Warp | None:
    """Return a random warp; None if this patch stays as it is."""
    if augmentation.strength == 0:
        return None
    rotates, scales, bends = generator.random(3) < (
        _ROTATION_PROBABILITY,
        _SCALING_PROBABILITY,
        _ELASTIC_PROBABILITY,
    )
    matrix = np.eye(3)
    if rotates:
        angles = generator.uniform(-1, 1, 3) * radians(ROTATION_DEGREES) * augmentation.strength
        matrix = rotation_matrix(angles, augmentation.slice_axis)
    if scales:
        factor = float(np.exp(generator.uniform(-1, 1) * np.log(SCALING) * augmentation.strength))
        in_plane = [1.0 if axis == augmentation.slice_axis else 1 / factor for axis in range(3)]
        matrix = matrix * np.array(in_plane)[:, None]
    nodes = _draw_nodes(augmentation, spacing_mm, generator) if bends else None
    if not (rotates or scales or bends):
        return None
    spacing = np.asarray(spacing_mm)
    return _Warp(matrix * spacing[None, :] / spacing[:, None], nodes)


def rotation_matrix(angles: NDArray[np.float64], slice_axis: int | None) -> NDArray[np.float64]:
    """Return the rotation by three angles (radians, about x, y and z); only about `slice_axis` if there is one."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        if slice_axis is not None and axis != slice_axis:
            continue
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = cos(angle)
        turn[first, second], turn[second, first] = -sin(angle), sin(angle)
        matrix = turn @ matrix
    return matrix


def _draw_nodes(augmentation: Augmentation, spacing_mm: Triple, generator: np.random.Generator) -> NDArray[np.float32]:
    extents_mm = [side * mm for side, mm in zip(augmentation.patch_voxels, spacing_mm, strict=True)]
    in_plane = [mm for axis, mm in enumerate(extents_mm) if axis != augmentation.slice_axis]
    std_mm = ELASTIC_SHARE * min(in_plane) * augmentation.strength * generator.uniform(0.25, 1)
    nodes = generator.standard_normal((3, _ELASTIC_NODES, _ELASTIC_NODES, _ELASTIC_NODES))
    nodes *= std_mm / np.asarray(spacing_mm)[:, None, None, None]
    if augmentation.slice_axis is not None:
        nodes[augmentation.slice_axis] = 0
    return nodes.astype(np.float32)


def _resampled(
    image_1CXYZ: Tensor, label_1XYZ: Tensor, augmentation: Augmentation, warp: _Warp | None
) -> tuple[Tensor, Tensor]:
    """Sample the patch's voxels from the image: linearly, the label from the nearest voxel."""
    if warp is None:
        inner = [
            slice((length - side) // 2, (length - side) // 2 + side)
            for length, side in zip(label_1XYZ.shape[1:], augmentation.patch_voxels, strict=True)
        ]
        return image_1CXYZ[:, :, inner[0], inner[1], inner[2]], label_1XYZ[:, inner[0], inner[1], inner[2]]
    grid = _sampling_grid(warp, augmentation.patch_voxels, label_1XYZ.shape[1:], image_1CXYZ.device)
    image = functional.grid_sample(image_1CXYZ, grid, mode="bilinear", align_corners=True)
    label = functional.grid_sample(label_1XYZ[:, None].float(), grid, mode="nearest", align_corners=True)
    return image, label[:, 0].to(label_1XYZ.dtype)


def _sampling_grid(warp: _Warp, patch: IntTriple, shape: tuple[int, ...] | torch.Size, device: torch.device) -> Tensor:
    """Return grid_1XYZ3 as grid_sample wants it: -1 to 1 from the first voxel to the last, z first.

    What depends on one axis or two is computed here and brought to the device at once: a GPU takes longer to be told of
    a small computation than for it.
    """
    scale = np.array([2 / max(1, side - 1) for side in shape], np.float32)
    matrix = warp.matrix_33.astype(np.float32) * scale[:, None]
    x, y, z = (np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2) for side in patch)
    along_x = matrix[:, :1] * x
    across = (matrix[:, 1:2] * y)[:, :, None] + (matrix[:, 2:] * z)[:, None, :]
    parts = torch.from_numpy(np.concatenate([along_x, across.reshape(3, -1)], axis=1)).to(device)
    grid = torch.empty((1, *patch, 3), device=device)
    bend = _displacements(warp, patch, device)
    for axis in range(3):
        target = grid[0, ..., 2 - axis]
        along, plane = parts[axis].split([len(x), len(y) * len(z)])
        torch.add(along[:, None, None], plane.view(len(y), len(z)), out=target)
        if bend is not None:
            target.add_(bend[axis] * float(scale[axis]))
    return grid


def _displacements(warp: _Warp, patch: IntTriple, device: torch.device) -> Tensor | None:
    if warp.nodes_3XYZ is None:
        return None
    nodes = torch.from_numpy(warp.nodes_3XYZ).to(device)
    return functional.interpolate(nodes[None], size=patch, mode="trilinear", align_corners=True)[0]


def _change_intensities(image_1CXYZ: Tensor, augmentation: Augmentation, generator: np.random.Generator) -> Tensor:
    """Return the patch with noise, brightness, contrast, resolution and gamma changed, each with its probability."""
    strength = augmentation.strength
    noisy, brighter, contrasted, coarser, curved = generator.random(5) < (
        _NOISE_PROBABILITY,
        _BRIGHTNESS_PROBABILITY,
        _CONTRAST_PROBABILITY,
        _COARSE_PROBABILITY,
        _GAMMA_PROBABILITY,
    )
    image = image_1CXYZ
    if noisy:
        image = _with_noise(image, generator.uniform(0, _NOISE_STD) * strength, generator)
    if brighter:
        image = image * float(1 + generator.uniform(-0.25, 0.25) * strength)
    if contrasted:
        image = _with_contrast(image, float(1 + generator.uniform(-0.25, 0.25) * strength))
    if coarser:
        image = _coarsened(image, 1 + generator.uniform(0, 1) * strength, augmentation.slice_axis)
    if curved:
        image = _with_gamma(image, float(np.exp(generator.uniform(*_LOG_GAMMA) * strength)))
    return image


def _with_noise(image_1CXYZ: Tensor, share: float, generator: np.random.Generator) -> Tensor:
    source = torch.Generator(image_1CXYZ.device).manual_seed(int(generator.integers(2**31)))
    noise = torch.randn(image_1CXYZ.shape, generator=source, device=image_1CXYZ.device, dtype=image_1CXYZ.dtype)
    return image_1CXYZ + noise * (share * image_1CXYZ.std(dim=(2, 3, 4), keepdim=True, correction=0))


def _with_contrast(image_1CXYZ: Tensor, factor: float) -> Tensor:
    """Stretch the distance from each channel's mean, within the channel's range."""
    mean = image_1CXYZ.mean(dim=(2, 3, 4), keepdim=True)
    low, high = image_1CXYZ.amin((2, 3, 4), keepdim=True), image_1CXYZ.amax((2, 3, 4), keepdim=True)
    return ((image_1CXYZ - mean) * factor + mean).clamp(low, high)


def _coarsened(image_1CXYZ: Tensor, factor: float, slice_axis: int | None) -> Tensor:
    """Return the image as a scanner with voxels `factor` times larger would have seen it."""
    sides = image_1CXYZ.shape[2:]
    fewer = [side if axis == slice_axis else max(1, round(side / factor)) for axis, side in enumerate(sides)]
    small = functional.interpolate(image_1CXYZ, size=fewer, mode="area")  # "nearest" would shift it by up to a voxel
    return functional.interpolate(small, size=sides, mode="trilinear")


def _with_gamma(image_1CXYZ: Tensor, gamma: float) -> Tensor:
    """Bend the grey scale of each channel between its darkest and its brightest voxel."""
    low = image_1CXYZ.amin((2, 3, 4), keepdim=True)
    span = (image_1CXYZ.amax((2, 3, 4), keepdim=True) - low).clamp_min(1e-7)
    return ((image_1CXYZ - low) / span).clamp_(0, 1).pow_(gamma) * span + low
