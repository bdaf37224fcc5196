"""Score a network on whole validation volumes.

A configuration that resamples is scored like any other, and like the ensemble: by the label on the original grid.

Axes: logits_KXYZ, label_XYZ (class indices), counts_KK (voxels by true and by predicted class).
"""

from __future__ import annotations

import copy
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, prod
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from automonai.domain.plan import LOSS_BYTES, Plan
from automonai.errors import StopRequestedError
from automonai.imaging.preprocessing import PreparedCase, restore_probabilities
from automonai.learning.inference import (
    CheckStop,
    LogitSlab,
    WindowSettings,
    device_with_room,
    even_slabs,
    logit_slabs,
    never_stop,
    whole_logits,
)
from automonai.learning.losses import Loss
from automonai.learning.precision import Precision

logger = logging.getLogger(__name__)

_FORWARD_SHARE = 0.35  # of a training step that a prediction of the same voxels takes
_SLAB_VOXELS = 2**21
_LATTICE_SCORES = 2**24
"""Most scores that a loss is computed of, all classes together: it takes ten times their memory."""

T = TypeVar("T")

_Score = tuple[float, NDArray[np.int64]]
"""Of one case: its loss, and counts_KK."""


@dataclass(frozen=True)
class Validation:
    """Scores over the validation cases."""

    loss: float
    """Mean over the cases of the training loss on the whole volume; above two million voxels, on a lattice of it.

    It is of the prepared grid, as in training: losses of different voxel sizes compare less well than Dice.
    """
    dice: dict[int, float]
    """Label value to mean Dice over the cases in which the class is present or predicted; absent if in none.

    On the original grid, to which the probabilities are brought back from another one.
    """
    seconds: float


def validate(
    network: nn.Module,
    cases: Sequence[PreparedCase],
    *,
    plan: Plan,
    precision: Precision,
    loss_of: Loss,
    stop: threading.Event,
    devices: Sequence[torch.device] = (),
) -> Validation:
    """Predict and score every case, without test-time flips: these belong to the ensemble's prediction.

    Args:
        network: In evaluation mode, on the precision's device.
        cases: With labels.
        plan: Of the network.
        precision: Of the forward pass.
        loss_of: Of logits and labels.
        stop: Ends the validation before the next pass of windows through the network.
        devices: Several divide the cases among them, the precision's device being the first; each has one case at once.

    Raises:
        StopRequestedError: If `stop` was set before the last score.
    """
    began = time.perf_counter()

    def check_stop() -> None:
        if stop.is_set():
            raise StopRequestedError("stopped within a validation")

    @torch.no_grad()
    def score(case: PreparedCase, own: nn.Module, device: torch.device) -> _Score:
        check_stop()
        settings = WindowSettings(device, precision.dtype, background=case.background, check_stop=check_stop)
        slabs = logit_slabs([own], case.image, plan=plan, statistics=case.statistics, settings=settings)
        return _score_case(case, slabs, loss_of, classes=plan.network.out_channels, settings=settings)

    if len(devices) > 1:
        scores = _divided(score, cases, network, devices)
    else:
        scores = [score(case, network, precision.device) for case in cases]
    dice: dict[int, list[float]] = {value: [] for value in plan.label_values[1:]}
    for _, counts_KK in scores:
        for value, of_class in zip(plan.label_values[1:], class_dice(counts_KK), strict=True):
            if of_class is not None:
                dice[value].append(of_class)
    means = {value: float(np.mean(each)) for value, each in dice.items() if each}
    return Validation(float(np.mean([loss for loss, _ in scores])), means, time.perf_counter() - began)


def _divided(
    score: Callable[[PreparedCase, nn.Module, torch.device], _Score],
    cases: Sequence[PreparedCase],
    network: nn.Module,
    devices: Sequence[torch.device],
) -> list[_Score]:
    """Score cases on several devices at once, a thread and a copy of the network for each; in the cases' order."""
    free: SimpleQueue[tuple[nn.Module, torch.device]] = SimpleQueue()
    free.put((network, devices[0]))
    for device in devices[1:]:
        free.put((copy.deepcopy(network).to(device), device))

    def score_on_a_free_device(case: PreparedCase) -> _Score:
        own, device = free.get()
        try:
            return score(case, own, device)
        finally:
            free.put((own, device))

    with ThreadPoolExecutor(len(devices), "validation") as pool:
        return list(pool.map(score_on_a_free_device, cases))


def _score_case(
    case: PreparedCase, slabs: Iterable[LogitSlab], loss_of: Loss, *, classes: int, settings: WindowSettings
) -> _Score:
    """Score a case from its logits as they are predicted; all of them are held only if they go to another grid."""
    assert case.label is not None
    device, check_stop = settings.device, settings.check_stop
    if case.original_label is None:
        return score_volume(slabs, case.label, loss_of, classes=classes, device=device, check_stop=check_stop)
    logits_KXYZ = whole_logits(slabs, (classes, *case.label.shape))
    slabs = [LogitSlab(0, len(case.label), logits_KXYZ[None])]
    loss, _ = score_volume(slabs, case.label, loss_of, classes=classes, device=device, check_stop=check_stop)
    return loss, _counts_on_original_grid(logits_KXYZ, case, check_stop=check_stop)


