from __future__ import annotations

import gzip
import itertools
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from automonai.errors import DatasetError
from automonai.imaging.content import file_digest
from automonai.imaging.nifti import write_nifti
from automonai.imaging.reading import (
    along_axes_of,
    channel_count,
    describe_difference,
    read_image,
    read_label,
    write_label,
)
from automonai.storage.local import sha256_of

ORIENTATIONS = [
    "".join(codes) for pairs in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*pairs)
]


def oriented_affine(codes: str, spacing: tuple[float, float, float] = (1.0, 2.0, 3.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(codes):
        row = next(n for n, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        affine[row, axis] = spacing[axis] * (1 if code in "RAS" else -1)
    affine[:3, 3] = (5, -6, 7)
    return affine


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_an_image_is_read_as_ras_and_a_label_returns_to_its_own_orientation(tmp_path: Path, codes: str) -> None:
    values = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    source, written = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    nib.save(nib.Nifti1Image(values, oriented_affine(codes)), source)
    volume = read_image([source])
    expected = nib.as_closest_canonical(nib.load(source))
    assert np.array_equal(volume.voxels[0], np.asarray(expected.dataobj))
    assert volume.spacing_mm == pytest.approx(expected.header.get_zooms())
    assert volume.geometry.axis_codes == codes
    indices = read_label(source, [0, 1, 2])
    write_label(written, indices, geometry=volume.geometry, label_values=[0, 1, 2])
    again = nib.load(written)
    assert np.array_equal(np.asarray(again.dataobj), values)
    assert np.allclose(again.affine, oriented_affine(codes))
    assert again.get_data_dtype() == np.uint8


def test_an_oblique_affine_returns_unchanged(tmp_path: Path) -> None:
    angle = 0.3
    affine = np.diag([0.8, 0.9, 4.0, 1.0])
    turn = np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (1.25, 2.5, -3.75)
    write_nifti(tmp_path / "a.nii", np.ones((3, 4, 5), np.int16), affine)
    volume = read_image([tmp_path / "a.nii"])
    assert volume.spacing_mm == pytest.approx((0.8, 0.9, 4.0))
    write_label(tmp_path / "b.nii", np.zeros((3, 4, 5), np.uint8), geometry=volume.geometry, label_values=[0, 1])
    assert np.allclose(nib.load(tmp_path / "b.nii").affine, affine, atol=1e-5)


def nearly_diagonal(apart: float) -> np.ndarray:
    """Return an affine that is turned by 45 degrees but for a little, so that x and y are nearly equals."""
    angle = np.pi / 4 + apart
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine


def test_files_on_one_grid_get_the_same_axes_though_their_affines_differ_in_the_last_digits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    for name, apart in [("image", 1e-6), ("other", -1e-6)]:
        write_nifti(tmp_path / f"{name}.nii", values, nearly_diagonal(apart))
    image, other = (read_image([tmp_path / f"{name}.nii"]) for name in ("image", "other"))
    assert image.voxels.shape != other.voxels.shape  # on its own, each is as near to RAS as can be
    assert describe_difference(image.geometry, other.geometry) is None
    assert np.array_equal(along_axes_of(image, other).voxels, image.voxels)
    assert np.array_equal(read_label(tmp_path / "other.nii", [0, 1, 2], image=image), image.voxels[0])
    both = read_image([tmp_path / "image.nii", tmp_path / "other.nii"])
    assert np.array_equal(both.voxels[0], both.voxels[1])


def test_a_label_on_another_grid_than_its_image_is_refused(tmp_path: Path) -> None:
    for name, shape in [("image", (4, 5, 6)), ("label", (4, 5, 7))]:
        write_nifti(tmp_path / f"{name}.nii", np.ones(shape, np.uint8), np.eye(4))
    image = read_image([tmp_path / "image.nii"])
    with pytest.raises(DatasetError, match="label.nii: does not lie on the grid of its image: it has shape 4x5x7"):
        read_label(tmp_path / "label.nii", [0, 1], image=image)


FORMS = ("qform_code", "sform_code", "pixdim", "quatern_b", "quatern_c", "quatern_d", "srow_x", "srow_y", "srow_z")
TURNED = np.array([[0.96, -0.28, 0, -10], [0.28, 0.96, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]])


def with_forms(path: Path, sform_code: int, qform_code: int) -> None:
    """Write an image whose forms differ: in a template's space, and as the scanner had it."""
    image = nib.Nifti1Image(np.arange(60, dtype=np.uint8).reshape(3, 4, 5), None)
    image.set_qform(TURNED, code=qform_code)
    image.set_sform(oriented_affine("LPS", (1, 1, 2)), code=sform_code)
    nib.save(image, path)


@pytest.mark.parametrize(("sform_code", "qform_code"), [(4, 1), (2, 0), (0, 1), (0, 0), (1, 1)])
def test_a_label_map_has_both_forms_of_its_image_with_their_codes(
    tmp_path: Path, sform_code: int, qform_code: int
) -> None:
    with_forms(tmp_path / "image.nii", sform_code, qform_code)
    volume = read_image([tmp_path / "image.nii"])
    indices = np.zeros(volume.voxels.shape[1:], np.uint8)
    write_label(tmp_path / "label.nii", indices, geometry=volume.geometry, label_values=[0, 1])
    image, label = (nib.load(tmp_path / name).header for name in ("image.nii", "label.nii"))
    for field in FORMS:
        assert image[field].ravel()[:4].tolist() == label[field].ravel()[:4].tolist(), field


@pytest.mark.parametrize("has_its_own", [True, False])
def test_a_label_that_was_drawn_by_the_other_form_of_its_image_lies_on_its_grid(
    tmp_path: Path, has_its_own: bool
) -> None:
    with_forms(tmp_path / "image.nii", 4, 1)
    stored = np.asarray(nib.load(tmp_path / "image.nii").dataobj)
    apart = TURNED + (np.zeros((4, 4)) if has_its_own else np.diag([0, 0, 0.2, 0]))
    write_nifti(tmp_path / "label.nii", stored, apart)
    image = read_image([tmp_path / "image.nii"])
    if not has_its_own:
        with pytest.raises(DatasetError, match="does not lie on the grid of its image"):
            read_label(tmp_path / "label.nii", range(60), image=image)
        return
    assert np.array_equal(read_label(tmp_path / "label.nii", range(60), image=image), image.voxels[0])


def test_a_second_form_that_both_share_does_not_outweigh_first_ones_that_differ(tmp_path: Path) -> None:
    for name, moved in (("image.nii", 0.0), ("label.nii", 35.0)):
        image = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), None)
        image.set_qform(np.eye(4), code=1)
        affine = oriented_affine("LPS", (1, 1, 2))
        affine[0, 3] += moved
        image.set_sform(affine, code=2)
        nib.save(image, tmp_path / name)
    with pytest.raises(DatasetError, match="does not lie on the grid of its image"):
        read_label(tmp_path / "label.nii", [0, 1], image=read_image([tmp_path / "image.nii"]))


def test_a_form_of_a_code_that_nobody_knows_is_kept_as_well(tmp_path: Path) -> None:
    with_forms(tmp_path / "image.nii", 4, 0)
    content = bytearray((tmp_path / "image.nii").read_bytes())
    content[254:256] = (7).to_bytes(2, "little")  # sform_code
    (tmp_path / "image.nii").write_bytes(content)
    volume = read_image([tmp_path / "image.nii"])
    indices = np.zeros(volume.voxels.shape[1:], np.uint8)
    write_label(tmp_path / "label.nii", indices, geometry=volume.geometry, label_values=[0, 1])
    label = read_image([tmp_path / "label.nii"])
    assert np.allclose(label.geometry.affine, volume.geometry.affine)


def test_a_rotation_without_a_sign_has_the_standards(tmp_path: Path) -> None:
    with_forms(tmp_path / "image.nii", 0, 1)
    expected = read_image([tmp_path / "image.nii"]).geometry.affine
    content = bytearray((tmp_path / "image.nii").read_bytes())
    content[76:80] = bytes(4)  # pixdim[0]
    (tmp_path / "image.nii").write_bytes(content)
    assert np.array_equal(read_image([tmp_path / "image.nii"]).geometry.affine, expected)


@pytest.mark.parametrize(("unit", "size_mm"), [("meter", 1e3), ("mm", 1.0), ("micron", 1e-3), ("unknown", 1.0)])
@pytest.mark.parametrize("has_sform", [True, False])
def test_lengths_are_read_in_the_files_unit_and_label_maps_are_written_in_it(
    tmp_path: Path, unit: str, size_mm: float, has_sform: bool
) -> None:
    affine = oriented_affine("LPS", (0.7 / size_mm, 0.8 / size_mm, 2.1 / size_mm))
    affine[:3, 3] = np.array([5, -6, 7.3]) / size_mm
    image = nib.Nifti1Image(np.ones((3, 4, 5), np.uint8), affine if has_sform else None)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "image.nii")
    volume = read_image([tmp_path / "image.nii"])
    assert volume.spacing_mm == pytest.approx((0.7, 0.8, 2.1))
    assert volume.geometry.affine[:3, 3] == pytest.approx([5, -6, 7.3])
    write_label(tmp_path / "label.nii", volume.voxels[0], geometry=volume.geometry, label_values=[0, 1])
    written, stored = nib.load(tmp_path / "label.nii"), nib.load(tmp_path / "image.nii")
    assert written.header.get_xyzt_units()[0] == unit
    np.testing.assert_allclose(written.affine, stored.affine, rtol=1e-6)
    np.testing.assert_allclose(written.get_qform(), stored.get_qform(), rtol=1e-5, atol=1e-6 / size_mm)


