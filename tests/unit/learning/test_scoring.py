from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automonai.errors import DatasetError, SpecError
from automonai.imaging import reading
from automonai.imaging.reading import Geometry, Volume
from automonai.learning import scoring
from automonai.learning.scoring import (
    LabelScores,
    case_scores,
    evaluate_folders,
    evaluation_csv,
    evaluation_json,
    mask_scores,
    mean_scores,
    write_evaluation,
)

Corner = tuple[int, int, int]


def block(shape: Corner, low: Corner, high: Corner) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def speckle(seed: int) -> np.ndarray:
    """A fifth full, by a rule that needs no random generator."""
    x, y, z = np.indices((6, 5, 7))
    return (x * 7 + y * 5 + z * 3 + seed * x * y + z * z) % 5 == 0


# Dice, robust Hausdorff (95) and surface Dice by DeepMind's surface-distance 0.1 on these very masks.
REFERENCE = [
    pytest.param(
        block((8, 8, 8), (2, 2, 2), (6, 6, 6)),
        block((8, 8, 8), (2, 2, 2), (6, 6, 6)),
        (1.0, 1.0, 1.0),
        1.0,
        (1.0, 0.0, 1.0),
        id="equal",
    ),
    pytest.param(
        block((9, 8, 8), (2, 2, 2), (6, 6, 6)),
        block((9, 8, 8), (4, 2, 2), (8, 6, 6)),
        (1.0, 1.0, 1.0),
        1.0,
        (0.5, 2.0, 0.7616478811941136),
        id="two voxels apart",
    ),
    pytest.param(
        block((9, 8, 8), (2, 2, 2), (6, 6, 6)),
        block((9, 8, 8), (4, 2, 2), (8, 6, 6)),
        (0.5, 1.0, 5.0),
        1.0,
        (0.5, 1.0, 1.0),
        id="exactly at the tolerance",
    ),
    pytest.param(
        block((5, 5, 5), (0, 0, 0), (3, 3, 3)),
        block((5, 5, 5), (0, 0, 0), (5, 5, 5)),
        (1.0, 2.0, 3.0),
        2.0,
        (0.35526315789473684, 6.324555320336759, 0.6192440558476584),
        id="closed at the border",
    ),
    pytest.param(
        block((5, 5, 5), (1, 1, 1), (2, 2, 2)),
        block((5, 5, 5), (3, 3, 3), (4, 4, 4)),
        (0.7, 0.7, 0.7),
        1.4,
        (0.0, 2.424871130596428, 0.125),
        id="single voxels",
    ),
    pytest.param(
        speckle(1), speckle(2), (0.8, 1.0, 2.5), 0.5, (0.5862068965517241, 0.8, 0.9062923441693439), id="ragged"
    ),
]


@pytest.mark.parametrize(("prediction", "label", "spacing_mm", "tolerance_mm", "expected"), REFERENCE)
def test_figures_equal_those_of_the_decathlons_reference(
    prediction: np.ndarray,
    label: np.ndarray,
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
    expected: tuple[float, float, float],
) -> None:
    scores = mask_scores(prediction, label, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    found = (scores.dice, scores.hd95_mm, scores.surface_dice)
    assert found == pytest.approx(expected, abs=1e-7)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 7))
def test_figures_are_symmetric_and_in_their_range(seed: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    one, other = generator.random((2, size, size, size)) < generator.uniform(0.1, 0.9)
    there = mask_scores(one, other, spacing_mm=(1.0, 2.0, 0.5))
    back = mask_scores(other, one, spacing_mm=(1.0, 2.0, 0.5))
    assert there.dice == back.dice
    assert there.hd95_mm == back.hd95_mm
    assert there.surface_dice == pytest.approx(back.surface_dice)
    assert all(value is None or 0 <= value <= 1 for value in (there.dice, there.surface_dice))
    assert there.hd95_mm is None or 0 <= there.hd95_mm <= np.linalg.norm([size, size * 2, size * 0.5])


def test_a_class_that_neither_has_has_no_figure() -> None:
    empty = np.zeros((4, 4, 4), bool)
    assert mask_scores(empty, empty, spacing_mm=(1, 1, 1)) == LabelScores(dice=None, hd95_mm=None, surface_dice=None)


@pytest.mark.parametrize("turned", [False, True])
def test_a_class_that_only_one_has_scores_zero_and_has_no_distance(turned: bool) -> None:
    pair = [np.zeros((4, 4, 4), bool), block((4, 4, 4), (1, 1, 1), (3, 3, 3))]
    prediction, label = reversed(pair) if turned else pair
    assert mask_scores(prediction, label, spacing_mm=(1, 1, 1)) == LabelScores(dice=0.0, hd95_mm=None, surface_dice=0.0)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        case_scores(np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), values=[1], spacing_mm=(1, 1, 1))


def test_means_leave_out_what_has_no_meaning_and_count_it() -> None:
    mean = mean_scores(
        [
            LabelScores(dice=0.5, hd95_mm=2.0, surface_dice=0.5),
            LabelScores(dice=0.0, hd95_mm=None, surface_dice=0.0),
            LabelScores(dice=None, hd95_mm=None, surface_dice=None),
        ]
    )
    assert (mean.dice, mean.hd95_mm, mean.surface_dice) == (0.25, 2.0, 0.25)
    assert mean.undefined.model_dump() == {"dice": 1, "hd95_mm": 2, "surface_dice": 1}


