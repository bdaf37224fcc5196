"""Reading images and labels into RAS order, and writing label maps back in the input's own orientation.

Numpy volumes are (C, X, Y, Z), labels (X, Y, Z): x to the patient's right, y to the front, z to the top. `nifti`
reads and writes the files of that format; others go through MONAI's ITK reader, an optional extra.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from automonai.domain.fingerprint import IntTriple, Triple
from automonai.errors import DatasetError
from automonai.imaging.itk_headers import ITK_ENDINGS, check_packed_voxels
from automonai.imaging.nifti import NiftiForms, nifti_channel_count, nifti_kept_bytes, read_nifti, write_nifti

NIFTI_ENDINGS = (".nii.gz", ".nii")
ENDINGS = NIFTI_ENDINGS + ITK_ENDINGS
"""The file endings that can be read, longest first where one ends another."""


_SPACING_LIMITS_MM = (1e-4, 1e4)
_UNKNOWN_CLASS = 255
_SLAB_VOXELS = 1 << 21


@dataclass(frozen=True, eq=False)
class Geometry:
    """How a file's voxel grid lies in the patient, and the form in which it was stored.

    Attributes:
        affine: (4, 4) float64, from the file's voxel indices to RAS millimetres.
        shape_voxels: The grid's extent in the file's own axis order.
        ending: The file's ending, such as `.nii.gz`.
        forms: How a NIfTI file states its affine; a label map for it is written with the same. None: it is none.
    """

    affine: NDArray[np.float64]
    shape_voxels: IntTriple
    ending: str
    forms: NiftiForms | None = None

    @property
    def orientation(self) -> NDArray[np.float64]:
        """Return nibabel's (3, 2) transform from the file's axes to RAS."""
        return np.asarray(nib.orientations.io_orientation(self.affine))

    @property
    def axis_codes(self) -> str:
        """Return where the file's axes point, for example `LPS`."""
        return "".join(str(code) for code in nib.aff2axcodes(self.affine))

    def to_ras(self, stored: NDArray) -> NDArray:
        """Return a view of an array (axes of the file, ...) along the patient's axes: (X, Y, Z, ...)."""
        return np.asarray(nib.orientations.apply_orientation(stored, self.orientation))

    def to_file_order(self, values: NDArray) -> NDArray:
        """Return a view of an array (X, Y, Z, ...) along the axes of the file."""
        transform = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), self.orientation)
        return np.asarray(nib.orientations.apply_orientation(values, transform))

    def agrees(self, other: Geometry) -> bool:
        """Whether both grids have one shape and every corner within a tenth of the smallest voxel size of its twin.

        The tolerance lets pass what single precision and a rotation stored as quaternion round away, and nothing more.
        Where a NIfTI file's two forms differ, the second may be the one that the other file's program went by.
        """
        if self.shape_voxels != other.shape_voxels:
            return False
        ends = [(0.0, float(n)) for n in self.shape_voxels]
        corners = np.array([(x, y, z, 1.0) for x in ends[0] for y in ends[1] for z in ends[2]])
        pairs = ((self.affine, other.affine), (self._second, other.affine), (self.affine, other._second))
        apart = [np.abs(corners @ (own - its).T).max() for own, its in pairs]
        return bool(min(apart) <= 0.1 * voxel_sizes(self.affine).min())

    @property
    def _second(self) -> NDArray[np.float64]:
        return self.affine if self.forms is None or self.forms.qform is None else self.forms.qform


@dataclass(frozen=True, eq=False)
class Volume:
    """An image in RAS order.

    Attributes:
        voxels: (C, X, Y, Z) in the image's own unit; integers of up to 32 bits stay as stored, all else is float32.
        spacing_mm: Voxel size along x, y and z.
        geometry: How to go back to the file's grid.
    """

    voxels: NDArray
    spacing_mm: Triple
    geometry: Geometry


def file_ending(path: Path) -> str | None:
    """Return the image ending that the path has, None if it is not one that can be read."""
    name = path.name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending) and name != ending), None)


def stem(path: Path) -> str:
    """Return the file's name without its image ending."""
    return path.name[: -len(file_ending(path) or "")] or path.name