def test_a_unit_that_there_is_not_is_taken_for_mm(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(_patched(_valid(tmp_path), 123, "u1", 7))
    assert read_image([tmp_path / "a.nii"]).spacing_mm == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("types", "joined"),
    [((np.int16, np.int16), np.int16), ((np.uint8, np.int16), np.int16), ((np.int32, np.float32), np.float32)],
)
def test_channels_of_several_types_take_no_more_than_single_precision(
    tmp_path: Path, types: tuple[type, type], joined: type
) -> None:
    paths = [tmp_path / "0.nii", tmp_path / "1.nii"]
    for path, dtype in zip(paths, types, strict=True):
        write_nifti(path, np.arange(60).reshape(3, 4, 5).astype(dtype), np.eye(4))
    voxels = read_image(paths).voxels
    assert voxels.dtype == joined
    assert np.array_equal(voxels[1], np.arange(60).reshape(3, 4, 5))


def test_integers_stay_as_stored_and_floats_become_single_precision(tmp_path: Path) -> None:
    for dtype, kept in [(np.int16, np.int16), (np.uint8, np.uint8), (np.float64, np.float32), (np.int64, np.float32)]:
        image = nib.Nifti1Image(np.arange(60).reshape(3, 4, 5).astype(dtype), np.eye(4), dtype=dtype)
        nib.save(image, tmp_path / "a.nii.gz")
        assert read_image([tmp_path / "a.nii.gz"]).voxels.dtype == kept


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(60).reshape(3, 4, 5).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = np.array([0.5, 10], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    expected = np.asarray(nib.load(tmp_path / "a.nii").dataobj)
    assert np.allclose(read_image([tmp_path / "a.nii"]).voxels[0], expected)


def test_big_endian_and_nifti2_files_are_read(tmp_path: Path) -> None:
    values = np.arange(60).reshape(3, 4, 5).astype(np.int16)
    big = nib.Nifti1Image(values, np.eye(4), header=nib.Nifti1Header(endianness=">"))
    big.set_data_dtype(np.dtype(">i2"))
    nib.save(big, tmp_path / "big.nii")
    nib.save(nib.Nifti2Image(values, np.eye(4)), tmp_path / "two.nii")
    for name in ("big.nii", "two.nii"):
        assert np.array_equal(read_image([tmp_path / name]).voxels[0], values)


def test_channels_come_from_the_fourth_axis_or_from_several_files(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 99, (3, 4, 5, 2)).astype(np.int16)
    write_nifti(tmp_path / "both.nii.gz", values, oriented_affine("LPS"))
    for channel in range(2):
        write_nifti(tmp_path / f"{channel}.nii.gz", values[..., channel], oriented_affine("LPS"))
    both = read_image([tmp_path / "both.nii.gz"])
    separate = read_image([tmp_path / "0.nii.gz", tmp_path / "1.nii.gz"])
    assert both.voxels.shape == (2, 3, 4, 5)
    assert np.array_equal(both.voxels, separate.voxels)
    assert channel_count(tmp_path / "both.nii.gz") == 2


def test_channels_on_different_grids_are_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "0.nii", np.ones((3, 4, 5), np.int16), np.eye(4))
    write_nifti(tmp_path / "1.nii", np.ones((3, 4, 6), np.int16), np.eye(4))
    with pytest.raises(DatasetError, match="1.nii: its grid differs .* shape 3x4x6 instead of 3x4x5"):
        read_image([tmp_path / "0.nii", tmp_path / "1.nii"])