def score_volume(
    slabs: Iterable[LogitSlab],
    label_XYZ: NDArray,
    loss_of: Loss,
    *,
    classes: int,
    device: torch.device,
    check_stop: CheckStop = never_stop,
) -> _Score:
    """Return a volume's loss and counts_KK from one network's logits.

    The counts are added slab by slab, so that no further volume is made. The loss is one for the whole extent: in a
    slab that lacks a class, Dice loss tells no more than how sure the network is. Above two million voxels, or fewer
    where there are more than eight classes, it is computed of every second voxel along each axis, or every third, and
    so on.
    """
    shape, step = label_XYZ.shape, _lattice_step(label_XYZ.shape, classes=classes)
    lattice_KXYZ = np.empty((classes, *(ceil(side / step) for side in shape)), np.float32)
    counts_KK = np.zeros((classes, classes), np.int64)
    for slab in even_slabs(slabs, _slab_planes(shape[0], prod(shape[1:]))):
        check_stop()
        logits_KXYZ = slab.logits[0]
        counts_KK += _computed(_counts, logits_KXYZ, label_XYZ[slab.start : slab.stop], device)
        taken = slice(ceil(slab.start / step), ceil(slab.stop / step))
        lattice_KXYZ[:, taken] = logits_KXYZ[:, -slab.start % step :: step, ::step, ::step]
    check_stop()
    device = device_with_room(LOSS_BYTES * lattice_KXYZ.size, device, what="the scores of a validation")

    def loss(logits_KXYZ: torch.Tensor, label_XYZ: torch.Tensor) -> float:
        return loss_of(logits_KXYZ[None], label_XYZ[None]).item()

    return _computed(loss, lattice_KXYZ, label_XYZ[::step, ::step, ::step], device), counts_KK


def _computed(
    compute: Callable[[torch.Tensor, torch.Tensor], T],
    logits_KXYZ: NDArray,
    label_XYZ: NDArray,
    device: torch.device,
) -> T:
    """Return what is computed on a device; on the CPU if a GPU that others use has no memory after all."""
    try:
        logits = torch.from_numpy(np.ascontiguousarray(logits_KXYZ)).to(device)
        return compute(logits, torch.from_numpy(np.array(label_XYZ)).to(device))
    except torch.OutOfMemoryError:
        if device.type == "cpu":
            raise
    torch.cuda.empty_cache()
    logger.info("the scores of a validation are computed on the CPU: the GPU's memory does not suffice")
    return _computed(compute, logits_KXYZ, label_XYZ, torch.device("cpu"))


def _counts(scores_KXYZ: torch.Tensor, label_XYZ: torch.Tensor) -> NDArray[np.int64]:
    """Return counts_KK of a slab's classes of highest score."""
    classes = len(scores_KXYZ)
    pairs = label_XYZ.long() * classes + scores_KXYZ.argmax(dim=0)
    counts = torch.bincount(pairs.flatten(), minlength=classes**2).reshape(classes, classes)
    return np.asarray(counts.cpu().numpy())


def _counts_on_original_grid(logits_KXYZ: NDArray, case: PreparedCase, *, check_stop: CheckStop) -> NDArray[np.int64]:
    """Return counts_KK of the case's box in its original voxels, restored slab by slab as a prediction is.

    The logits become probabilities where they lie. Outside of the box there is no label, and nothing is predicted.
    """
    assert case.original_label is not None
    label_XYZ, classes = case.original_label(), len(logits_KXYZ)
    box, prepared = case.placement.box_shape, case.placement.prepared_shape
    planes = _slab_planes(prepared[0], prod(prepared[1:]))
    for start in range(0, prepared[0], planes):
        check_stop()
        slab_KXYZ = logits_KXYZ[:, start : start + planes]
        slab_KXYZ[...] = torch.from_numpy(slab_KXYZ).softmax(dim=0).numpy()
    within_box = case.placement.model_copy(update={"shape_voxels": box, "box_start": (0, 0, 0)})
    planes = _slab_planes(box[0], max(prod(box[1:]), prod(prepared) // box[0]))
    counts_KK = np.zeros((classes, classes), np.int64)
    for start, probabilities_KXYZ in restore_probabilities(logits_KXYZ, within_box, planes):
        check_stop()
        label = torch.from_numpy(np.array(label_XYZ[start : start + probabilities_KXYZ.shape[1]]))
        counts_KK += _counts(torch.from_numpy(probabilities_KXYZ), label)
    return counts_KK


def _slab_planes(length: int, plane_voxels: int) -> int:
    return min(length, max(1, _SLAB_VOXELS // plane_voxels))


def _lattice_step(shape: Sequence[int], *, classes: int) -> int:
    """Return the smallest step at which the voxels taken along each axis are no more than a slab's, and few enough."""
    most = min(_SLAB_VOXELS, _LATTICE_SCORES // classes)
    return next(step for step in itertools.count(1) if prod(ceil(side / step) for side in shape) <= most)


def class_dice(counts_KK: NDArray[np.int64]) -> list[float | None]:
    """Return the Dice of each foreground class; None for one that is neither present nor predicted."""
    sizes = counts_KK.sum(axis=0) + counts_KK.sum(axis=1)
    hits = np.diagonal(counts_KK)
    return [float(2 * hit / size) if size else None for hit, size in zip(hits[1:], sizes[1:], strict=True)]


def window_count(shape: Sequence[int], plan: Plan) -> int:
    """Return how many windows with 50 % overlap cover a volume (about: no empty one is left out)."""
    steps = []
    for axis, (length, side) in enumerate(zip(shape, plan.patch_voxels, strict=True)):
        is_across = plan.network.spatial_dims == 2 and axis == plan.slice_axis
        stride = side if is_across else max(1, side // 2)
        steps.append(1 + max(0, ceil((length - side) / stride)))
    return prod(steps)


def seconds_per_validation(windows: int, *, seconds_per_patch: float) -> float:
    """Return what a validation will take, from what a training step takes for each patch of its batch."""
    return windows * seconds_per_patch * _FORWARD_SHARE
