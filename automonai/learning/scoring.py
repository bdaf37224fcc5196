"""Dice, HD95 and normalised surface Dice, by the Medical Segmentation Decathlon's own definitions.

The Decathlon scores by DeepMind's `surface-distance`: surfaces lie between voxels, each 2 x 2 x 2 neighbourhood carries
the area that marching cubes gives it (MONAI has the table), and the percentile of the distances is weighted by area.
Arrays are (X, Y, Z), spacing in mm in the same order.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from monai.metrics.utils import create_table_neighbour_code_to_surface_area
from scipy.spatial import KDTree

from automonai.domain.fingerprint import Triple
from automonai.domain.records import Record
from automonai.errors import DatasetError, SpecError
from automonai.imaging.reading import (
    ENDINGS,
    Volume,
    along_axes_of,
    describe_difference,
    file_ending,
    read_image,
    slabs,
    stem,
    whole_numbers,
)

DECATHLON_PERCENTILE = 0.95

MOST_LABELS = 256
"""A file that holds more values is an image, given by mistake."""
FIGURES = ("dice", "hd95_mm", "surface_dice")

_ALL_INSIDE = 255


class LabelScores(Record):
    """The three figures of one class in one case; None where one has no meaning."""

    dice: float | None
    """No meaning if neither prediction nor label has the class."""
    hd95_mm: float | None
    """95 % Hausdorff distance; no meaning unless both have the class."""
    surface_dice: float | None
    """No meaning if neither has the class; 0 if only one does."""


class UndefinedCounts(Record):
    """In how many cases each figure has no meaning; the means leave these out."""

    dice: int
    """Neither prediction nor label has the class."""
    hd95_mm: int
    """Not both have it."""
    surface_dice: int
    """Neither has it."""


class MeanScores(LabelScores):
    """The means over the cases where a figure has a meaning; None if there is no such case."""

    undefined: UndefinedCounts


class Evaluation(Record):
    """Every case's scores by label value, and their means."""

    cases: dict[str, dict[int, LabelScores]]
    """By case, then by label value."""
    mean: dict[int, MeanScores]
    """By label value."""
    without_prediction: tuple[str, ...] = ()
    """Labels that nothing was predicted for: they are no part of the means."""


def dice(prediction: np.ndarray, label: np.ndarray) -> float | None:
    """Return the Dice coefficient of two boolean masks; None if both are empty."""
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(label))
    if not total:
        return None
    return 2 * int(np.count_nonzero(prediction & label)) / total


