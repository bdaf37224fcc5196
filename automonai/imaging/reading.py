"""Reading images and labels into RAS order, and writing label maps back in the input's own orientation.

Numpy volumes are (C, X, Y, Z), labels (X, Y, Z): x to the patient's right, y to the front, z to the top. NIfTI files
are read here directly, piece by piece: what a header claims is compared with the file's size before memory is taken
for it, and a gzip file is read to its checksum. Other formats go through MONAI's ITK reader, an optional extra.
"""

from __future__ import annotations

import gzip
import io
import stat
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from numpy.typing import DTypeLike, NDArray

from automonai.domain.fingerprint import IntTriple, Triple
from automonai.errors import DatasetError
from automonai.storage.local import write_whole

NIFTI_ENDINGS = (".nii.gz", ".nii")
ITK_ENDINGS = (".mha", ".mhd", ".nrrd")
ENDINGS = NIFTI_ENDINGS + ITK_ENDINGS
"""The file endings that can be read, longest first where one ends another."""

MAX_VOXELS = 2**32
"""Larger volumes are refused: at four billion values even one channel is no medical image that fits a machine."""

_CHUNK_VALUES = 1 << 21
_MAX_DEFLATE_RATIO = (
    1032  # zlib's own bound (https://zlib.net/zlib_tech.html): a file cannot hold more than this times its size
)
_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_SPACING_LIMITS_MM = (1e-4, 1e4)
_UNKNOWN_CLASS = 255


@dataclass(frozen=True, eq=False)
class Geometry:
    """How a file's voxel grid lies in the patient, and the form in which it was stored.

    Attributes:
        affine: (4, 4) float64, from the file's voxel indices to RAS millimetres.
        shape_voxels: The grid's extent in the file's own axis order.
        ending: The file's ending, such as `.nii.gz`.
    """

    affine: NDArray[np.float64]
    shape_voxels: IntTriple
    ending: str

    @property
    def orientation(self) -> NDArray[np.float64]:
        """Return nibabel's (3, 2) transform from the file's axes to RAS."""
        return np.asarray(nib.orientations.io_orientation(self.affine))

    @property
    def axis_codes(self) -> str:
        """Return where the file's axes point, for example `LPS`."""
        return "".join(str(code) for code in nib.aff2axcodes(self.affine))

    def agrees(self, other: Geometry) -> bool:
        """Whether both grids have one shape and every corner within a tenth of the smallest voxel size of its twin.

        The tolerance lets pass what single precision and a rotation stored as quaternion round away, and nothing more.
        """
        if self.shape_voxels != other.shape_voxels:
            return False
        ends = [(0.0, float(n)) for n in self.shape_voxels]
        corners = np.array([(x, y, z, 1.0) for x in ends[0] for y in ends[1] for z in ends[2]])
        apart = np.abs(corners @ (self.affine - other.affine).T).max()
        return bool(apart <= 0.1 * voxel_sizes(self.affine).min())


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


@dataclass(frozen=True, eq=False)
class _Header:
    """What a NIfTI header says, in the file's axis order."""

    shape_voxels: IntTriple
    channels: int
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    affine: NDArray[np.float64]

    @property
    def value_count(self) -> int:
        return prod(self.shape_voxels) * self.channels

    @property
    def is_scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)


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
    return Volume(np.concatenate([v.voxels for v in volumes]), first.spacing_mm, first.geometry)


def read_label(path: Path, label_values: Sequence[int]) -> NDArray[np.uint8]:
    """Read a label map as class indices.

    Args:
        path: Its file; whole numbers may be stored as floats.
        label_values: The label value of each class index, ascending.

    Returns:
        (X, Y, Z), uint8, in RAS order: the position of each voxel's value in `label_values`.

    Raises:
        DatasetError: If the file cannot be read, has several channels, or holds values that are no whole number or
            not expected.
    """
    indices, problems = class_indices(read_image([path]), label_values)
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
    for rows in _slabs(values.shape):
        whole, broken = _whole_numbers(values[..., rows])
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
    values = np.asarray(label_values, dtype)[indices]
    transform = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), geometry.orientation)
    stored = nib.orientations.apply_orientation(values, transform)
    assert stored.shape == geometry.shape_voxels, "a label map must lie on its image's grid"
    ending = file_ending(path)
    if ending in NIFTI_ENDINGS:
        write_nifti(path, stored, geometry.affine)
    elif ending in ITK_ENDINGS:
        _write_itk(path, stored, geometry.affine)
    else:
        raise DatasetError([f"{path}: unknown file ending; expected one of {', '.join(ENDINGS)}"])


