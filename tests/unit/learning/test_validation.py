from __future__ import annotations

import numpy as np
from tinytraining import tiny_plan

from automonai.learning.validation import class_dice, window_count


def test_dice_of_each_class_by_hand_and_none_for_an_absent_one() -> None:
    label = np.array([[[0, 1, 1, 2]]], np.uint8)
    prediction = np.array([[[1, 1, 0, 2]]])
    assert class_dice(prediction, label, 4) == [0.5, 1.0, None]


def test_a_class_that_is_only_predicted_scores_zero() -> None:
    assert class_dice(np.ones((1, 1, 2), int), np.zeros((1, 1, 2), np.uint8), 2) == [0.0]


def test_windows_overlap_by_half() -> None:
    plan = tiny_plan()
    assert window_count((8, 8, 8), plan) == 1
    assert window_count((5, 8, 12), plan) == 2
    assert window_count((16, 9, 8), plan) == 3 * 2
    flat = plan.model_copy(update={"network": plan.network.model_copy(update={"spatial_dims": 2})})
    assert window_count((16, 8, 16), flat) == 3 * 2
