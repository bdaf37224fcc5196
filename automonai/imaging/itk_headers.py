"""What the headers of MetaImage and NRRD files say of where their voxels lie and how they are packed.

ITK reads such a file whatever its packed voxels' checksum says, and a header may name another file for them.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from automonai.errors import DatasetError

ITK_ENDINGS = (".mha", ".mhd", ".nrrd")

_HEADER_BYTES = 1 << 16
_PIECE_BYTES = 1 << 20
_EITHER, _GZIP = 47, 31
"""Of zlib's window bits: zlib or gzip, and gzip alone."""


@dataclass(frozen=True)
class _Voxels:
    """Where they lie."""

    elsewhere: str
    """Another file's name; empty: behind the header."""
    offset: int
    """Of the first byte, in whichever file."""
    window_bits: int | None
    """How they are packed; None: not at all, or in a way that is not checked here."""


def voxels_elsewhere(path: Path) -> Path | None:
    """Return the file that holds an image's voxels where its header names another; None where they are its own.

    Raises:
        DatasetError: If the header names several files.
    """
    voxels = _voxels(path)
    if voxels is None or not voxels.elsewhere:
        return None
    if voxels.elsewhere.split()[0] == "LIST" or "%" in voxels.elsewhere:
        raise DatasetError([f"{path}: its voxels lie in several files; convert it to .nii.gz or .mha"])
    return path.parent / voxels.elsewhere


def check_packed_voxels(path: Path) -> None:
    """Read compressed voxels to their checksum.

    Raises:
        DatasetError: If they are damaged or cut off.
    """
    voxels = _voxels(path)
    if voxels is None or voxels.window_bits is None:
        return
    holder = voxels_elsewhere(path) or path
    unpack = zlib.decompressobj(wbits=voxels.window_bits)
    try:
        with holder.open("rb") as stream:
            stream.seek(voxels.offset)
            while not unpack.eof and (piece := unpack.unconsumed_tail or stream.read(_PIECE_BYTES)):
                unpack.decompress(piece, _PIECE_BYTES)
    except (OSError, zlib.error) as error:
        raise DatasetError([f"{holder}: its compressed voxels are damaged ({error}); copy it again"]) from error
    if not unpack.eof:
        raise DatasetError([f"{holder}: its compressed voxels are cut off; copy it again"])


def _voxels(path: Path) -> _Voxels | None:
    """Return what a header says; None for other formats, and for what is none: the reader says what is wrong."""
    ending = path.suffix.lower()
    if ending not in ITK_ENDINGS:
        return None
    try:
        with path.open("rb") as stream:
            start = stream.read(_HEADER_BYTES)
    except OSError:
        return None
    return _of_nrrd(start) if ending == ".nrrd" else _of_metaimage(start)


def _of_metaimage(start: bytes) -> _Voxels | None:
    fields, offset = dict[str, str](), 0
    for line in start.splitlines(keepends=True):
        offset += len(line)
        name, value = (*re.split("[=:]", line.decode("utf-8", "replace"), maxsplit=1), "")[:2]
        fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            break
    else:
        return None
    place = fields["ElementDataFile"]
    is_own = place.upper() == "LOCAL"
    is_packed = fields.get("CompressedData", "").lower() == "true" and fields.get("HeaderSize", "0") == "0"
    return _Voxels("" if is_own else place, offset if is_own else 0, _EITHER if is_packed else None)


def _of_nrrd(start: bytes) -> _Voxels | None:
    if not start.startswith(b"NRRD"):
        return None
    fields, offset = dict[str, str](), 0
    for line in start.splitlines(keepends=True):
        offset += len(line)
        if not line.strip():
            break
        name, _, value = line.decode("utf-8", "replace").partition(":")
        fields[name.strip().lower()] = value.strip()
    place = fields.get("data file", fields.get("datafile", ""))
    is_plain = not {"byte skip", "byteskip", "line skip", "lineskip"} & fields.keys()
    is_packed = fields.get("encoding", "").lower() in ("gzip", "gz")
    return _Voxels(place, 0 if place else offset, _GZIP if is_packed and is_plain else None)
