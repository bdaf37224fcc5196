from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from automonai.domain.dataset import Case, Dataset
from automonai.errors import DatasetError
from automonai.imaging import checking
from automonai.imaging.checking import check_dataset
from automonai.imaging.fingerprinting import fingerprint
from automonai.imaging.nifti import write_nifti


def problems(root: Path) -> tuple[str, ...]:
    with pytest.raises(DatasetError) as caught:
        check_dataset(root)
    return caught.value.problems


def test_a_sound_dataset_gives_the_facts_of_every_case(small_dataset: Callable) -> None:
    data = small_dataset()
    told: list[tuple[int, int]] = []
    checked = check_dataset(data.root, progress=lambda done, total: told.append((done, total)))
    facts = checked.facts["case_1"]
    assert list(checked.facts) == ["case_0", "case_1", "case_2"]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert facts.shape_voxels == facts.box_shape == (9, 8, 7)
    assert facts.spacing_mm == pytest.approx((1.0, 1.5, 2.0))
    assert facts.class_voxels == {0: 9 * 8 * 7 - 48, 1: 44, 3: 4}
    values = np.asarray(nib.load(data.image(1)).dataobj)
    assert facts.channels[0].mean == pytest.approx(values.mean(), rel=1e-5)
    assert facts.channels[0].std == pytest.approx(values.std(), rel=1e-5)


def spoil_nan(data) -> None:  # type: ignore[no-untyped-def]
    values = np.random.default_rng(9).normal(size=(9, 8, 7)).astype(np.float32)
    values[0, 0, :2] = (np.nan, np.inf)
    data.write_image(1, values)


def spoil_value(data) -> None:  # type: ignore[no-untyped-def]
    values = np.ones((9, 8, 7), np.uint8)
    values[0, 0, :5] = 2
    data.write_label(1, values)


def spoil_truncate(data) -> None:  # type: ignore[no-untyped-def]
    data.image(1).write_bytes(data.image(1).read_bytes()[:-100])


def spoil_singular(data) -> None:  # type: ignore[no-untyped-def]
    raw = bytearray(nib.Nifti1Image(np.ones((9, 8, 7), np.int16), np.eye(4)).to_bytes())
    raw[280:328] = bytes(48)
    raw[252:256] = b"\0\0\1\0"
    data.label(1).write_bytes(raw)


