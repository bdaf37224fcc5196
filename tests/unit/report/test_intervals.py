import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automonai.report.intervals import interval_of, interval_of_class_means


def test_the_mean_leaves_out_what_has_no_meaning_and_counts_it():
    found = interval_of([0.8, None, 0.9, float("nan")], seed=0)
    assert (found.mean, found.cases, found.undefined) == (pytest.approx(0.85), 2, 2)


def test_one_case_has_a_mean_and_no_interval():
    found = interval_of([0.8], seed=0)
    assert (found.mean, found.low, found.high) == (0.8, None, None)


def test_no_case_has_no_mean():
    found = interval_of([None, None], seed=0)
    assert (found.mean, found.median, found.cases, found.undefined) == (None, None, 0, 2)


def test_equal_values_give_an_interval_of_no_width():
    found = interval_of([0.7] * 10, seed=0)
    assert (found.low, found.high) == (pytest.approx(0.7), pytest.approx(0.7))


def test_the_same_seed_gives_the_same_interval():
    values = list(np.random.default_rng(0).uniform(0.6, 0.9, 30))
    assert interval_of(values, seed=3) == interval_of(values, seed=3)


def test_the_interval_of_a_normal_sample_is_about_two_standard_errors_wide():
    values = list(np.random.default_rng(1).normal(0.8, 0.05, 200))
    found = interval_of(values, seed=0)
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(values) / np.sqrt(200), rel=0.1)


def test_every_class_weighs_the_same_in_the_mean_over_classes():
    rows = [[0.9, 0.5], [0.9, None], [0.9, None]]
    assert interval_of_class_means(rows, seed=0).mean == pytest.approx(0.7)


def test_a_class_that_no_case_has_does_not_count():
    rows = [[0.9, None], [0.8, None]]
    assert interval_of_class_means(rows, seed=0).mean == pytest.approx(0.85)


def test_no_cases_have_no_mean_over_classes():
    assert interval_of_class_means([], seed=0).mean is None


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_an_interval_lies_within_the_values(values):
    found = interval_of(values, seed=0)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
