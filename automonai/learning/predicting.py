"""From an ensemble and images to label maps, in the images' own grids.

Axes: logits_MKXYZ (M networks), probabilities_OKXYZ (O mixtures of them; R: those that a preparation has part in),
label maps (X, Y, Z) of class indices, RAS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from automonai.domain.configuration import Crop
from automonai.domain.dataset import Case
from automonai.domain.fingerprint import Triple
from automonai.domain.plan import Plan
from automonai.domain.request import EnsembleMember, EnsembleResult, Member, StudyData
from automonai.errors import DatasetError
from automonai.imaging.preprocessing import PreparedCase, prepare_image, restore_probabilities
from automonai.imaging.reading import Volume, file_ending, read_image, write_label
from automonai.learning.checkpoint import read_member
from automonai.learning.faults import is_out_of_memory
from automonai.learning.inference import (
    CheckStop,
    WindowSettings,
    even_slabs,
    logit_slabs,
    networks_at_once,
    never_stop,
    scratch_array,
)
from automonai.learning.network import place
from automonai.learning.precision import Precision
from automonai.storage.store import Store

_WRITTEN_ENDINGS = {".mhd": ".mha"}
"""A .mhd is two files, which cannot be replaced as one."""

_PLANES = 16
"""Of a slab of probabilities: several of its size are held at once."""

_COUNTED_VOXELS = 2**21
"""At once: numpy's bincount makes 64-bit integers of what it counts."""


@dataclass(frozen=True, eq=False)
class LoadedMember:
    """A network of an ensemble, in evaluation mode on its device, and the plan that it was trained by."""

    plan: Plan
    network: torch.nn.Module

    @property
    def preparation(self) -> tuple[Triple | None, Crop]:
        """Return what decides how an image is prepared; members that agree share one preparation."""
        return self.plan.spacing_mm, self.plan.configuration.crop

    @property
    def windows(self) -> tuple[object, ...]:
        """Return what decides how windows are cut; members that agree share one reading."""
        network, plan = self.plan.network, self.plan
        sliced = plan.slice_axis if network.spatial_dims == 2 else None
        return (plan.patch_voxels, plan.configuration.normalisation, sliced, _seen_flips(plan))


def _seen_flips(plan: Plan) -> tuple[int, ...]:
    """Return the axes along which a flip changes what a network computes: to a 2D one each slice comes alone."""
    is_sliced = plan.network.spatial_dims == 2
    return tuple(axis for axis in plan.flip_axes if not (is_sliced and axis == plan.slice_axis))


def load_members(
    members: Sequence[Member | EnsembleMember], *, store: Store, folder: Path, device: torch.device
) -> list[LoadedMember]:
    """Read networks from their checkpoints.

    Args:
        members: Which.
        store: Of their study.
        folder: For the downloaded files, one folder per member.
        device: Where the networks go.
    """
    loaded = []
    for member in members:
        plan, network = read_member(store, member.checkpoint, folder / member.run_id)
        loaded.append(LoadedMember(plan, place(network, device).eval()))
    return loaded


