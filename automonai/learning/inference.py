"""Sliding windows over a volume that may be larger than memory.

Axes: image_CXYZ (the file's own unit), image_BCXYZ (normalised), logits_BKXYZ, logits_MKXYZ (M networks, K classes).

MONAI's `SlidingWindowInferer` is the reference, and a test holds the results equal to it. It is not used itself because
it takes the whole volume as float32 and keeps all of its logits and weights until the end; here the windows are
normalised one by one, several networks share one reading, and planes leave as soon as no further window touches them.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
import torch
from monai.data.utils import compute_importance_map

from automonai.domain.fingerprint import ChannelFacts, IntTriple
from automonai.domain.plan import Plan
from automonai.host import usable_memory_bytes
from automonai.imaging.preprocessing import normalise
from automonai.learning.memory import free_gpu_bytes, resident_bytes

logger = logging.getLogger(__name__)

CheckStop = Callable[[], None]
"""Raises StopRequestedError if the process is asked to leave; called often, as a volume takes up to minutes."""

BACKGROUND_LOGIT = 30.0
"""Logit of class 0 where no window was predicted: its probability is 1 to float32 precision, and logits stay finite."""

IN_MEMORY_BYTES = 512 * 2**20
"""Larger results are backed by a temporary file, whose pages the system may write out."""

_WORKSPACE_BYTES = 64 * 2**20
"""What oneDNN keeps for itself."""

_BATCH_VOXELS = 2**17
_BATCH_VOXELS_CUDA = 2**21

_SUMS_TIMES = 3
"""What sums take for a moment, when planes are finished."""

_ROOM_SHARE = 4
"""What can lie on the CPU takes at most a quarter of a GPU's free memory: sums are there three times for a moment."""


def never_stop() -> None:
    """Go on: the CheckStop of whoever nobody asks to leave."""