def test_grids_agree_up_to_a_tenth_of_a_voxel(tmp_path: Path) -> None:
    for name, shift in [("a", 0.0), ("b", 0.05), ("c", 0.2)]:
        affine = np.eye(4)
        affine[0, 3] = shift
        write_nifti(tmp_path / f"{name}.nii", np.ones((3, 4, 5), np.int16), affine)
    a, b, c = (read_image([tmp_path / f"{name}.nii"]).geometry for name in "abc")
    assert describe_difference(a, b) is None
    assert "affine" in str(describe_difference(a, c))


def test_labels_stored_as_floats_become_class_indices(tmp_path: Path) -> None:
    values = np.zeros((3, 4, 5), np.float32)
    values[0], values[1] = 1.0002, 4
    write_nifti(tmp_path / "a.nii", values, np.eye(4))
    indices = read_label(tmp_path / "a.nii", [0, 1, 4])
    assert indices.dtype == np.uint8
    assert (np.unique(indices[0]), np.unique(indices[1])) == (1, 2)


def test_label_values_that_are_unexpected_or_broken_are_counted(tmp_path: Path) -> None:
    values = np.zeros((3, 4, 5), np.float32)
    values[0, 0, :3], values[0, 1, :2], values[0, 2, 0], values[0, 3, 0] = 7, 0.5, np.nan, -1
    write_nifti(tmp_path / "a.nii", values, np.eye(4))
    with pytest.raises(DatasetError) as caught:
        read_label(tmp_path / "a.nii", [0, 1])
    assert "unexpected label value -1 (1 voxels), 7 (3 voxels); expected 0, 1" in caught.value.problems[0]
    assert "3 label voxels are NaN, infinite or no whole number" in caught.value.problems[1]