def predict_cases(
    ensemble: EnsembleResult,
    *,
    store: Store,
    data: StudyData,
    images: Sequence[Case],
    output: Path,
    scratch_folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    on_case: Callable[[str, Path], None] | None = None,
) -> list[Path]:
    """Write a label map for each image, under its case's name, in its orientation, shape and affine.

    A case that cannot be predicted keeps no other from it; a file that is there is replaced as a whole.

    Args:
        ensemble: Its members, weights, and classes of which only the largest component stays.
        store: Of the study.
        data: The study's: channels and labels.
        images: Cases whose image paths can be opened as they are.
        output: Folder of the label maps.
        scratch_folder: For the downloaded checkpoints.
        device: Where the networks run.
        dtype: Of the convolutions.
        on_case: Told each case's id and label map as soon as that is written.

    Returns:
        The label maps, in the order of the images.

    Raises:
        DatasetError: After all others are written: every image that is unreadable, has the wrong channels or is too
            large for the memory. At once: if two images have one name, or a label map would replace an image.
    """
    _refuse_collisions(images, output)
    precision = Precision(device, dtype)
    members = load_members(ensemble.members, store=store, folder=scratch_folder, device=device)
    weights = np.array([[member.weight for member in ensemble.members]])
    kept = class_indices(data, ensemble.largest_component)
    written, problems = list[Path](), list[str]()

    def predict(case: Case) -> Path:
        volume = read_volume([Path(image) for image in case.images], case.id, data.dataset.channels)
        label = predict_label(members, volume, case_id=case.id, weights=weights, precision=precision)
        path = _label_path(output, case.id, volume.geometry.ending)
        label = keep_largest_components(label, kept)
        write_label(path, label, geometry=volume.geometry, label_values=sorted(data.dataset.labels))
        return path

    for case in images:
        try:
            written.append(predict(case))
        except (DatasetError, MemoryError, RuntimeError) as error:
            problems += _problems(error, case.id)
            continue
        if on_case:
            on_case(case.id, written[-1])
    if problems:
        raise DatasetError(problems)
    return written


def _problems(error: Exception, case_id: str) -> Sequence[str]:
    """Return what keeps a case from being predicted; an error that is no fault of the case is raised."""
    if isinstance(error, DatasetError):
        return error.problems
    if not is_out_of_memory(error):
        raise error
    return [f"{case_id}: needs more memory than there is here: {str(error) or type(error).__name__}"]


def read_volume(paths: Sequence[Path], case_id: str, channels: Sequence[str]) -> Volume:
    """Read an image and see that it has the study's channels.

    Raises:
        DatasetError: If it cannot be read or has other channels.
    """
    volume = read_image(paths)
    if len(volume.voxels) != len(channels):
        raise DatasetError(
            [
                f"{case_id}: has {len(volume.voxels)} channels; the study's networks take {len(channels)} "
                f"({', '.join(channels)}) in this order"
            ]
        )
    return volume


def class_indices(data: StudyData, values: Sequence[int]) -> tuple[int, ...]:
    """Return the class index of each label value."""
    order = sorted(data.dataset.labels)
    return tuple(order.index(value) for value in values)


def predict_label(
    members: Sequence[LoadedMember],
    volume: Volume,
    *,
    case_id: str,
    weights: np.ndarray,
    precision: Precision,
    check_stop: CheckStop = never_stop,
) -> np.ndarray:
    """Return the class indices (X, Y, Z) uint8 of the weighted mean probabilities, on the image's RAS grid.

    Args:
        members: The networks.
        volume: The image.
        case_id: Whose it is.
        weights: (1, M), sum 1.
        precision: Where the networks run, and in which type.
        check_stop: Called before every pass of windows through a network, and before every slab.

    Raises:
        DatasetError: If the image cannot be prepared.
    """
    label = np.zeros(volume.voxels.shape[1:], np.uint8)
    slabs = probability_slabs(
        members, volume, case_id=case_id, mixtures=weights, precision=precision, check_stop=check_stop
    )
    for start, probabilities_OKXYZ in slabs:
        label[start : start + probabilities_OKXYZ.shape[2]] = probabilities_OKXYZ[0].argmax(axis=0)
    return label