def read_image(paths: Sequence[Path]) -> Volume:
    """Read one image: a file of three or four dimensions, or one three-dimensional file per channel.

    Raises:
        DatasetError: If a file is missing, unreadable, cut off or no image, its affine singular, or the channels'
            grids differ.
    """
    volumes = [_read_file(path) for path in paths]
    first = volumes[0]
    if len(volumes) == 1:
        return first
    problems = [
        f"{path}: its grid differs from that of {paths[0].name}: {_differences(first.geometry, volume.geometry)}; "
        f"all channels of a case must share one grid"
        for path, volume in zip(paths, volumes, strict=True)
        if not first.geometry.agrees(volume.geometry)
    ]
    problems += [
        f"{path}: has {len(volume.voxels)} channels; expected one channel in each of the case's {len(paths)} files"
        for path, volume in zip(paths, volumes, strict=True)
        if len(volume.voxels) != 1
    ]
    if problems:
        raise DatasetError(problems)
    channels = [along_axes_of(first, volume).voxels for volume in volumes]
    joined = np.concatenate(channels, dtype=_joined_dtype(channels), casting="same_kind")
    return Volume(joined, first.spacing_mm, first.geometry)


def along_axes_of(image: Volume, volume: Volume) -> Volume:
    """Return a volume on an image's grid (see `Geometry.agrees`) with its axes in the image's order.

    Each was brought to RAS by its own affine. Where axes lie at 45 degrees to the patient's, the last digits of the
    affines decide which axis becomes x, and two files of one grid may differ.
    """
    own, wanted = volume.geometry, image.geometry
    if np.array_equal(own.orientation, wanted.orientation):
        return volume
    stored = own.to_file_order(np.moveaxis(volume.voxels, 0, 3))
    return Volume(np.moveaxis(wanted.to_ras(stored), 3, 0), image.spacing_mm, wanted)


def read_label(path: Path, label_values: Sequence[int], *, image: Volume | None = None) -> NDArray[np.uint8]:
    """Read a label map as class indices.

    Args:
        path: Its file; whole numbers may be stored as floats.
        label_values: The label value of each class index, ascending.
        image: What the label map belongs to, and shall lie over voxel by voxel; None: its own axes are enough.

    Returns:
        (X, Y, Z), uint8, in RAS order: the position of each voxel's value in `label_values`.

    Raises:
        DatasetError: If the file cannot be read, has several channels, holds values that are no whole number or
            not expected, or does not lie on the image's grid.
    """
    label = read_image([path])
    if image is not None:
        difference = describe_difference(image.geometry, label.geometry)
        if difference:
            raise DatasetError([f"{path}: does not lie on the grid of its image: it has {difference}"])
        label = along_axes_of(image, label)
    indices, problems = class_indices(label, label_values)
    if problems:
        raise DatasetError([f"{path}: {problem}" for problem in problems])
    return indices


def class_indices(label: Volume, label_values: Sequence[int]) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the class indices (X, Y, Z) of a label map's values, and what is wrong with those that have none."""
    if len(label.voxels) != 1:
        return np.zeros(label.voxels.shape[1:], np.uint8), [
            f"a label map must have one channel, this one has {len(label.voxels)}"
        ]
    values = label.voxels[0]
    indices = np.empty(values.shape, np.uint8, order="F")
    table = _class_table(label_values)
    unexpected: Counter[int] = Counter()
    fractions = 0
    for rows in slabs(values.shape):
        whole, broken = whole_numbers(values[..., rows])
        found = table[np.clip(whole - (label_values[0] - 1), 0, len(table) - 1)]
        indices[..., rows] = found
        fractions += int(broken.sum())
        strange, counts = np.unique(whole[(found == _UNKNOWN_CLASS) & ~broken], return_counts=True)
        unexpected.update(dict(zip(strange.tolist(), counts.tolist(), strict=True)))
    return indices, _label_problems(unexpected, fractions, label_values)


def write_label(path: Path, indices: NDArray[np.integer], *, geometry: Geometry, label_values: Sequence[int]) -> None:
    """Write a label map in the orientation, shape and affine of the image it belongs to, whole or not at all.

    Args:
        path: Where to; its ending must be `geometry.ending` or another that can be written.
        indices: (X, Y, Z) class indices in RAS order, on the image's grid.
        geometry: Of the image.
        label_values: The label value of each class index, ascending; they decide the integer type.

    Raises:
        DatasetError: If the format needs the `formats` extra and it is not installed, or the ending is unknown.
    """
    dtype = next(t for t in (np.uint8, np.int16, np.int32) if _holds(t, label_values))
    stored = geometry.to_file_order(np.asarray(label_values, dtype)[indices])
    assert stored.shape == geometry.shape_voxels, "a label map must lie on its image's grid"
    ending = file_ending(path)
    if ending in NIFTI_ENDINGS:
        write_nifti(path, stored, geometry.affine, forms=geometry.forms)
    elif ending in ITK_ENDINGS:
        _write_itk(path, stored, geometry.affine)
    else:
        raise DatasetError([f"{path}: unknown file ending; expected one of {', '.join(ENDINGS)}"])