def write_nifti(path: Path, values: NDArray, affine: NDArray[np.float64]) -> None:
    """Write an array as NIfTI, compressed if the path ends so; whole or not at all, the same bytes for the same values.

    Args:
        path: Where to.
        values: In the file's axis order, channels last.
        affine: From these axes to RAS millimetres.
    """
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")

    def write(stream: BinaryIO) -> None:
        if path.suffix != ".gz":
            image.to_stream(stream)
            return
        with gzip.GzipFile(filename="", fileobj=stream, mode="wb", compresslevel=2, mtime=0) as packed:
            image.to_stream(packed)

    write_whole(path, write)


def channel_count(path: Path) -> int:
    """Return how many channels a file holds, by its header alone where it is NIfTI, else as one.

    Raises:
        DatasetError: If there is no readable header.
    """
    if file_ending(path) not in NIFTI_ENDINGS:
        return 1
    with _opened(path) as stream:
        return _read_header(path, stream).channels


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
    if ending in ITK_ENDINGS:
        voxels, affine = _read_itk(path)
    else:
        voxels, affine = _read_nifti(path)
    geometry = Geometry(affine, voxels.shape[:3], ending)
    spacing = _check_affine(path, geometry)
    oriented = nib.orientations.apply_orientation(voxels, geometry.orientation)
    order = np.argsort(geometry.orientation[:, 0])
    x, y, z = (float(spacing[axis]) for axis in order)
    return Volume(np.moveaxis(oriented, 3, 0), (x, y, z), geometry)


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