def probability_slabs(
    members: Sequence[LoadedMember],
    volume: Volume,
    *,
    case_id: str,
    mixtures: np.ndarray,
    precision: Precision,
    check_stop: CheckStop = never_stop,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield mixtures of the members' probabilities on the image's RAS grid, slab by slab along x.

    An image is prepared once for all members of one spacing and crop, and read once for as many of one patch and
    normalisation as there is memory for. Members that agree in both, as one configuration's do, take the image's own
    voxel size and are read for at once, give their slabs as they are predicted. Else each preparation holds, on its
    own grid, the mixtures that it has a part in: (O, K, x, y, z) float32, file-backed if large.

    Args:
        members: M networks.
        volume: The image.
        case_id: Whose it is.
        mixtures: (O, M) weights; each row sums to 1.
        precision: Where the networks run, and in which type.
        check_stop: Called before every pass of windows through a network, and before every slab.

    Yields:
        First plane, and probabilities_OKXYZ float32.

    Raises:
        DatasetError: If the image cannot be prepared.
    """
    preparations = _groups([member.preparation for member in members])
    are_one = len(preparations) == 1  # slabs of several are added: they must be the same planes
    parts: list[tuple[np.ndarray, np.ndarray, Iterator[tuple[int, np.ndarray]]]] = []
    for chosen in preparations:
        group, weights = [members[index] for index in chosen], mixtures[:, chosen]
        rows = np.flatnonzero(weights.sum(axis=1))
        if not len(rows):
            continue
        spacing_mm, crop = group[0].preparation
        prepared = prepare_image(case_id, volume, spacing_mm=spacing_mm, crop=crop)
        shares = weights[rows].sum(axis=1, keepdims=True)
        mixing = _Mixing(group, prepared, weights[rows] / shares, precision, check_stop)
        slabs = mixing.streamed() if are_one and mixing.can_stream else mixing.restored()
        parts.append((rows, shares.astype(np.float32)[..., None, None, None], slabs))
    for pieces in zip(*(slabs for _, _, slabs in parts), strict=True):
        check_stop()
        total = np.zeros((len(mixtures), *pieces[0][1].shape[1:]), np.float32)
        for (rows, shares, _), (_, probabilities_RKXYZ) in zip(parts, pieces, strict=True):
            total[rows] += probabilities_RKXYZ * shares
        yield pieces[0][0], total


def keep_largest_components(
    label: np.ndarray, classes: Sequence[int], *, check_stop: CheckStop = never_stop
) -> np.ndarray:
    """Return a label map in which each of the classes keeps only its largest connected component (26 neighbours).

    Beside the label map and the result this takes a byte per voxel, and six per voxel of the box around the class.

    Args:
        label: Class indices.
        classes: Which of them.
        check_stop: Called before every class.
    """
    result = label.copy() if classes else label
    for index in classes:
        check_stop()
        mask = result == index
        found = ndimage.find_objects(mask.view(np.uint8))
        if not found:
            continue
        components, count = ndimage.label(mask[found[0]], structure=np.ones((3, 3, 3), bool))
        if count > 1:
            largest = 1 + int(_component_sizes(components, count).argmax())
            result[found[0]][mask[found[0]] & (components != largest)] = 0
    return result


def _refuse_collisions(cases: Sequence[Case], output: Path) -> None:
    counts = Counter(case.id for case in cases)
    problems = [
        f"{name}: several images have this name; predict them one by one" for name, count in counts.items() if count > 1
    ]
    for case in cases:
        for image in map(Path, case.images):
            if _label_path(output, case.id, file_ending(image) or "").resolve() == image.resolve():
                problems.append(f"{image}: the label map would replace its image; choose another output folder")
    if problems:
        raise DatasetError(problems)


def _label_path(output: Path, name: str, ending: str) -> Path:
    return output / f"{name}{_WRITTEN_ENDINGS.get(ending, ending)}"


@dataclass(frozen=True, eq=False)
class _Mixing:
    """Mixtures of the probabilities of members that share a preparation of the image."""

    members: Sequence[LoadedMember]
    prepared: PreparedCase
    weights: np.ndarray
    """(R, M); each row sums to 1."""
    precision: Precision
    check_stop: CheckStop

    @property
    def can_stream(self) -> bool:
        """Whether slabs come once, and on the image's own grid, so that none has to wait for another."""
        placement = self.prepared.placement
        return placement.prepared_shape == placement.box_shape and len(list(self._readings())) == 1

    def streamed(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield first plane and probabilities_RKXYZ on the image's grid, each slab as soon as it is predicted."""
        placement = self.prepared.placement
        first, last = placement.box_start[0], placement.box_start[0] + placement.box_shape[0]
        yield from self._empty_slabs(0, first)
        for start, probabilities_RKXYZ in self._slabs(range(len(self.members))):
            yield first + start, self._on_whole_planes(probabilities_RKXYZ)
        yield from self._empty_slabs(last, placement.shape_voxels[0])

    def restored(self) -> Iterator[tuple[int, np.ndarray]]:
        """Predict all of it, then return an iterator over first plane and probabilities_RKXYZ on the image's grid."""
        mixed = scratch_array((len(self.weights), self._classes, *self.prepared.image.shape[1:]), np.float32)
        for chosen in self._readings():
            for start, mixture in self._slabs(chosen):
                mixed[:, :, start : start + mixture.shape[2]] += mixture
        rows = [restore_probabilities(mixture, self.prepared.placement, slab=_PLANES) for mixture in mixed]
        return ((pieces[0][0], np.stack([piece for _, piece in pieces])) for pieces in zip(*rows, strict=True))

    @property
    def _classes(self) -> int:
        return self.members[0].plan.network.out_channels

    def _empty_slabs(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        for first in range(start, stop, _PLANES):
            shape = (len(self.weights), self._classes, min(_PLANES, stop - first), 0, 0)
            yield first, self._on_whole_planes(np.empty(shape, np.float32))

    def _on_whole_planes(self, probabilities_RKXYZ: np.ndarray) -> np.ndarray:
        """Put what was predicted into the image's whole planes; around it class 0 has probability 1."""
        placement, sides = self.prepared.placement, probabilities_RKXYZ.shape[3:]
        if sides == placement.shape_voxels[1:]:
            return probabilities_RKXYZ
        whole = np.zeros((*probabilities_RKXYZ.shape[:3], *placement.shape_voxels[1:]), np.float32)
        whole[:, 0] = 1
        y, z = (slice(start, start + side) for start, side in zip(placement.box_start[1:], sides, strict=True))
        whole[..., y, z] = probabilities_RKXYZ
        return whole

    def _readings(self) -> Iterator[list[int]]:
        """Yield members that share one reading, no more at once than there is memory for when they are asked for."""
        for left in _groups([member.windows for member in self.members]):
            plan = self.members[left[0]].plan
            while left:
                shape, settings = self.prepared.image.shape[1:], self._settings(plan)
                count = networks_at_once(shape, plan, settings, networks=len(left))
                yield left[:count]
                left = left[count:]

    def _settings(self, plan: Plan) -> WindowSettings:
        return WindowSettings(
            self.precision.device,
            self.precision.dtype,
            flip_axes=_seen_flips(plan),
            background=self.prepared.background,
            check_stop=self.check_stop,
        )

    def _slabs(self, chosen: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield first plane and some members' part of the mixtures, on the prepared grid; they share one reading."""
        plan = self.members[chosen[0]].plan
        slabs = logit_slabs(
            [self.members[index].network for index in chosen],
            self.prepared.image,
            plan=plan,
            statistics=self.prepared.statistics,
            settings=self._settings(plan),
        )
        weights_RM = torch.from_numpy(self.weights[:, list(chosen)]).float()
        for slab in even_slabs(slabs, _PLANES):
            probabilities_MKXYZ = torch.from_numpy(slab.logits).softmax(dim=1)
            yield slab.start, torch.tensordot(weights_RM, probabilities_MKXYZ, dims=1).numpy()


def _component_sizes(components: np.ndarray, count: int) -> np.ndarray:
    """Return how many voxels each of the components 1 to `count` has."""
    flat = components.ravel()
    sizes = np.zeros(count + 1, np.int64)
    for start in range(0, len(flat), _COUNTED_VOXELS):
        sizes += np.bincount(flat[start : start + _COUNTED_VOXELS], minlength=count + 1)
    return sizes[1:]


def _groups(keys: Sequence[tuple[object, ...]]) -> list[list[int]]:
    """Return the indices of equal keys together, in the order of their first."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return list(groups.values())