@dataclass(frozen=True)
class WindowSettings:
    """How windows are laid and run; `overlap` is a share of the patch, the rest is where and how it is computed."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    """Of the convolutions (autocast); sums are float32."""
    overlap: float = 0.5
    flip_axes: tuple[int, ...] = ()
    """Spatial axes (0, 1, 2); the logits are the mean over all combinations of flips."""
    batch_windows: int | None = None
    """None: about 131,072 voxels a batch on a CPU, two million on a GPU."""
    background: tuple[float, ...] | None = None
    """Intensity of each channel where there is nothing; windows of only that are not predicted. None: all are."""
    check_stop: CheckStop = never_stop
    """Called before every pass through a network."""

    def batch_size(self, patch_voxels: IntTriple) -> int:
        """Return how many windows of that size go through the network at once."""
        limit = _BATCH_VOXELS if self.device.type == "cpu" else _BATCH_VOXELS_CUDA
        return self.batch_windows or max(1, limit // prod(patch_voxels))


@dataclass(frozen=True)
class LogitSlab:
    """Finished planes `start` to `stop` of the first axis: logits_MKXYZ float32, in the order of the networks."""

    start: int
    stop: int
    logits: np.ndarray

    def part(self, start: int, stop: int) -> LogitSlab:
        """Return some of its planes, as a view."""
        return LogitSlab(start, stop, self.logits[:, :, start - self.start : stop - self.start])


@torch.inference_mode()
def logit_slabs(
    networks: Sequence[torch.nn.Module],
    image: np.ndarray,
    *,
    plan: Plan,
    statistics: Sequence[ChannelFacts],
    settings: WindowSettings,
) -> Iterator[LogitSlab]:
    """Yield the planes of a volume along its first axis as they are finished, predicted by every network.

    Reading, normalising and cutting windows happens once for all networks, which must share the plan's patch,
    normalisation and classes. The memory needed is `prediction_memory_bytes`; a GPU that has less holds fewer windows
    at once, and leaves the sums to the CPU.

    Raises:
        MemoryError: Before anything is predicted, if this machine can never have the memory.
        torch.OutOfMemoryError: If the GPU's memory does not suffice for a single window.
    """
    _refuse_what_cannot_fit(image.shape[1:], plan, settings, networks=len(networks))
    grid = _Grid.over(image.shape[1:], plan, settings.overlap)
    sums = _Sums(len(networks), plan.network.out_channels, grid, settings.device)
    forward = _Forward(settings, settings.batch_size(grid.patch))
    for index, start in enumerate(grid.starts[0]):
        windows = _windows(image, start, grid, plan, statistics, settings.background)
        while batch := tuple(itertools.islice(windows, forward.batch_windows)):
            image_BCXYZ = torch.from_numpy(np.stack([window for _, window in batch])).to(settings.device)
            for number, network in enumerate(networks):
                for (position, _), logits_KXYZ in zip(batch, forward.logits(network, image_BCXYZ), strict=True):
                    sums.add(number, position, logits_KXYZ)
            for position, _ in batch:
                sums.weigh(position)
        is_last = index + 1 == len(grid.starts[0])
        planes = grid.patch[0] if is_last else grid.starts[0][index + 1] - start
        yield grid.unpadded(start, sums.finish(planes))


def whole_logits(slabs: Iterable[LogitSlab], shape: tuple[int, ...]) -> np.ndarray:
    """Return logits_KXYZ of that shape from the slabs of one network; file-backed if larger than 512 MiB."""
    logits_KXYZ = scratch_array(shape, np.float32)
    for slab in slabs:
        logits_KXYZ[:, slab.start : slab.stop] = slab.logits[0]
    return logits_KXYZ


def even_slabs(slabs: Iterable[LogitSlab], planes: int) -> Iterator[LogitSlab]:
    """Yield the same planes in slabs of that many each, of which only the last may have fewer.

    How thick a slab of `logit_slabs` is follows from the patch; what is computed of one may take several times its
    memory, or must not depend on the patch.
    """
    held: list[LogitSlab] = []
    for slab in slabs:
        start = slab.start
        while start < slab.stop:
            first = held[0].start if held else start
            stop = min(slab.stop, first + planes)
            held.append(slab.part(start, stop))
            start = stop
            if stop - first == planes:
                yield _joined(held)
                held = []
    if held:
        yield _joined(held)


def prediction_memory_bytes(shape: Sequence[int], plan: Plan, settings: WindowSettings, *, networks: int = 1) -> int:
    """Return what `logit_slabs` needs at most beside the process and the networks' weights.

    That is the sums of one patch's thickness over the volume's cross-section (three times for a moment, when planes
    are finished) and the activations of one batch: six times each level's features in float32, a bound that held for
    five networks of 32 to 256 channels on a CPU.

    Args:
        shape: Of the volume, (x, y, z) voxels.
        plan: Of the networks.
        settings: Of the windows.
        networks: How many share one reading.
    """
    grid = _Grid.over(shape, plan, settings.overlap)
    sums = grid.sum_bytes(networks, plan.network.out_channels)
    windows = min(settings.batch_size(grid.patch), len(grid.starts[1]) * len(grid.starts[2]))
    return _SUMS_TIMES * sums + windows * _activation_bytes(plan) + _WORKSPACE_BYTES


def networks_at_once(shape: Sequence[int], plan: Plan, settings: WindowSettings, *, networks: int) -> int:
    """Return how many of so many networks may share a reading by the memory that there is; at least one."""
    free = usable_memory_bytes() - resident_bytes()
    fitting = (
        count for count in range(networks, 1, -1) if _own_memory_bytes(shape, plan, settings, networks=count) <= free
    )
    return next(fitting, 1)


def device_with_room(size_bytes: int, device: torch.device, *, what: str) -> torch.device:
    """Return the device, or the CPU if so many bytes are more than a quarter of what a GPU has free."""
    if device.type != "cuda" or _has_room(size_bytes, device):
        return device
    logger.info("%s, %d bytes, are held by the CPU: the GPU has %d free", what, size_bytes, free_gpu_bytes(device))
    return torch.device("cpu")


def scratch_array(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """Return an array of zeros; above 512 MiB it is backed by an unnamed temporary file that goes with it."""
    size = prod(shape) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY_BYTES:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile() as file:
        _reserve(file.fileno(), size)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)


def _reserve(descriptor: int, size_bytes: int) -> None:
    """Give a temporary file its size and its place on the disk: a mapped page without one ends the process (SIGBUS)."""
    if sys.platform == "darwin":  # has no such call
        os.ftruncate(descriptor, size_bytes)
        return
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        folder = tempfile.gettempdir()
        message = f"{error.strerror}: a prediction takes {size_bytes} bytes ({size_bytes / 2**30:.2f} GiB) there"
        raise OSError(error.errno, f"{message}; make room, or name another folder by TMPDIR", folder) from error


def _joined(slabs: Sequence[LogitSlab]) -> LogitSlab:
    if len(slabs) == 1:
        return slabs[0]
    return LogitSlab(slabs[0].start, slabs[-1].stop, np.concatenate([slab.logits for slab in slabs], axis=2))


def _refuse_what_cannot_fit(shape: Sequence[int], plan: Plan, settings: WindowSettings, *, networks: int) -> None:
    """Refuse what the machine has too little memory for in all: what others take of it now may be free later."""
    needed = _own_memory_bytes(shape, plan, settings, networks=networks)
    taken, there = resident_bytes(), usable_memory_bytes()
    if needed + taken > there:
        raise MemoryError(
            f"predicting {' x '.join(map(str, shape))} voxels takes up to {needed} bytes ({needed / 2**30:.2f} GiB)"
            f" beside the {taken / 2**30:.2f} GiB of this process, and the machine has {there / 2**30:.2f} GiB"
        )


def _own_memory_bytes(shape: Sequence[int], plan: Plan, settings: WindowSettings, *, networks: int) -> int:
    """Return what a prediction takes of the machine's own memory: beside a GPU, the sums that this has no room for."""
    if settings.device.type == "cpu":
        return prediction_memory_bytes(shape, plan, settings, networks=networks)
    sums = _Grid.over(shape, plan, settings.overlap).sum_bytes(networks, plan.network.out_channels)
    return 0 if _has_room(sums, settings.device) else _SUMS_TIMES * sums


