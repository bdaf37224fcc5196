"""Plan: Configuration and Fingerprint resolved to every number that a trainer and a predictor need.

Axes are the patient's: x to the right, y to the front, z to the top (RAS), in this order everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from automonai.domain.configuration import Configuration, Convolution, Resampling
from automonai.domain.dataset import Dataset
from automonai.domain.fingerprint import Fingerprint, IntTriple, Triple
from automonai.domain.records import Record
from automonai.spec import TrainingSpec

_LEAST_STEP = 4
"""Of a patch's sides, in voxels, where the depth needs less."""


class NetworkPlan(Record):
    """MONAI's UNet in numbers."""

    spatial_dims: int
    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    residual_units: int


class Plan(Record):
    """One pipeline, complete; travels inside every checkpoint."""

    version: int = 1
    configuration: Configuration
    channels: tuple[str, ...]
    labels: dict[int, str]
    """Label value to class name, background included; network output k is the k-th key in ascending order."""
    spacing_mm: Triple | None
    """Voxel size that volumes are resampled to; None: each keeps its own."""
    patch_voxels: IntTriple
    batch_size: int
    network: NetworkPlan
    slice_axis: int
    """The axis along which a 2D network takes its slices: that of one voxel, else the one with the largest voxels."""
    flip_axes: tuple[int, ...]
    parameters: int

    @property
    def label_values(self) -> tuple[int, ...]:
        """Return the label value of each network output."""
        return tuple(sorted(self.labels))

    def step_bytes(self, *, bytes_per_activation: int = 2, devices: int = 1) -> int:
        """Return what a training step of it needs: `training_memory_bytes`, and the batches that are made ahead."""
        batch = self.batch_size * prod(self.patch_voxels) * (_IMAGE_BYTES * self.network.in_channels + 1)
        return _BATCHES * batch + training_memory_bytes(
            self.network,
            patch_voxels=self.patch_voxels,
            batch_size=self.batch_size,
            bytes_per_activation=bytes_per_activation,
            devices=devices,
        )


def make_plan(
    configuration: Configuration, *, dataset: Dataset, fingerprint: Fingerprint, training: TrainingSpec
) -> Plan:
    """Resolve a configuration for a dataset; the same arguments give the same plan."""
    spacing = _target_spacing(configuration, fingerprint)
    median = fingerprint.median_shape_voxels(spacing, cropped=configuration.crop == "nonzero")
    slice_axis = _slice_axis(median, spacing or fingerprint.median_spacing_mm)
    network = _network(configuration, dataset)
    patch = _patch(configuration, training, median, slice_axis)
    batch = configuration.batch_size or (4 if prod(patch) <= 2**17 else 2)
    return Plan(
        configuration=configuration,
        channels=dataset.channels,
        labels=dataset.labels,
        spacing_mm=spacing,
        patch_voxels=patch,
        batch_size=batch,
        network=network,
        slice_axis=slice_axis,
        flip_axes=configuration.flips.axes,
        parameters=parameter_count(network),
    )


def parameter_count(network: NetworkPlan) -> int:
    """Return the number of weights of MONAI's UNet with these numbers (its convolutions, biases and units included)."""
    return sum(_weights(layer, network.spatial_dims) for layer in _layers(network))


