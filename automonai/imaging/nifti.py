"""NIfTI files, read piece by piece and written whole.

What a header claims is compared with the file's size before memory is taken for it, and a gzip file is read to its
checksum: nibabel trusts both.
"""

from __future__ import annotations

import gzip
import io
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from numpy.typing import DTypeLike, NDArray

from automonai.domain.fingerprint import IntTriple
from automonai.errors import DatasetError
from automonai.storage.local import write_whole

MAX_VOXELS = 2**32
"""Larger volumes are refused: at four billion values even one channel is no medical image that fits a machine."""

_CHUNK_VALUES = 1 << 21
_MAX_DEFLATE_RATIO = 1032  # zlib's own bound: a file cannot hold more than this times its size (zlib_tech.html)
_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_UNITS_MM = {1: 1e3, 2: 1.0, 3: 1e-3}
"""Of the codes for meter, millimetre and micron."""


_FORM_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)


@dataclass(frozen=True, eq=False)
class NiftiForms:
    """How a NIfTI file states where its voxels are, for a label map that is to be found there by every program.

    Two forms may stand in it, each with a code for what it refers to, and programs differ in which they go by.
    """

    fields: dict[str, NDArray]
    """Header fields as they stand in the file, in its own unit."""
    qform: NDArray[np.float64] | None
    """Affine of the quaternion form, to millimetres; None where it is not given or no rotation."""


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
    """To millimetres, whatever the file's unit."""
    forms: NiftiForms

    @property
    def value_count(self) -> int:
        return prod(self.shape_voxels) * self.channels

    @property
    def is_scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)


def read_nifti(path: Path) -> tuple[NDArray, NDArray[np.float64], NiftiForms]:
    """Return voxels as (axes of the file, C), the affine to millimetres, and how the file states it.

    Small integer types stay as they are unless the file scales them; all else becomes float32. A file that names no
    unit of length is taken to be in mm, as by other programs.

    Raises:
        DatasetError: If the file is missing, cut off, damaged, or no image that can be handled.
    """
    with _opened(path) as stream:
        header = _read_header(path, stream)
        _check_claim(path, header)
        flat = _read_values(path, header, stream)
    return flat.reshape((*header.shape_voxels, header.channels), order="F"), header.affine, header.forms


def nifti_channel_count(path: Path) -> int:
    """Return how many channels a file's header promises.

    Raises:
        DatasetError: If there is no readable header.
    """
    with _opened(path) as stream:
        return _read_header(path, stream).channels


def nifti_kept_bytes(path: Path) -> int:
    """Return what a file's voxels take once they are read, by its header.

    Raises:
        DatasetError: If there is no readable header, or the file cannot hold what it promises.
    """
    with _opened(path) as stream:
        header = _read_header(path, stream)
    _check_claim(path, header)
    return header.value_count * np.dtype(_kept_dtype(header)).itemsize


def write_nifti(path: Path, values: NDArray, affine: NDArray[np.float64], *, forms: NiftiForms | None = None) -> None:
    """Write an array as NIfTI, compressed if the path ends so; whole or not at all, the same bytes for the same values.

    Args:
        path: Where to.
        values: In the file's axis order, channels last.
        affine: From these axes to RAS millimetres.
        forms: Of the file on whose grid the values lie, which states the affine; None: both forms say the same, in mm.
    """
    image = nib.Nifti1Image(values, affine if forms is None else None)
    if forms is None:
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        image.header.set_xyzt_units("mm")
    else:
        image.header["pixdim"][:4] = forms.fields["pixdim"]
        for name in _FORM_FIELDS:
            image.header[name] = forms.fields[name]

    def write(stream: BinaryIO) -> None:
        if path.suffix != ".gz":
            image.to_stream(stream)
            return
        with gzip.GzipFile(filename="", fileobj=stream, mode="wb", compresslevel=2, mtime=0) as packed:
            image.to_stream(packed)

    write_whole(path, write)


def _scaled(affine: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    return np.array([[factor], [factor], [factor], [1.0]]) * affine


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
    offset, least = int(header.get_data_offset()), header.single_vox_offset
    if offset < least:
        # Not even 0 is harmless: nibabel takes the header for voxels then, and ITK begins four bytes too early.
        raise ValueError(f"data offset {offset}; the values of a single-file image begin at byte {least} or later")
    slope, intercept = header.get_slope_inter()
    to_mm = _UNITS_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    fields = {"pixdim": header["pixdim"][:4].copy(), **{name: header[name].copy() for name in _FORM_FIELDS}}
    if abs(header["pixdim"][0]) != 1:  # the standard takes such a sign for +1, and sizes for their magnitudes
        header["pixdim"][0] = 1
    header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    return _Header(
        shape_voxels=(shape[0], shape[1], shape[2]),
        channels=shape[3] if len(shape) == 4 else 1,
        dtype=dtype,
        offset=offset,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        affine=_scaled(np.asarray(header.get_best_affine(), np.float64), to_mm),
        forms=NiftiForms(fields, _qform(header, to_mm)),
    )


def _qform(header: nib.Nifti1Header, to_mm: float) -> NDArray[np.float64] | None:
    try:
        affine, code = header.get_qform(coded=True)
    except (ValueError, HeaderDataError):
        return None
    return _scaled(np.asarray(affine, np.float64), to_mm) if code and affine is not None else None


def _check_claim(path: Path, header: _Header) -> None:
    """Compare what the header promises with what the file can hold, before memory is taken for it."""
    with path.open("rb") as raw:
        ratio = _MAX_DEFLATE_RATIO if raw.read(2) == b"\x1f\x8b" else 1
    holds = path.stat().st_size * ratio
    needs = header.offset + header.value_count * header.dtype.itemsize
    shape = "x".join(map(str, (*header.shape_voxels, header.channels)[: 3 + (header.channels > 1)]))
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