def _has_room(size_bytes: int, gpu: torch.device) -> bool:
    return size_bytes <= free_gpu_bytes(gpu) // _ROOM_SHARE


def _activation_bytes(plan: Plan) -> int:
    """Return what the activations of one window take."""
    network, voxels = plan.network, prod(plan.patch_voxels)
    features = (network.in_channels + network.out_channels) * voxels
    for channels, stride in zip(network.channels, (*network.strides, 1), strict=True):
        voxels = max(1, voxels // stride**network.spatial_dims)
        features += channels * voxels
    return 6 * 4 * features


@dataclass(frozen=True)
class _Grid:
    """Where windows lie in a volume that is padded, evenly on both sides, to at least one patch."""

    shape: IntTriple
    patch: IntTriple
    padding: IntTriple
    """Voxels before the volume."""
    padded: IntTriple
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    weighed: IntTriple
    """The extent of the Gaussian weights: the patch, or one slice of it."""

    @classmethod
    def over(cls, shape: Sequence[int], plan: Plan, overlap: float) -> _Grid:
        patch = plan.patch_voxels
        padded = [max(length, side) for length, side in zip(shape, patch, strict=True)]
        overlaps, weighed = [overlap] * 3, list(patch)
        if plan.network.spatial_dims == 2:
            # A slice's prediction is the same in whichever window it lies: none is predicted for its neighbours' sake.
            overlaps[plan.slice_axis], weighed[plan.slice_axis] = 0.0, 1
        x, y, z = (_axis_starts(*numbers) for numbers in zip(padded, patch, overlaps, strict=True))
        before = [(length - own) // 2 for length, own in zip(padded, shape, strict=True)]
        return cls(_triple(shape), patch, _triple(before), _triple(padded), (x, y, z), _triple(weighed))

    def sum_bytes(self, networks: int, classes: int) -> int:
        """Return what the logits of one patch's thickness take, and their weights."""
        return (networks * classes + 1) * self.patch[0] * prod(self.padded[1:]) * 4

    def cut(self, position: IntTriple) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return what of the volume lies in the window at `position`, and where in the window that is."""
        source, target = [], []
        for start, side, length, before in zip(position, self.patch, self.shape, self.padding, strict=True):
            first, last = max(0, start - before), min(length, start - before + side)
            source.append(slice(first, last))
            target.append(slice(first - start + before, last - start + before))
        return tuple(source), tuple(target)

    def unpadded(self, start: int, logits: np.ndarray) -> LogitSlab:
        """Return finished planes of the padded volume as planes of the volume itself."""
        first = max(0, start - self.padding[0])
        skipped = first + self.padding[0] - start
        last = min(self.shape[0], start - self.padding[0] + logits.shape[2])
        y, z = (slice(before, before + length) for before, length in zip(self.padding[1:], self.shape[1:], strict=True))
        return LogitSlab(first, last, logits[:, :, skipped : skipped + last - first, y, z])


class _Sums:
    """Weighted logits and weights of one patch's thickness; plane 0 is the first one that is not finished."""

    def __init__(self, networks: int, classes: int, grid: _Grid, device: torch.device) -> None:
        section = (grid.patch[0], *grid.padded[1:])
        device = device_with_room(grid.sum_bytes(networks, classes), device, what="the sums of a prediction")
        self._logits = torch.zeros((networks, classes, *section), device=device)
        self._weights = torch.zeros(section, device=device)
        self._importance = _importance_map(grid.weighed, device).expand(grid.patch)

    def add(self, network: int, position: IntTriple, logits_KXYZ: torch.Tensor) -> None:
        logits_KXYZ = logits_KXYZ.to(self._logits.device).float()
        self._logits[(network, slice(None), *self._within(position))].addcmul_(logits_KXYZ, self._importance)

    def weigh(self, position: IntTriple) -> None:
        """Count a window's weights, once for all networks, as each of them has predicted it."""
        self._weights[self._within(position)] += self._importance

    def finish(self, planes: int) -> np.ndarray:
        """Return the mean logits of the first planes, and move the others to the front."""
        weights = self._weights[:planes]
        finished = self._logits[:, :, :planes] / weights.clamp(min=1e-6)
        missing = weights == 0
        if missing.any():
            finished[:, 0].masked_fill_(missing, BACKGROUND_LOGIT)
        for sums, axis in ((self._logits, 2), (self._weights, 0)):
            kept = sums.shape[axis] - planes
            if kept:
                sums.narrow(axis, 0, kept).copy_(sums.narrow(axis, planes, kept).clone())
            sums.narrow(axis, kept, planes).zero_()
        return finished.cpu().numpy()

    def _within(self, position: IntTriple) -> tuple[slice, slice, slice]:
        y, z = (
            slice(start, start + side) for start, side in zip(position[1:], self._importance.shape[1:], strict=True)
        )
        return slice(None), y, z


class _Forward:
    """Takes windows through networks; from the first time that the GPU's memory does not suffice, fewer at once."""

    def __init__(self, settings: WindowSettings, batch_windows: int) -> None:
        self.batch_windows = batch_windows
        self._settings = settings

    def logits(self, network: torch.nn.Module, image_BCXYZ: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield each window's logits_KXYZ."""
        done = 0
        while done < len(image_BCXYZ):
            piece_BCXYZ = image_BCXYZ[done : done + self.batch_windows]
            logits_BKXYZ = self._attempt(network, piece_BCXYZ)
            if logits_BKXYZ is None:
                torch.cuda.empty_cache()
                self.batch_windows = len(piece_BCXYZ) // 2
                logger.info("the GPU's memory does not suffice: now %d windows at once", self.batch_windows)
                continue
            yield from logits_BKXYZ
            done += len(logits_BKXYZ)

    def _attempt(self, network: torch.nn.Module, image_BCXYZ: torch.Tensor) -> torch.Tensor | None:
        """Return logits_BKXYZ, or None if fewer windows at once may do."""
        try:
            return _flipped_mean(network, image_BCXYZ, self._settings)
        except torch.OutOfMemoryError:
            if len(image_BCXYZ) == 1:
                raise
            return None


def _windows(
    image: np.ndarray,
    start: int,
    grid: _Grid,
    plan: Plan,
    statistics: Sequence[ChannelFacts],
    background: tuple[float, ...] | None,
) -> Iterator[tuple[IntTriple, np.ndarray]]:
    """Yield position and normalised image_CXYZ of the windows at one place of the first axis that hold anything."""
    for y, z in itertools.product(*grid.starts[1:]):
        source, target = grid.cut((start, y, z))
        raw = np.asarray(image[(slice(None), *source)])
        if background is not None and _is_background(raw, background):
            continue
        window = normalise(raw, normalisation=plan.configuration.normalisation, statistics=statistics)
        if raw.shape[1:] != grid.patch:
            padded = np.zeros((raw.shape[0], *grid.patch), np.float32)
            padded[(slice(None), *target)] = window
            window = padded
        yield (start, y, z), window


def _is_background(raw: np.ndarray, background: tuple[float, ...]) -> bool:
    return all(bool((channel == value).all()) for channel, value in zip(raw, background, strict=True))


def _flipped_mean(network: torch.nn.Module, image_BCXYZ: torch.Tensor, settings: WindowSettings) -> torch.Tensor:
    autocasts = settings.dtype != torch.float32
    total: torch.Tensor | None = None
    flips = list(_combinations(settings.flip_axes))
    with torch.autocast(settings.device.type, dtype=settings.dtype if autocasts else None, enabled=autocasts):
        for axes in flips:
            settings.check_stop()
            logits_BKXYZ = network(image_BCXYZ.flip(axes) if axes else image_BCXYZ)
            logits_BKXYZ = logits_BKXYZ.flip(axes).float() if axes else logits_BKXYZ
            total = logits_BKXYZ if total is None else total + logits_BKXYZ
    assert total is not None
    return total / len(flips) if len(flips) > 1 else total


def _combinations(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the dimensions of image_BCXYZ that each flip reverses, the empty flip first."""
    for count in range(len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            yield tuple(axis + 2 for axis in chosen)


def _axis_starts(length: int, side: int, overlap: float) -> tuple[int, ...]:
    """Return MONAI's positions: a fixed step, the last window moved back to the border."""
    step = side if length == side else max(1, int(side * (1 - overlap)))
    count = 1 + -(-(length - side) // step)
    return tuple(min(index * step, length - side) for index in range(count))


@lru_cache(maxsize=4)
def _importance_map(sides: IntTriple, device: torch.device) -> torch.Tensor:
    return compute_importance_map(sides, mode="gaussian", sigma_scale=0.125, device=device).float()


def _triple(numbers: Sequence[int]) -> IntTriple:
    x, y, z = (int(number) for number in numbers)
    return (x, y, z)