def channel_count(path: Path) -> int:
    """Return how many channels a file holds, by its header alone.

    Raises:
        DatasetError: If there is no readable header, or the format's extra is not installed.
    """
    if file_ending(path) in NIFTI_ENDINGS:
        return nifti_channel_count(path)
    _require_itk(path)
    header = _itk_header(path)
    return 1 if header is None or header.GetNumberOfDimensions() < 4 else int(header.GetDimensions(3))


def kept_bytes(path: Path) -> int | None:
    """Return what a file's voxels take in memory by its header; 0 if that is faulty, None where it is not NIfTI's."""
    if file_ending(path) not in NIFTI_ENDINGS:
        return None
    try:
        return nifti_kept_bytes(path)
    except DatasetError:
        return 0


def describe_difference(image: Geometry, label: Geometry) -> str | None:
    """Return how a label's grid differs from its image's, None where they agree (see `Geometry.agrees`)."""
    return None if image.agrees(label) else _differences(image, label)


def _differences(first: Geometry, second: Geometry) -> str:
    if first.shape_voxels != second.shape_voxels:
        return f"shape {_times(second.shape_voxels)} instead of {_times(first.shape_voxels)}"
    return f"affine {_rows(second.affine)} instead of {_rows(first.affine)}"


def _times(shape: IntTriple) -> str:
    return "x".join(map(str, shape))


def _rows(affine: NDArray[np.float64]) -> str:
    return str([[round(float(value), 4) for value in row] for row in affine[:3]])


def _read_file(path: Path) -> Volume:
    ending = file_ending(path)
    if ending is None:
        raise DatasetError([f"{path}: unknown file ending; expected one of {', '.join(ENDINGS)}"])
    voxels, affine, forms = _read_itk(path) if ending in ITK_ENDINGS else read_nifti(path)
    geometry = Geometry(affine, voxels.shape[:3], ending, forms)
    spacing = _check_affine(path, geometry)
    order = np.argsort(geometry.orientation[:, 0])
    x, y, z = (float(spacing[axis]) for axis in order)
    return Volume(np.moveaxis(geometry.to_ras(voxels), 3, 0), (x, y, z), geometry)


def _joined_dtype(channels: Sequence[NDArray]) -> np.dtype:
    """Return the integer type that holds all channels, float32 if one of them is no integer."""
    common = np.result_type(*(channel.dtype for channel in channels))
    return common if common.kind in "iu" else np.dtype(np.float32)


def _check_affine(path: Path, geometry: Geometry) -> NDArray[np.float64]:
    """Return the voxel sizes in file order."""
    matrix = geometry.affine[:3, :3]
    if not np.isfinite(geometry.affine).all():
        raise DatasetError([f"{path}: its affine is not finite: {_rows(geometry.affine)}"])
    spacing = np.sqrt((matrix**2).sum(axis=0))
    low, high = _SPACING_LIMITS_MM
    if spacing.min() == 0 or abs(np.linalg.det(matrix / spacing)) < 1e-4 or np.isnan(geometry.orientation).any():
        raise DatasetError([f"{path}: its affine is singular: {_rows(geometry.affine)}; correct the header"])
    if spacing.min() < low or spacing.max() > high:
        sizes = ", ".join(f"{value:.3g}" for value in spacing)
        raise DatasetError([f"{path}: voxel sizes of {sizes} mm; expected {low:g} to {high:g} mm"])
    return np.asarray(spacing)


def _class_table(label_values: Sequence[int]) -> NDArray[np.uint8]:
    """Return class indices by label value, counted from one below the lowest; both ends catch all other values."""
    table = np.full(label_values[-1] - label_values[0] + 3, _UNKNOWN_CLASS, np.uint8)
    for index, value in enumerate(label_values):
        table[value - label_values[0] + 1] = index
    return table


def slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Yield slices along the last axis of at most some two million voxels, but one layer at least."""
    step = max(1, _SLAB_VOXELS // max(1, prod(shape[:2])))
    for start in range(0, shape[2], step):
        yield slice(start, start + step)


def whole_numbers(values: NDArray) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the values as integers, and where they are none to 0.001 (scaling rounds whole numbers that much)."""
    if values.dtype.kind != "f":
        return values.astype(np.int64), np.zeros(values.shape, bool)
    with np.errstate(all="ignore"):
        rounded = np.rint(values)
        broken = ~(np.abs(values - rounded) <= 1e-3) | (np.abs(rounded) >= 2**31)
    return np.where(broken, 0, rounded).astype(np.int64), broken


def _label_problems(unexpected: Counter[int], fractions: int, label_values: Sequence[int]) -> list[str]:
    problems = []
    if unexpected:
        named = ", ".join(f"{value} ({count} voxels)" for value, count in sorted(unexpected.items())[:10])
        more = f" and {len(unexpected) - 10} more" if len(unexpected) > 10 else ""
        expected = ", ".join(map(str, label_values))
        problems.append(
            f"unexpected label value {named}{more}; expected {expected}: name it in dataset.json or mend the label"
        )
    if fractions:
        problems.append(f"{fractions} label voxels are NaN, infinite or no whole number; labels must be whole numbers")
    return problems


def _holds(dtype: type[np.integer], values: Sequence[int]) -> bool:
    limits = np.iinfo(dtype)
    return bool(limits.min <= min(values) and max(values) <= limits.max)


def _require_itk(path: Path) -> None:
    try:
        import itk  # noqa: F401
    except ImportError as error:
        raise DatasetError(
            [f"{path}: this format wants pip install '.[formats]' in the clone; or convert it to .nii.gz"]
        ) from error


def _refuse_compound_voxels(path: Path) -> None:
    """Refuse colours, complex numbers and vectors: MetaImage stores them all alike, and ITK reads some of them only."""
    header = _itk_header(path)
    if header is None:
        return  # the reader says why
    kind, count = header.GetPixelTypeAsString(header.GetPixelType()), header.GetNumberOfComponents()
    if kind == "scalar" and count == 1:
        return
    raise DatasetError(
        [
            f"{path}: each voxel is a {kind} of {count} numbers, as in colour and complex images; expected one number:"
            " store channels along a fourth axis, or as files of their own"
        ]
    )


def _itk_header(path: Path) -> Any:
    """Return what ITK reads of a file's header; None if it knows no reader for it."""
    import itk

    try:
        header = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
        if header is not None:
            header.SetFileName(str(path))
            header.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return header


def _unreadable(path: Path, error: Exception) -> DatasetError:
    """Return what is told of a file that ITK cannot read: its last line has the reason."""
    reason = str(error).strip().splitlines()[-1:] or ["unknown reason"]
    return DatasetError([f"{path}: cannot be read: {reason[0]}"])


def _read_itk(path: Path) -> tuple[NDArray, NDArray[np.float64], None]:
    if not path.is_file():
        raise DatasetError([f"{path}: no such file"])
    _require_itk(path)
    from monai.data import ITKReader

    check_packed_voxels(path)
    try:
        _refuse_compound_voxels(path)
        reader = ITKReader(affine_lps_to_ras=True)
        data, meta = reader.get_data(reader.read(str(path)))
    except (RuntimeError, ValueError, TypeError, OSError, MemoryError, KeyError) as error:
        raise _unreadable(path, error) from error
    if data.ndim not in (3, 4):
        raise DatasetError([f"{path}: has {data.ndim} dimensions; expected three, or four with the channels last"])
    voxels = data if data.ndim == 4 else data[..., None]
    is_small_integer = voxels.dtype.kind in "iu" and voxels.dtype.itemsize <= 2
    kept = voxels if is_small_integer else voxels.astype(np.float32, copy=False)
    return kept, np.asarray(meta["affine"], np.float64), None


def _write_itk(path: Path, values: NDArray, affine: NDArray[np.float64]) -> None:
    _require_itk(path)
    import itk
    from monai.data import ITKWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        image = ITKWriter.create_backend_obj(values, channel_dim=None, affine=affine, dtype=values.dtype)
        itk.imwrite(image, str(temporary), compression=True)
        temporary.replace(path)