def _read_nifti(path: Path) -> tuple[NDArray, NDArray[np.float64]]:
    """Return voxels as (axes of the file, C), and the affine."""
    with _opened(path) as stream:
        header = _read_header(path, stream)
        _check_claim(path, header)
        flat = _read_values(path, header, stream)
    return flat.reshape((*header.shape_voxels, header.channels), order="F"), header.affine


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a NIfTI file for reading its decompressed bytes; whatever goes wrong inside names the file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DatasetError([f"{path}: is not a regular file"])
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if compressed else raw as stream:
                yield io.BufferedReader(stream, 1 << 20) if compressed else stream  # type: ignore[misc]
    except FileNotFoundError as error:
        raise DatasetError([f"{path}: no such file"]) from error
    except EOFError as error:
        raise DatasetError([f"{path}: the compressed file is cut off; copy it again"]) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError([f"{path}: the compressed file is damaged ({error}); copy it again"]) from error
    except MemoryError as error:
        raise DatasetError([f"{path}: does not fit into this machine's memory"]) from error
    except (OSError, ValueError) as error:
        raise DatasetError([f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"]) from error


def _read_header(path: Path, stream: BinaryIO) -> _Header:
    start = stream.read(4)
    size = next((n for n in _HEADERS if start in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), None)
    if size is None:
        found = "the file is empty" if not start else "it does not start with a NIfTI header"
        raise DatasetError([f"{path}: is no NIfTI image: {found}"])
    block = start + stream.read(size - 4)
    if len(block) < size:
        raise DatasetError([f"{path}: is cut off within its header, after {len(block)} bytes"])
    try:
        with np.errstate(all="ignore"):
            return _parse_header(_HEADERS[size](block, check=False))
    except (ValueError, TypeError, OverflowError, KeyError) as error:
        raise DatasetError([f"{path}: its NIfTI header is invalid: {error}"]) from error
    except (HeaderDataError, HeaderTypeError) as error:
        raise DatasetError([f"{path}: its NIfTI header is invalid: {error}"]) from error


def _parse_header(header: nib.Nifti1Header) -> _Header:
    shape = [int(side) for side in header.get_data_shape()]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) == 5 and shape[3] == 1:  # NIfTI's vector images keep their components in the fifth dimension
        shape.pop(3)
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise ValueError(f"dimensions {shape}; expected three axes, or four with the channels last")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ValueError(f"data type {dtype}; expected integers or floats of up to 64 bits")
    if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        raise ValueError("its magic number is not that of a single-file NIfTI image")
    slope, intercept = header.get_slope_inter()
    return _Header(
        shape_voxels=(shape[0], shape[1], shape[2]),
        channels=shape[3] if len(shape) == 4 else 1,
        dtype=dtype,
        offset=int(header.get_data_offset()),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        affine=np.asarray(header.get_best_affine(), np.float64),
    )


def _check_claim(path: Path, header: _Header) -> None:
    """Compare what the header promises with what the file can hold, before memory is taken for it."""
    with path.open("rb") as raw:
        ratio = _MAX_DEFLATE_RATIO if raw.read(2) == b"\x1f\x8b" else 1
    holds = path.stat().st_size * ratio
    needs = header.offset + header.value_count * header.dtype.itemsize
    shape = _times(header.shape_voxels) + (f"x{header.channels}" if header.channels > 1 else "")
    if header.offset < 0:
        raise DatasetError([f"{path}: its NIfTI header is invalid: data offset {header.offset}"])
    if needs > holds:
        raise DatasetError(
            [f"{path}: is cut off or its header is wrong: {shape} voxels need {needs} bytes, it has {holds // ratio}"]
        )
    if header.value_count > MAX_VOXELS:
        raise DatasetError([f"{path}: has {shape} voxels; at most {MAX_VOXELS} can be handled"])


def _read_values(path: Path, header: _Header, stream: BinaryIO) -> NDArray:
    """Return the values in file order; only one piece at a time exists in another type than the result's."""
    stream.seek(header.offset)
    values = np.empty(header.value_count, _kept_dtype(header))
    with np.errstate(all="ignore"):
        for start in range(0, len(values), _CHUNK_VALUES):
            count = min(_CHUNK_VALUES, len(values) - start)
            raw = stream.read(count * header.dtype.itemsize)
            if len(raw) < count * header.dtype.itemsize:
                raise DatasetError([f"{path}: is cut off: its header promises {len(values)} values, it holds fewer"])
            piece = np.frombuffer(raw, header.dtype)
            if header.is_scaled:
                piece = piece * header.slope + header.intercept
            values[start : start + count] = piece
    stream.read(1 << 16)  # to the end of a gzip file, where its checksum stands
    return values


def _kept_dtype(header: _Header) -> DTypeLike:
    small_integer = header.dtype.kind in "iu" and header.dtype.newbyteorder("=") not in (
        np.uint32,
        np.int64,
        np.uint64,
    )
    return header.dtype.newbyteorder("=") if small_integer and not header.is_scaled else np.float32


def _class_table(label_values: Sequence[int]) -> NDArray[np.uint8]:
    """Return class indices by label value, counted from one below the lowest; both ends catch all other values."""
    table = np.full(label_values[-1] - label_values[0] + 3, _UNKNOWN_CLASS, np.uint8)
    for index, value in enumerate(label_values):
        table[value - label_values[0] + 1] = index
    return table


def _slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Yield slices along the last axis of at most some two million voxels, but one layer at least."""
    step = max(1, _CHUNK_VALUES // max(1, prod(shape[:2])))
    for start in range(0, shape[2], step):
        yield slice(start, start + step)


def _whole_numbers(values: NDArray) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the values as integers, and where they are none to 0.001 (scaling rounds whole numbers that much)."""
    if values.dtype.kind != "f":
        return values.astype(np.int64), np.zeros(values.shape, bool)
    with np.errstate(all="ignore"):
        rounded = np.rint(values)
        broken = ~(np.abs(values - rounded) <= 1e-3) | (np.abs(rounded) > 2**31)
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
            [f"{path}: this format needs the formats extra: pip install 'automonai[formats]', or convert it to .nii.gz"]
        ) from error


def _read_itk(path: Path) -> tuple[NDArray, NDArray[np.float64]]:
    if not path.is_file():
        raise DatasetError([f"{path}: no such file"])
    _require_itk(path)
    from monai.data import ITKReader

    try:
        reader = ITKReader(affine_lps_to_ras=True)
        data, meta = reader.get_data(reader.read(str(path)))
    except (RuntimeError, ValueError, OSError, MemoryError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1:] or ["unknown reason"]
        raise DatasetError([f"{path}: cannot be read: {reason[0]}"]) from error
    if data.ndim not in (3, 4):
        raise DatasetError([f"{path}: has {data.ndim} dimensions; expected three, or four with the channels last"])
    voxels = data if data.ndim == 4 else data[..., None]
    is_small_integer = voxels.dtype.kind in "iu" and voxels.dtype.itemsize <= 2
    kept = voxels if is_small_integer else voxels.astype(np.float32, copy=False)
    return kept, np.asarray(meta["affine"], np.float64)


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
