from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from automonai.errors import SpecError
from automonai.imaging.checking import check_dataset
from automonai.imaging.phantom import write_phantom
from automonai.imaging.reading import read_image, read_label


def test_a_phantom_passes_the_check_and_cropping_it_pays(tmp_path: Path) -> None:
    write_phantom(tmp_path, cases=5, channels=2, classes=3)
    checked = check_dataset(tmp_path)
    facts = list(checked.facts.values())
    assert len(facts) == 5
    assert checked.dataset.channels == ("contrast 1", "contrast 2")
    assert list(checked.dataset.labels) == [0, 1, 2, 3]
    assert len({case.shape_voxels for case in facts}) > 1
    assert len({case.spacing_mm for case in facts}) == 5
    assert all(case.spacing_mm[2] > 1.2 * case.spacing_mm[0] for case in facts)
    assert all(np.prod(case.box_shape) < 0.8 * np.prod(case.shape_voxels) for case in facts)
    assert all(voxels > 0 for case in facts for voxels in case.class_voxels.values())
    codes = {nib.aff2axcodes(nib.load(path).affine) for path in (tmp_path / "imagesTr").iterdir()}
    assert len(codes) > 1


def test_the_same_seed_gives_the_same_files_and_another_one_does_not(tmp_path: Path) -> None:
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        write_phantom(tmp_path / name, cases=2, seed=seed, shape=(20, 18, 16))
    contents = {name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.nii.gz"))] for name in "abc"}
    assert contents["a"] == contents["b"] != contents["c"]


def test_the_first_case_has_the_shape_that_was_asked_for_and_none_is_larger(tmp_path: Path) -> None:
    write_phantom(tmp_path, cases=4, shape=(30, 26, 20))
    shapes = [case.shape_voxels for case in check_dataset(tmp_path).facts.values()]
    assert shapes[0] == (30, 26, 20)
    assert np.max(shapes, axis=0).tolist() == [30, 26, 20]


def test_intensity_alone_does_not_find_the_organ(tmp_path: Path) -> None:
    write_phantom(tmp_path, cases=1)
    image = read_image([tmp_path / "imagesTr/phantom_001.nii.gz"]).voxels[0]
    label = read_label(tmp_path / "labelsTr/phantom_001.nii.gz", [0, 1, 2])
    inside, outside = image[label == 1], image[(label == 0) & (image > 0)]
    low, high = np.percentile(inside, (10, 90))
    assert ((outside > low) & (outside < high)).sum() > 3 * len(inside)


def test_a_phantom_out_of_range_is_refused(tmp_path: Path) -> None:
    for settings in ({"shape": (8, 20, 20)}, {"cases": 0}, {"channels": 0}, {"classes": 9}):
        with pytest.raises(SpecError, match="phantom"):
            write_phantom(tmp_path, **settings)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