def test_a_label_map_has_the_smallest_integer_type_for_its_values(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", np.ones((3, 4, 5), np.int16), np.eye(4))
    geometry = read_image([tmp_path / "a.nii"]).geometry
    for values, dtype in [([0, 255], np.uint8), ([0, 256], np.int16), ([0, 40000], np.int32)]:
        indices = np.ones((3, 4, 5), np.uint8)
        write_label(tmp_path / "b.nii.gz", indices, geometry=geometry, label_values=values)
        written = nib.load(tmp_path / "b.nii.gz")
        assert written.get_data_dtype() == dtype
        assert np.unique(np.asarray(written.dataobj)) == values[1]


def _valid(tmp_path: Path) -> bytes:
    write_nifti(tmp_path / "valid.nii", np.arange(60).reshape(3, 4, 5).astype(np.int16), np.eye(4))
    return (tmp_path / "valid.nii").read_bytes()


def _patched(content: bytes, offset: int, dtype: str, value: float) -> bytes:
    patch = np.array([value], dtype).tobytes()
    return content[:offset] + patch + content[offset + len(patch) :]


BROKEN = {
    "empty": (lambda raw: b"", "is no NIfTI image: the file is empty"),
    "garbage": (lambda raw: b"what is this" * 100, "does not start with a NIfTI header"),
    "cut in the header": (lambda raw: raw[:200], "cut off within its header"),
    "cut in the values": (lambda raw: raw[:-10], "is cut off"),
    "petabytes": (lambda raw: _patched(_patched(raw, 42, "<i2", 32767), 44, "<i2", 32767), "is cut off"),
    "negative side": (lambda raw: _patched(raw, 42, "<i2", -5), "header is invalid: dimensions"),
    "no dimensions": (lambda raw: _patched(raw, 40, "<i2", 2), "header is invalid: dimensions"),
    "unknown type": (lambda raw: _patched(raw, 70, "<i2", 999), "header is invalid"),
    "complex": (lambda raw: _patched(raw, 70, "<i2", 32), "header is invalid: data type"),
    "offset not a number": (lambda raw: _patched(raw, 108, "<f4", np.nan), "header is invalid"),
    "negative offset": (lambda raw: _patched(raw, 108, "<f4", -100), "header is invalid: data offset -100"),
    "offset of nothing": (lambda raw: _patched(raw, 108, "<f4", 0), "data offset 0; .* byte 352 or later"),
    "offset in the header": (lambda raw: _patched(raw, 108, "<f4", 351), "data offset 351; .* byte 352 or later"),
    "offset in a header of NIfTI-2": (
        lambda raw: _patched(nib.Nifti2Image(np.ones((3, 4, 5), np.int16), np.eye(4)).to_bytes(), 168, "<i8", 352),
        "data offset 352; .* byte 544 or later",
    ),
    "magic": (lambda raw: _patched(raw, 344, "<i4", 0), "magic number"),
    "singular affine": (lambda raw: _patched(raw, 280, "<f4", 0), "affine is singular"),
    "affine not a number": (lambda raw: _patched(raw, 280, "<f4", np.nan), "affine is not finite"),
    "huge voxels": (lambda raw: _patched(raw, 280, "<f4", 1e9), "voxel sizes of 1e\\+09"),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("compress", [False, True])
def test_a_broken_file_is_named_with_its_fault(tmp_path: Path, fault: str, compress: bool) -> None:
    spoil, message = BROKEN[fault]
    content = spoil(_valid(tmp_path))
    path = tmp_path / ("broken.nii.gz" if compress else "broken.nii")
    path.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(DatasetError, match=f"{path.name}: .*{message}"):
        read_image([path])


def test_a_damaged_gzip_file_is_found_by_its_checksum(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(_valid(tmp_path)))
    content[-6] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(DatasetError, match="compressed file is damaged"):
        read_image([tmp_path / "a.nii.gz"])
    (tmp_path / "a.nii.gz").write_bytes(content[:-20])
    with pytest.raises(DatasetError, match="compressed file is cut off"):
        read_image([tmp_path / "a.nii.gz"])


def test_what_is_no_file_or_has_no_known_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.nii").mkdir()
    for name, message in [("a.nii", "no such file"), ("folder.nii", "not a regular"), ("a.txt", "unknown file ending")]:
        with pytest.raises(DatasetError, match=message):
            read_image([tmp_path / name])


def test_a_format_that_needs_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mha").write_bytes(b"ObjectType = Image")
    monkeypatch.setitem(sys.modules, "itk", None)
    with pytest.raises(DatasetError, match=r"pip install '\.\[formats\]'"):
        read_image([tmp_path / "a.mha"])


def write_itk(path: Path, values: NDArray, *, compression: bool = False) -> None:
    itk = pytest.importorskip("itk", reason="the formats extra is not installed")
    itk.imwrite(itk.GetImageFromArray(values, is_vector=False), str(path), compression=compression)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "holder"), [("a.mha", "a.mha"), ("a.mhd", "a.zraw"), ("a.nrrd", "a.nrrd")])