def training_memory_bytes(
    network: NetworkPlan,
    *,
    patch_voxels: IntTriple,
    batch_size: int,
    bytes_per_activation: int = 2,
    devices: int = 1,
) -> int:
    """Return the memory of one training step: weights, gradients, Adam's moments, average, and saved activations.

    A weight takes 24 bytes: itself, its gradient, two moments, its average, and what the optimiser computes with. For
    the backward pass autograd keeps the image, of each convolution the result, and once more after normalisation and
    activation, each residual sum of the way down, and each concatenation; that count is within 2 % of what torch saves.
    Then comes whatever is more: 66 bytes per class and voxel for the loss, or in the backward pass three times what
    goes through the largest convolution on the way up (gradients, copies in another layout). What the process itself
    takes (Python, torch, MONAI: some 500 MB) is not in it.

    Beside measured peaks (26 on an NVIDIA H200, 7 on a CPU; 2D and 3D, 0 to 3 residual units, 40,000 to 19 million
    weights, both sizes of activations; 150 MB to 10 GB) this is 0.83 to 1.41 times each, but 0.74 and 0.79 for twelve
    classes on the GPU, whose library takes workspace for them.

    Args:
        network: The network in numbers.
        patch_voxels: Of one patch.
        batch_size: Patches per step.
        bytes_per_activation: 2 for bfloat16 and float16, 4 for float32.
        devices: How many share the patches. The memory is that of the first, which has the loss of all of them.
    """
    voxels = -(-batch_size // devices) * prod(patch_voxels)
    kept, moving = _features(network, voxels)
    loss = LOSS_BYTES * network.out_channels * batch_size * prod(patch_voxels)
    activations = kept * bytes_per_activation + max(_MOVING_TIMES * moving * bytes_per_activation, loss)
    return parameter_count(network) * _BYTES_PER_WEIGHT + activations + _LIBRARY_BYTES


def _features(network: NetworkPlan, voxels: int) -> tuple[int, int]:
    """Return the numbers that the backward pass needs, and those in and out of the way up's largest convolution."""
    kept, largest = network.in_channels * voxels, 0
    for layer in _layers(network):
        joined = layer.joined_features(voxels, network.spatial_dims)
        result = layer.result_features(voxels, network.spatial_dims)
        kept += joined + layer.kept * result
        largest = max(largest, joined + result if joined else 0)
    return kept, largest


_BYTES_PER_WEIGHT = 24
LOSS_BYTES = 66
"""Of memory that a loss takes per class and voxel while it is computed."""
_IMAGE_BYTES = 4
_BATCHES = 8
"""Four that wait for their step, and what the augmentation of one more takes: its margin, its grid, its pieces."""
_MOVING_TIMES = 3
_LIBRARY_BYTES = 80 * 2**20
"""Workspace that the libraries of convolutions take for the smallest networks, too."""


@dataclass(frozen=True)
class _Layer:
    """One convolution of the UNet."""

    in_channels: int
    out_channels: int
    kernel: int
    is_normalised: bool
    halvings: int
    """Its result has 1 / 2^halvings of the full resolution."""
    kept: int
    """Tensors of its result's size that the backward pass needs."""
    joined_halvings: int | None = None
    """Of its input, if that is a concatenation."""

    def joined_features(self, voxels: int, spatial_dims: int) -> int:
        """Return the numbers in its input if that is a concatenation, else 0; `voxels` are those of the batch."""
        if self.joined_halvings is None:
            return 0
        return self.in_channels * (voxels >> spatial_dims * self.joined_halvings)

    def result_features(self, voxels: int, spatial_dims: int) -> int:
        """Return the numbers in its result."""
        return self.out_channels * (voxels >> spatial_dims * self.halvings)


def _weights(layer: _Layer, spatial_dims: int) -> int:
    of_kernel = prod([layer.kernel] * spatial_dims) * layer.in_channels * layer.out_channels
    return of_kernel + layer.out_channels * (3 if layer.is_normalised else 1)


def _layers(network: NetworkPlan) -> Iterator[_Layer]:
    """Yield every convolution as MONAI's UNet makes them: down, the bottom, and up again."""
    inside = network.in_channels
    halvings = 0
    for channels, stride in zip(network.channels, (*network.strides, 1), strict=True):
        halvings += stride == 2
        yield from _down(inside, channels, stride, halvings, network.residual_units)
        inside = channels
    below = network.channels[-1]
    has_unit = network.residual_units > 0
    for level in reversed(range(len(network.strides))):
        joined_halvings = halvings
        halvings -= network.strides[level] == 2
        is_top = level == 0
        out = network.out_channels if is_top else network.channels[level - 1]
        joined = network.channels[level] + below
        is_normalised = has_unit or not is_top
        yield _Layer(joined, out, 3, is_normalised, halvings, 2 if is_normalised else 0, joined_halvings)
        if has_unit:
            yield _Layer(out, out, 3, not is_top, halvings, 0 if is_top else 2)
        below = out


def _down(inside: int, out: int, stride: int, halvings: int, units: int) -> Iterator[_Layer]:
    yield _Layer(inside, out, 3, True, halvings, 3 if units else 2)
    for _ in range(units - 1):
        yield _Layer(out, out, 3, True, halvings, 2)
    if units and (stride != 1 or inside != out):
        yield _Layer(inside, out, 3 if stride != 1 else 1, False, halvings, 0)


def _target_spacing(configuration: Configuration, fingerprint: Fingerprint) -> Triple | None:
    match configuration.resampling:
        case Resampling.NONE:
            return None
        case Resampling.MEAN:
            return fingerprint.mean_spacing_mm
        case Resampling.MEDIAN:
            return fingerprint.median_spacing_mm


def _slice_axis(shape_voxels: IntTriple, spacing_mm: Triple) -> int:
    """Return the only axis of one voxel, as files of 2D images have, whatever voxel size they state along it.

    Of volumes it is the axis of the largest voxels; among equals the last, so that slices are axial.
    """
    if shape_voxels.count(1) == 1:
        return shape_voxels.index(1)
    return max(range(3), key=lambda axis: (round(spacing_mm[axis], 3), axis))


def _network(configuration: Configuration, dataset: Dataset) -> NetworkPlan:
    """Return the levels: `depth` resolutions, the full one included.

    With stride 1 the first level stays at full resolution and one more follows for each further resolution and the
    bottom; with stride 2 the full resolution is left at once, which saves the most expensive level.
    """
    halvings = configuration.depth - 1
    strides = (1,) * (configuration.first_stride == 1) + (2,) * halvings
    strides = strides or (1,)
    channels = [configuration.channels]
    for _ in strides:
        channels.append(max(1, int(channels[-1] * configuration.channel_multiplier)))
    return NetworkPlan(
        spatial_dims=2 if configuration.convolution is Convolution.TWO_D else 3,
        in_channels=len(dataset.channels),
        out_channels=len(dataset.labels),
        channels=tuple(channels),
        strides=strides,
        residual_units=configuration.convolutions_per_layer,
    )


def _patch(configuration: Configuration, training: TrainingSpec, median: IntTriple, slice_axis: int) -> IntTriple:
    """Return the patch: the median volume, its longest axes shrunk to the allowed voxels, in steps the depth needs."""
    halvings = 2 ** (configuration.depth - 1)
    steps = [max(_LEAST_STEP, halvings)] * 3
    if configuration.convolution is Convolution.TWO_D:
        steps[slice_axis] = 1
    wanted = training.patch_voxels or median
    sides = [max(1, round(side * configuration.patch_scale)) for side in wanted]
    patch = [_round_up(side, step) for side, step in zip(sides, steps, strict=True)]
    while training.patch_voxels is None and prod(patch) > training.max_patch_voxels:
        shrinkable = [axis for axis in range(3) if patch[axis] > steps[axis]]
        if not shrinkable:
            break
        longest = max(shrinkable, key=patch.__getitem__)
        patch[longest] -= steps[longest]
    return (patch[0], patch[1], patch[2])


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
