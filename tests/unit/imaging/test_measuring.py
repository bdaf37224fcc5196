from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automonai.imaging import measuring
from automonai.imaging.measuring import measure, non_finite_count


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), offset=st.floats(-1e4, 1e4), scale=st.floats(0.1, 1e3))
def test_statistics_are_those_of_numpy(seed: int, offset: float, scale: float) -> None:
    values = (np.random.default_rng(seed).normal(size=(1, 6, 5, 4)) * scale + offset).astype(np.float32)
    facts = measure(values).channels[0]
    precise = values.astype(np.float64)
    clipped = np.minimum(precise, facts.percentile_99_5)
    assert facts.percentile_99_5 == pytest.approx(np.percentile(values, 99.5), rel=1e-5, abs=1e-3)
    assert facts.mean == pytest.approx(precise.mean(), rel=1e-9, abs=1e-6)
    assert facts.std == pytest.approx(precise.std(), rel=1e-6)
    assert facts.clipped_mean == pytest.approx(clipped.mean(), rel=1e-9, abs=1e-6)
    assert facts.clipped_std == pytest.approx(clipped.std(), rel=1e-6)


def test_axis_order_in_memory_changes_nothing() -> None:
    values = np.random.default_rng(0).integers(1, 99, (2, 9, 8, 7)).astype(np.int16)
    values[:, :2], values[:, :, 6:], values[:, :, :, :3] = 0, 0, 0
    views = [np.asfortranarray(values), np.ascontiguousarray(values[:, ::-1])[:, ::-1], values]
    for view in views:
        measures = measure(view)
        assert (measures.box_start, measures.box_shape) == ((2, 0, 3), (7, 6, 4))
        assert measures.channels[1].mean == pytest.approx(values[1, 2:, :6, 3:].mean())


def test_background_must_fill_most_of_the_faces_in_every_channel() -> None:
    values = np.random.default_rng(0).integers(1, 1000, (2, 9, 8, 7)).astype(np.int16)
    values[0, :3], values[0, 6:], values[0, :, :2] = 5, 5, 5
    assert measure(values).background is None
    assert measure(values).box_shape == (9, 8, 7)
    assert measure(values[:1]).background == (5.0,)


def test_a_constant_volume_is_measured_as_a_whole() -> None:
    measures = measure(np.full((1, 4, 5, 6), 3, np.uint8))
    assert measures.box_shape == (4, 5, 6)
    assert measures.channels[0].std == 0


def test_values_that_are_not_finite_are_counted() -> None:
    values = np.zeros((4, 4, 4), np.float32)
    values[0, 0, :3] = (np.nan, np.inf, -np.inf)
    assert non_finite_count(values) == 3
    assert non_finite_count(np.zeros(3, np.int16)) == 0


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_percentiles_come_from_all_columns_of_a_volume(
    monkeypatch: pytest.MonkeyPatch, axis: int, order: Literal["C", "F"]
) -> None:
    monkeypatch.setattr(measuring, "_SAMPLE_VALUES", 16**3)
    shape = (16, 256, 16)  # sixteen voxels give one: a fixed step would take the same of every row
    gradient = np.indices(shape)[axis] / shape[axis]
    facts = measure(np.array(gradient[None] + 1, np.float32, order=order)).channels[0]
    assert (facts.percentile_00_5, facts.percentile_99_5) == pytest.approx((1, 2 - 1 / shape[axis]), abs=0.02)


def test_a_sample_is_the_same_every_time_and_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_SAMPLE_VALUES", 100)
    for length in (0, 99, 100, 199, 200, 10_001):
        flat = np.arange(length)
        sample = measuring._sample(flat)
        assert len(sample) == length if length < 200 else 100 <= len(sample) < 200
        np.testing.assert_array_equal(sample, measuring._sample(flat))
        assert (np.diff(sample) > 0).all()