FAULTS = {
    "missing image": (lambda d: d.image(1).unlink(), "case_1.nii.gz: no such file"),
    "missing label": (lambda d: d.label(1).unlink(), "labelsTr/case_1.nii.gz: no such file"),
    "truncated": (spoil_truncate, "cut off"),
    "shape": (lambda d: d.write_label(1, np.ones((9, 8, 6), np.uint8)), "shape 9x8x6 instead of 9x8x7"),
    "affine": (lambda d: d.write_label(1, np.ones((9, 8, 7), np.uint8), np.eye(4)), "the label has affine"),
    "value": (spoil_value, "unexpected label value 2 \\(5 voxels\\); expected 0, 1, 3"),
    "nan": (spoil_nan, "channel m0 has 2 voxels that are NaN or infinite"),
    "constant": (lambda d: d.write_image(1, np.full((9, 8, 7), 4, np.int16)), "channel m0 is constant: .* is 4"),
    "empty": (lambda d: d.write_label(1, np.zeros((9, 8, 7), np.uint8)), "is empty"),
    "channels": (
        lambda d: d.write_image(1, np.random.default_rng(7).integers(0, 99, (9, 8, 7, 2)).astype(np.int16)),
        "wrong number of channels: has 2, dataset.json names 1",
    ),
    "singular": (spoil_singular, "affine is singular"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_case(small_dataset: Callable, fault: str) -> None:
    data = small_dataset()
    spoil, message = FAULTS[fault]
    spoil(data)
    found = problems(data.root)
    assert len(found) == 1
    assert found[0].startswith("case case_1: ")
    pytest.raises(DatasetError, check_dataset, data.root).match(message)


def test_an_image_under_two_names_is_found_however_it_is_stored(small_dataset: Callable) -> None:
    data = small_dataset()
    image = nib.as_closest_canonical(nib.load(data.image(0)))
    values = np.asarray(image.dataobj)[::-1]
    data.write_image(
        2,
        values.astype(np.float64),
        image.affine @ np.array([[-1, 0, 0, 8], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    )
    assert any("cases case_0, case_2: duplicate case" in problem for problem in problems(data.root))


def test_every_fault_of_every_case_and_of_dataset_json_comes_in_one_pass(small_dataset: Callable) -> None:
    data = small_dataset(cases=4)
    data.image(0).unlink()
    spoil_nan(data)
    data.write_label(2, np.zeros((9, 8, 7), np.uint8))
    data.document["training"] += [{"image": "imagesTr/case_3.nii.gz", "label": "labelsTr/case_3.nii.gz"}]
    data.save()
    found = problems(data.root)
    assert len(found) == 4
    for part in ("case_3 is listed 2 times", "case case_0: ", "case case_1: ", "case case_2: "):
        assert any(part in problem for problem in found)


def test_a_label_is_counted_along_its_images_axes_though_its_own_affine_is_off_by_rounding(tmp_path: Path) -> None:
    for name, apart in [("imagesTr", 1e-6), ("labelsTr", -1e-6)]:
        angle = np.pi / 4 + apart
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        values = np.zeros((7, 9, 8), np.int16)
        values[1:3, 4:8, 2:5] = np.arange(24).reshape(2, 4, 3) + 1 if name == "imagesTr" else 1
        write_nifti(tmp_path / f"{name}/a.nii.gz", values, affine)
    (tmp_path / "dataset.json").write_text(
        '{"modality": {"0": "CT"}, "labels": {"0": "b", "1": "o"},'
        ' "training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]}'
    )
    assert sorted(check_dataset(tmp_path).facts["a"].box_shape) == [2, 3, 4]


def test_nothing_is_written(small_dataset: Callable) -> None:
    data = small_dataset()
    before = sorted((path, path.stat().st_mtime_ns) for path in data.root.rglob("*"))
    check_dataset(data.root)
    assert sorted((path, path.stat().st_mtime_ns) for path in data.root.rglob("*")) == before


def test_background_that_is_not_zero_is_left_out_and_the_box_extends_over_the_label(tmp_path: Path) -> None:
    data = tmp_path / "data"
    generator = np.random.default_rng(0)
    image = np.full((20, 20, 20), -1000, np.int16)
    image[5:10, 6:12, 7:14] = generator.integers(0, 100, (5, 6, 7))
    label = np.zeros((20, 20, 20), np.uint8)
    label[9:13, 8, 8] = 1
    write_nifti(data / "imagesTr/a.nii.gz", image, np.eye(4))
    write_nifti(data / "labelsTr/a.nii.gz", label, np.eye(4))
    (data / "dataset.json").write_text(
        '{"modality": {"0": "CT"}, "labels": {"0": "b", "1": "o"},'
        ' "training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]}'
    )
    facts = check_dataset(data).facts["a"]
    assert (facts.box_start, facts.box_shape) == ((5, 6, 7), (8, 6, 7))
    assert facts.channels[0].minimum >= 0
    assert facts.channels[0].mean == pytest.approx(image[5:10, 6:12, 7:14].mean())


def test_several_readers_find_what_one_finds(small_dataset: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_SMALL_CASE_BYTES", 0)
    data = small_dataset(cases=4)
    told: list[tuple[int, int]] = []
    several = check_dataset(data.root, readers=2, progress=lambda done, total: told.append((done, total)))
    assert several == check_dataset(data.root)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    spoil_nan(data)
    with pytest.raises(DatasetError) as caught:
        check_dataset(data.root, readers=2)
    assert caught.value.problems == problems(data.root)


class Readings:
    """Counts how many cases are read at once, and lets none go on before so many are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, expected: int) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()
        self._together = threading.Barrier(expected)
        check = checking._check_case

        def counted(dataset: Dataset, case: Case) -> object:
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
            self._together.wait(timeout=10)
            findings = check(dataset, case)
            with self._lock:
                self.now -= 1
            return findings

        monkeypatch.setattr(checking, "_check_case", counted)


CASE_BYTES = 64 * 2**20 + 3 * 9 * 8 * 7 * (4 + 1)  # three times a float32 image and its uint8 label


@pytest.mark.parametrize(("memory_bytes", "at_once"), [(None, 4), (2 * CASE_BYTES, 2), (2 * CASE_BYTES - 1, 1), (1, 1)])
def test_so_many_cases_are_read_at_once_as_the_memory_has_room_for(
    small_dataset: Callable, monkeypatch: pytest.MonkeyPatch, memory_bytes: int | None, at_once: int
) -> None:
    root = small_dataset(cases=4).root
    monkeypatch.setattr(checking, "_SMALL_CASE_BYTES", 1000)
    readings = Readings(monkeypatch, expected=at_once)
    check_dataset(root, readers=4, memory_bytes=memory_bytes)
    assert readings.most == at_once


def test_a_name_that_the_system_refuses_is_a_fault_of_its_case(small_dataset: Callable) -> None:
    data = small_dataset(cases=2)
    data.document["training"][1]["image"] = f"imagesTr/{'x' * 300}.nii.gz"
    data.save()
    with pytest.raises(DatasetError, match="x.nii.gz: cannot be read: File name too long"):
        check_dataset(data.root, readers=2)


def test_small_cases_are_read_one_by_one(small_dataset: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = Readings(monkeypatch, expected=1)
    check_dataset(small_dataset(cases=4).root, readers=4)
    assert readings.most == 1


def test_a_check_that_is_interrupted_begins_no_further_case(
    small_dataset: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    interrupted = threading.Event()
    check = checking._check_case

    def noted(dataset: Dataset, case: Case) -> object:
        begun.append(case.id)
        assert len(begun) == 1 or interrupted.wait(timeout=10)
        return check(dataset, case)

    def interrupt(done: int, total: int) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(checking, "_SMALL_CASE_BYTES", 0)
    monkeypatch.setattr(checking, "_check_case", noted)
    with pytest.raises(KeyboardInterrupt):
        check_dataset(small_dataset(cases=40).root, readers=2, progress=interrupt)
    assert len(begun) < 40


def test_the_fingerprint_has_only_the_cases_it_is_given_in_one_order(small_dataset: Callable) -> None:
    checked = check_dataset(small_dataset(cases=4).root)
    found = fingerprint(checked, ["case_3", "case_1"])
    assert [case.id for case in found.cases] == ["case_1", "case_3"]
    with pytest.raises(KeyError):
        fingerprint(checked, ["case_9"])


def test_checking_loads_neither_torch_nor_monai() -> None:
    code = (
        "import sys, automonai.imaging.fingerprinting, automonai.imaging.phantom;"
        "sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif("AUTOMONAI_HIPPOCAMPUS" not in os.environ, reason="AUTOMONAI_HIPPOCAMPUS names no dataset")
def test_the_hippocampus_data_are_sound_and_spoiling_them_is_found(tmp_path: Path) -> None:
    source = Path(os.environ["AUTOMONAI_HIPPOCAMPUS"])
    assert len(check_dataset(source).facts) > 100
    copy = tmp_path / "copy"
    shutil.copytree(source, copy, copy_function=os.symlink)
    victim = sorted((copy / "labelsTr").glob("*.nii.gz"))[7]
    victim.unlink()
    assert len(problems(copy)) == 1