@pytest.mark.parametrize("damage", ["flipped", "zeroed", "cut off"])
def test_packed_voxels_are_read_to_their_checksum(tmp_path: Path, name: str, holder: str, damage: str) -> None:
    values = np.random.default_rng(0).integers(1, 1000, (20, 24, 28)).astype(np.int16)
    write_itk(tmp_path / name, values, compression=True)
    assert np.sort(read_image([tmp_path / name]).voxels.ravel()).tolist() == np.sort(values.ravel()).tolist()
    content = bytearray((tmp_path / holder).read_bytes())
    half = len(content) // 2
    if damage == "flipped":
        content[half] ^= 0x55
    elif damage == "zeroed":
        content[half:] = bytes(len(content) - half)
    else:
        del content[-100:]
    (tmp_path / holder).write_bytes(content)
    with pytest.raises(DatasetError, match=f"{holder}: its compressed voxels are (damaged|cut off)"):
        read_image([tmp_path / name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["a.mhd", "a.nrrd"])
def test_voxels_in_another_file_count_for_what_an_image_holds(tmp_path: Path, name: str) -> None:
    write_itk(tmp_path / name, np.zeros((3, 4, 5), np.uint8))
    if name == "a.nrrd":
        header, _, voxels = (tmp_path / name).read_bytes().partition(b"\n\n")
        (tmp_path / name).write_bytes(header + b"\ndata file: a.raw\n")
        (tmp_path / "a.raw").write_bytes(voxels)
    before = file_digest(tmp_path / name, sha256_of)
    (tmp_path / "a.raw").write_bytes(bytes(59) + b"\1")
    assert read_image([tmp_path / name]).voxels.sum() == 1
    assert file_digest(tmp_path / name, sha256_of) != before


def test_voxels_in_several_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mhd").write_text("NDims = 3\nDimSize = 3 4 5\nElementDataFile = slice%03d.raw 1 5 1\n")
    with pytest.raises(DatasetError, match="its voxels lie in several files"):
        file_digest(tmp_path / "a.mhd", sha256_of)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_file_whose_header_cannot_be_read_is_named(tmp_path: Path) -> None:
    pytest.importorskip("itk", reason="the formats extra is not installed")
    (tmp_path / "a.nrrd").write_text("NRRD0004\ntype uchar\n\n")
    with pytest.raises(DatasetError, match=r"a\.nrrd: cannot be read"):
        channel_count(tmp_path / "a.nrrd")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_channels_along_a_fourth_axis_are_counted_by_the_header(tmp_path: Path, ending: str) -> None:
    write_itk(tmp_path / f"one{ending}", np.zeros((3, 4, 5), np.uint8))
    write_itk(tmp_path / f"two{ending}", np.zeros((2, 3, 4, 5), np.uint8))
    assert [channel_count(tmp_path / f"{name}{ending}") for name in ("one", "two")] == [1, 2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_itk_formats_hold_what_nifti_holds(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("itk", reason="the formats extra is not installed")
    values = np.random.default_rng(0).integers(0, 2, (4, 5, 6)).astype(np.uint8)
    write_nifti(tmp_path / "a.nii.gz", values, oriented_affine("LSA"))
    volume = read_image([tmp_path / "a.nii.gz"])
    write_label(tmp_path / f"b{ending}", volume.voxels[0], geometry=volume.geometry, label_values=[0, 1])
    again = read_image([tmp_path / f"b{ending}"])
    assert np.array_equal(again.voxels, volume.voxels)
    assert again.spacing_mm == pytest.approx(volume.spacing_mm)
    assert np.allclose(again.geometry.affine, volume.geometry.affine)
    assert again.voxels.dtype == np.uint8
    (tmp_path / f"bad{ending}").write_bytes(b"garbage")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_image([tmp_path / f"bad{ending}"])


COMPOUND = {
    "rgb.mha": "NDims = 3\nDimSize = 3 4 5\nElementNumberOfChannels = 3\nElementType = MET_UCHAR\n",
    "complex.mha": "NDims = 3\nDimSize = 3 4 5\nElementNumberOfChannels = 2\nElementType = MET_FLOAT\n",
    "complex.nrrd": "type: float\ndimension: 4\nsizes: 2 3 4 5\nkinds: complex domain domain domain\n",
    "rgb.nrrd": "type: uchar\ndimension: 4\nsizes: 3 3 4 5\nkinds: RGB-color domain domain domain\n",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COMPOUND)
def test_colours_and_complex_numbers_are_refused_with_what_was_expected(tmp_path: Path, name: str) -> None:
    pytest.importorskip("itk", reason="the formats extra is not installed")
    is_nrrd = name.endswith(".nrrd")
    start = "NRRD0004\n" if is_nrrd else "ObjectType = Image\nBinaryData = True\n"
    end = "endian: little\nencoding: raw\n\n" if is_nrrd else "ElementDataFile = LOCAL\n"
    (tmp_path / name).write_bytes((start + COMPOUND[name] + end).encode() + bytes(4 * 3 * 3 * 4 * 5))
    with pytest.raises(DatasetError, match=f"{name}: each voxel is a [a-z]+ of [23] numbers, .* expected one number"):
        read_image([tmp_path / name])
