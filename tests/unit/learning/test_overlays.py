from __future__ import annotations

import io

import numpy as np
from PIL import Image

from automonai.learning.overlays import LABEL_COLOUR, PREDICTION_COLOUR, render_overlay, worst_slice


def picture(spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    image = np.random.default_rng(0).normal(100, 20, (40, 30, 10)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[22:32, 10:20, 4] = 1
    prediction = np.zeros_like(label)
    prediction[24:36, 10:20, 4] = 1
    png = render_overlay(image, label, prediction, spacing_mm=spacing_mm)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def near(pixels: np.ndarray, colour: str) -> np.ndarray:
    wanted = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)])
    return np.abs(pixels - wanted).max(axis=-1) < 40


def test_proportions_follow_the_spacing() -> None:
    assert picture().shape[:2] == (360, 480)
    assert picture((1.0, 2.0, 5.0)).shape[:2] == (480, 320)


def test_label_and_prediction_are_outlined_in_their_colours_with_the_patients_right_on_the_left() -> None:
    pixels = picture()
    label, prediction = near(pixels, LABEL_COLOUR), near(pixels, PREDICTION_COLOUR)
    assert label.sum() > 100
    assert prediction.sum() > 100
    # The prediction reaches further to the patient's right (x up to 35) than the label (up to 31).
    assert np.nonzero(prediction)[1].min() < np.nonzero(label)[1].min() - 20
    assert np.nonzero(label)[1].max() < 240


def test_the_slice_with_the_most_wrong_voxels_is_shown() -> None:
    label = np.zeros((4, 4, 5), np.uint8)
    label[:2, :, 1] = 1
    label[:, :, 3] = 1
    prediction = label.copy()
    prediction[:, :, 1] = 0
    assert worst_slice(label, prediction) == 1


def test_without_an_error_the_slice_with_most_of_the_label_is_shown() -> None:
    label = np.zeros((4, 4, 5), np.uint8)
    label[0, 0, 1] = 1
    label[:, 0, 3] = 1
    assert worst_slice(label, label) == 3


def test_constant_images_and_empty_labels_are_drawn() -> None:
    empty = np.zeros((4, 4, 2), np.uint8)
    assert render_overlay(empty, empty, empty, spacing_mm=(1.0, 1.0, 1.0)).startswith(b"\x89PNG")
