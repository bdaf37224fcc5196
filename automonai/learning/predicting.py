"""From an ensemble and images to label maps, in the images' own grids.

Axes: logits_MKXYZ (M networks), probabilities_OKXYZ (O mixtures of them), label maps (X, Y, Z) of class indices, RAS.
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
from automonai.learning.inference import CheckStop, WindowSettings, logit_slabs, never_stop, scratch_array
from automonai.learning.network import place
from automonai.learning.precision import Precision
from automonai.storage.store import Store

_WRITTEN_ENDINGS = {".mhd": ".mha"}
"""A .mhd is two files, which cannot be replaced as one."""


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
        return (plan.patch_voxels, plan.configuration.normalisation, sliced, plan.flip_axes)


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

    An image is prepared once for all members of one spacing and crop, and read once for all of one patch and
    normalisation. Each preparation holds its mixtures on its own grid: (O, K, x, y, z) float32, file-backed if large.

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
    restored: list[tuple[float, int, Iterator[tuple[int, np.ndarray]]]] = []
    for chosen in _groups([member.preparation for member in members]):
        spacing_mm, crop = members[chosen[0]].preparation
        prepared = prepare_image(case_id, volume, spacing_mm=spacing_mm, crop=crop)
        group, weights = [members[index] for index in chosen], mixtures[:, chosen]
        mixed = _mixed_probabilities(group, prepared, weights, precision=precision, check_stop=check_stop)
        restored += [
            (share, row, restore_probabilities(mixed[row], prepared.placement))
            for row, share in enumerate(weights.sum(axis=1).tolist())
            if share > 0
        ]
    for pieces in zip(*(pieces for _, _, pieces in restored), strict=True):
        check_stop()
        total = np.zeros((len(mixtures), *pieces[0][1].shape), np.float32)
        for (share, row, _), (_, probabilities_KXYZ) in zip(restored, pieces, strict=True):
            total[row] += probabilities_KXYZ if share == 1 else probabilities_KXYZ * np.float32(share)
        yield pieces[0][0], total


def keep_largest_components(
    label: np.ndarray, classes: Sequence[int], *, check_stop: CheckStop = never_stop
) -> np.ndarray:
    """Return a label map in which each of the classes keeps only its largest connected component (26 neighbours).

    The memory needed is that of a 32-bit integer per voxel of the box around the class.

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
            sizes = np.bincount(components.ravel())
            sizes[0] = 0
            result[found[0]][(components != 0) & (components != sizes.argmax())] = 0
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


def _mixed_probabilities(
    members: Sequence[LoadedMember],
    prepared: PreparedCase,
    weights: np.ndarray,
    *,
    precision: Precision,
    check_stop: CheckStop,
) -> np.ndarray:
    """Return probabilities_OKXYZ on the prepared grid, each mixture's weights scaled to sum 1 within these members."""
    classes = members[0].plan.network.out_channels
    shares = weights.sum(axis=1, keepdims=True)
    scaled = torch.from_numpy(np.divide(weights, shares, where=shares > 0, out=np.zeros_like(weights))).float()
    mixed = scratch_array((len(weights), classes, *prepared.image.shape[1:]), np.float32)
    for chosen in _groups([member.windows for member in members]):
        plan = members[chosen[0]].plan
        slabs = logit_slabs(
            [members[index].network for index in chosen],
            prepared.image,
            plan=plan,
            statistics=prepared.statistics,
            settings=WindowSettings(
                precision.device,
                precision.dtype,
                flip_axes=plan.flip_axes,
                background=prepared.background,
                check_stop=check_stop,
            ),
        )
        for slab in slabs:
            probabilities_MKXYZ = torch.from_numpy(slab.logits).softmax(dim=1)
            mixture = torch.tensordot(scaled[:, chosen], probabilities_MKXYZ, dims=1)
            mixed[:, :, slab.start : slab.stop] += mixture.numpy()
    return mixed


def _groups(keys: Sequence[tuple[object, ...]]) -> list[list[int]]:
    """Return the indices of equal keys together, in the order of their first."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return list(groups.values())