def case_scores(
    prediction: np.ndarray,
    label: np.ndarray,
    *,
    values: Iterable[int],
    spacing_mm: Triple,
    tolerance_mm: float = 1.0,
) -> dict[int, LabelScores]:
    """Score one case.

    Args:
        prediction: (X, Y, Z) integers.
        label: As `prediction`, on the same grid.
        values: What to score, as it stands in the arrays (label values or class indices alike).
        spacing_mm: Of both.
        tolerance_mm: Surface elements this close to the other surface count as correct.

    Raises:
        ValueError: If the shapes differ.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"prediction {prediction.shape} and label {label.shape} must have one shape")
    return {
        value: mask_scores(prediction == value, label == value, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
        for value in values
    }


def mask_scores(
    prediction: np.ndarray, label: np.ndarray, *, spacing_mm: Triple, tolerance_mm: float = 1.0
) -> LabelScores:
    """Score two boolean masks (X, Y, Z); both surfaces close at the volume's border, as in the reference.

    The memory is a few bytes a voxel of the box around both masks, and some 200 bytes a surface element.
    """
    overlap = dice(prediction, label)
    if overlap is None:
        return LabelScores(dice=None, hd95_mm=None, surface_dice=None)
    if not prediction.any() or not label.any():
        return LabelScores(dice=0.0, hd95_mm=None, surface_dice=0.0)
    box = _box(prediction | label)
    areas = _areas(spacing_mm)
    codes = [_neighbour_codes(mask[box]) for mask in (prediction, label)]
    points = [np.argwhere((code != 0) & (code != _ALL_INSIDE)) for code in codes]
    weights = [areas[code[tuple(found.T)]] for code, found in zip(codes, points, strict=True)]
    there = _distances(points[0], points[1], spacing_mm)
    back = _distances(points[1], points[0], spacing_mm)
    near = sum(
        float(weight[distance <= tolerance_mm].sum()) for distance, weight in zip((there, back), weights, strict=True)
    )
    return LabelScores(
        dice=overlap,
        hd95_mm=max(_percentile(there, weights[0]), _percentile(back, weights[1])),
        surface_dice=near / float(weights[0].sum() + weights[1].sum()),
    )


def mean_scores(scores: Sequence[LabelScores]) -> MeanScores:
    """Return the mean of each figure over the cases where it has a meaning, and how many it has none in."""
    means: dict[str, float | None] = {}
    missing: dict[str, int] = {}
    for figure in FIGURES:
        known = [value for score in scores if (value := getattr(score, figure)) is not None]
        means[figure] = fmean(known) if known else None
        missing[figure] = len(scores) - len(known)
    return MeanScores(
        dice=means["dice"],
        hd95_mm=means["hd95_mm"],
        surface_dice=means["surface_dice"],
        undefined=UndefinedCounts(**missing),
    )


def evaluate_folders(predictions: str | Path, labels: str | Path, *, tolerance_mm: float = 1.0) -> Evaluation:
    """Score every label map of one folder against the one of the same name in another.

    The label values are all non-zero ones that occur in the labels; a value that only predictions have is scored too.
    The labels may be more than the predictions, as when a few cases of a dataset were predicted; the others are named.

    Raises:
        DatasetError: If a prediction has no label, a file cannot be read, or the two differ in shape or affine: all at
            once.
        SpecError: If the tolerance is negative.
    """
    if not tolerance_mm >= 0:
        raise SpecError(f"tolerance_mm must be 0 or more, not {tolerance_mm}")
    pairs, without_prediction = _pairs(Path(predictions), Path(labels))
    present: dict[str, dict[int, LabelScores]] = {}
    problems: list[str] = []
    for name, (prediction, label) in pairs.items():
        try:
            present[name] = _file_scores(prediction, label, tolerance_mm)
        except DatasetError as error:
            problems.extend(error.problems)
    if problems:
        raise DatasetError(problems)
    values = sorted({value for scores in present.values() for value in scores})
    absent = LabelScores(dice=None, hd95_mm=None, surface_dice=None)
    cases = {name: {value: scores.get(value, absent) for value in values} for name, scores in present.items()}
    return Evaluation(
        cases=cases,
        without_prediction=without_prediction,
        mean={value: mean_scores([scores[value] for scores in cases.values()]) for value in values},
    )


def evaluation_json(evaluation: Evaluation) -> str:
    """Return an evaluation as JSON: `cases` and `mean` by label value, null where a figure has no meaning.

    `without_prediction` is there only if a label was left out.
    """
    left_out = None if evaluation.without_prediction else {"without_prediction"}
    return json.dumps(evaluation.model_dump(mode="json", exclude=left_out), indent=2, allow_nan=False) + "\n"


def evaluation_csv(evaluation: Evaluation) -> str:
    """Return an evaluation as CSV: a row per case and label, the means last as `mean`; empty: no meaning."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", "label", *FIGURES))
    rows = [(name, value, score) for name, scores in evaluation.cases.items() for value, score in scores.items()]
    rows += [("mean", value, score) for value, score in evaluation.mean.items()]
    for name, value, score in rows:
        writer.writerow((name, value, *(getattr(score, figure) for figure in FIGURES)))
    return text.getvalue()


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as the path's ending says.

    Raises:
        SpecError: If the ending is neither .json nor .csv.
    """
    writers = {".json": evaluation_json, ".csv": evaluation_csv}
    if path.suffix.lower() not in writers:
        raise SpecError(f"{path}: an evaluation is written as .json or .csv, not as '{path.suffix}'")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(writers[path.suffix.lower()](evaluation), encoding="utf-8")


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(box)


def _areas(spacing_mm: Triple) -> np.ndarray:
    """Return the surface area in mm2 of each of the 256 neighbourhoods."""
    table, _ = create_table_neighbour_code_to_surface_area(spacing_mm)
    return table.numpy().astype(np.float64)


def _neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """Return the code of each corner between voxels: bit 7 is the neighbour of lowest x, y, z, bit 0 of highest."""
    padded = np.pad(mask, 1)
    codes = np.zeros([side + 1 for side in mask.shape], np.uint8)
    for bit in range(8):
        offsets = [1 - (bit >> shift & 1) for shift in (2, 1, 0)]
        corner = tuple(slice(offset, offset + side + 1) for offset, side in zip(offsets, mask.shape, strict=True))
        codes |= padded[corner].astype(np.uint8) << np.uint8(bit)
    return codes


def _distances(points: np.ndarray, others: np.ndarray, spacing_mm: Triple) -> np.ndarray:
    """Return the distance in mm from each point to the nearest of the others.

    The nearest is looked up in a tree: a distance transform needs some 30 bytes for each voxel of the box. Distances
    are computed again from whole differences, so that one exactly at the tolerance is not lost to rounding.
    """
    spacing = np.asarray(spacing_mm)
    nearest = KDTree(others * spacing, balanced_tree=False, compact_nodes=False).query(points * spacing)[1]
    return np.sqrt((((points - others[nearest]) * spacing) ** 2).sum(axis=1))


def _percentile(distances: np.ndarray, areas: np.ndarray) -> float:
    order = np.lexsort((areas, distances))
    share = np.cumsum(areas[order]) / areas.sum()
    position = min(int(np.searchsorted(share, DECATHLON_PERCENTILE)), len(order) - 1)
    return float(distances[order][position])


def _pairs(predictions: Path, labels: Path) -> tuple[dict[str, tuple[Path, Path]], tuple[str, ...]]:
    """Return prediction and label of each case, and the cases that have only a label."""
    found, expected = _label_maps(predictions), _label_maps(labels)
    problems = [
        f"{path}: there is no label of this name in {labels}" for name, path in found.items() if name not in expected
    ]
    if not found:
        problems = [f"{predictions}: there are no label maps ({', '.join(ENDINGS)}) to evaluate"]
    if problems:
        raise DatasetError(problems)
    pairs = {name: (path, expected[name]) for name, path in found.items()}
    return pairs, tuple(name for name in expected if name not in found)


def _label_maps(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError([f"{folder}: is not a folder; expected one with a label map per case"])
    maps: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if file_ending(path) is None or path.name.startswith("."):
            continue
        other = maps.setdefault(stem(path), path)
        if other is not path:
            raise DatasetError([f"{path}: the case {stem(path)} is also in {other.name}; keep one of them"])
    return maps


def _file_scores(prediction: Path, label: Path, tolerance_mm: float) -> dict[int, LabelScores]:
    predicted, reference = read_image([prediction]), read_image([label])
    difference = describe_difference(reference.geometry, predicted.geometry)
    if difference:
        raise DatasetError([f"{prediction}: does not lie on the grid of its label {label}: {difference}"])
    predicted = along_axes_of(reference, predicted)
    found, expected = _label_values(prediction, predicted), _label_values(label, reference)
    values = [_held_values(voxels) for voxels in (found, expected)]
    for path, held in zip((prediction, label), values, strict=True):
        if len(held) > MOST_LABELS:
            raise DatasetError([f"{path}: holds {len(held)} values, as an image does; name the folder of label maps"])
    return case_scores(
        found,
        expected,
        values=[int(value) for value in np.union1d(*values) if value],
        spacing_mm=reference.spacing_mm,
        tolerance_mm=tolerance_mm,
    )


def _label_values(path: Path, volume: Volume) -> np.ndarray:
    """Return the label map (X, Y, Z) as integers."""
    if len(volume.voxels) != 1:
        raise DatasetError([f"{path}: has {len(volume.voxels)} channels; a label map has one"])
    values = volume.voxels[0]
    if values.dtype.kind != "f":
        return values
    result = np.empty(values.shape, np.int32, order="F")
    for layers in slabs(values.shape):
        whole, broken = whole_numbers(values[..., layers])
        if broken.any():
            raise DatasetError([f"{path}: holds values that are no whole number; a label map has only those"])
        result[..., layers] = whole
    return result


def _held_values(label: np.ndarray) -> np.ndarray:
    """Return the values that a label map holds, in ascending order."""
    values = np.empty(0, label.dtype)
    for layers in slabs(label.shape):
        values = np.union1d(values, label[..., layers])
    return values