def write(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    nib.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine).to_filename(path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    label = np.zeros((8, 8, 8), np.uint8)
    label[2:6, 2:6, 2:6] = 1
    label[3:5, 3:5, 3:5] = 4
    for name in ("a", "b"):
        write(tmp_path / "predictions" / f"{name}.nii.gz", label)
        write(tmp_path / "labels" / f"{name}.nii.gz", label if name == "a" else (label == 1).astype(np.float32))
    return tmp_path / "predictions", tmp_path / "labels"


def test_folders_are_scored_per_case_and_label_value(folders: tuple[Path, Path]) -> None:
    document = json.loads(evaluation_json(evaluate_folders(*folders)))
    assert set(document) == {"cases", "mean"}
    assert document["cases"]["a"]["4"] == {"dice": 1.0, "hd95_mm": 0.0, "surface_dice": 1.0}
    assert document["cases"]["b"]["4"] == {"dice": 0.0, "hd95_mm": None, "surface_dice": 0.0}
    assert document["mean"]["4"]["dice"] == 0.5
    assert document["mean"]["4"]["undefined"] == {"dice": 0, "hd95_mm": 1, "surface_dice": 0}


def test_csv_has_a_row_per_case_and_label_and_empty_cells_for_no_meaning(folders: tuple[Path, Path]) -> None:
    rows = list(csv.DictReader(evaluation_csv(evaluate_folders(*folders)).splitlines()))
    assert [(row["case"], row["label"]) for row in rows] == [
        (case, label) for case in ("a", "b", "mean") for label in ("1", "4")
    ]
    assert rows[3]["hd95_mm"] == ""


def test_the_ending_decides_how_an_evaluation_is_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluation = evaluate_folders(*folders)
    write_evaluation(evaluation, tmp_path / "scores.csv")
    write_evaluation(evaluation, tmp_path / "scores.json")
    assert (tmp_path / "scores.csv").read_text().startswith("case,label,dice")
    assert "cases" in json.loads((tmp_path / "scores.json").read_text())
    with pytest.raises(SpecError, match=r"\.json or \.csv"):
        write_evaluation(evaluation, tmp_path / "scores.xlsx")


def test_every_prediction_without_a_label_is_named(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    (labels / "a.nii.gz").unlink()
    (labels / "b.nii.gz").unlink()
    with pytest.raises(DatasetError) as caught:
        evaluate_folders(predictions, labels)
    assert len(caught.value.problems) == 2
    assert "a.nii.gz: there is no label" in caught.value.problems[0]
    assert "b.nii.gz: there is no label" in caught.value.problems[1]


def test_labels_without_a_prediction_are_left_out_and_named(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    (predictions / "a.nii.gz").unlink()
    evaluation = evaluate_folders(predictions, labels)
    assert list(evaluation.cases) == ["b"]
    assert evaluation.without_prediction == ("a",)


def test_grids_that_differ_are_refused_by_file(folders: tuple[Path, Path]) -> None:
    predictions, labels = folders
    write(predictions / "a.nii.gz", np.zeros((8, 8, 7), np.uint8))
    write(predictions / "b.nii.gz", np.zeros((8, 8, 8), np.uint8), np.eye(4))
    with pytest.raises(DatasetError) as caught:
        evaluate_folders(predictions, labels)
    assert "a.nii.gz: does not lie on the grid" in caught.value.problems[0]
    assert "b.nii.gz: does not lie on the grid" in caught.value.problems[1]


def test_affines_that_rounding_gives_other_axes_are_scored_along_those_of_the_label(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 2, (8, 7, 6)).astype(np.uint8)
    for folder, apart in [("predictions", 1e-6), ("labels", -1e-6)]:  # from x and y at 45 degrees
        cos, sin = np.cos(np.pi / 4 + apart), np.sin(np.pi / 4 + apart)
        affine = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        write(tmp_path / folder / "a.nii.gz", label, affine)
    evaluation = evaluate_folders(tmp_path / "predictions", tmp_path / "labels")
    assert evaluation.mean[1].dice == 1


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 2.0**31, -(2.0**31)])
def test_values_that_are_no_label_are_refused(folders: tuple[Path, Path], value: float) -> None:
    predictions, labels = folders
    write(predictions / "a.nii.gz", np.full((8, 8, 8), value, np.float32))
    with pytest.raises(DatasetError, match="no whole number"):
        evaluate_folders(predictions, labels)


def test_a_label_map_of_floats_is_read_in_the_memory_of_a_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_SLAB_VOXELS", 64 * 64)
    voxels = np.ones((1, 64, 64, 64), np.float32)
    voxels[0, 3, 2, 1] = 2**20
    volume = Volume(voxels, (1.0, 1.0, 1.0), Geometry(np.eye(4), (64, 64, 64), ".nii.gz"))
    tracemalloc.start()
    label = scoring._label_values(Path("a.nii.gz"), volume)
    held = scoring._held_values(label)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held.tolist() == [1, 2**20]
    assert peak < 1.5 * label.nbytes


@pytest.mark.parametrize("side", [0, 1])
def test_an_image_in_a_label_maps_place_is_refused(folders: tuple[Path, Path], side: int) -> None:
    write(folders[side] / "a.nii.gz", np.arange(8**3, dtype=np.int16).reshape(8, 8, 8))
    with pytest.raises(DatasetError, match=r"a.nii.gz: holds 512 values, as an image does") as caught:
        evaluate_folders(*folders)
    assert str(folders[side]) in str(caught.value)


def test_folders_without_label_maps_and_missing_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no label maps"):
        evaluate_folders(tmp_path, tmp_path)
    with pytest.raises(DatasetError, match="is not a folder"):
        evaluate_folders(tmp_path / "none", tmp_path)


def test_a_negative_tolerance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="tolerance_mm"):
        evaluate_folders(tmp_path, tmp_path, tolerance_mm=-1)
