import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from automonai.report.intervals import interval_of, interval_of_class_means


def test_the_mean_leaves_out_what_has_no_meaning_and_counts_it():
    found = interval_of([0.8, None, 0.9, float("nan")])
    assert (found.mean, found.cases, found.undefined) == (pytest.approx(0.85), 2, 2)


def test_one_case_has_a_mean_and_no_interval():
    found = interval_of([0.8])
    assert (found.mean, found.low, found.high) == (0.8, None, None)


def test_no_case_has_no_mean():
    found = interval_of([None, None])
    assert (found.mean, found.median, found.cases, found.undefined) == (None, None, 0, 2)


@pytest.mark.parametrize("value", [0.0, 0.7, 1.0])
def test_equal_values_give_an_interval_of_no_width(value):
    found = interval_of([value] * 10)
    assert (found.low, found.high) == (pytest.approx(value), pytest.approx(value))


def test_the_interval_of_a_normal_sample_is_about_two_standard_errors_wide():
    values = list(np.random.default_rng(1).normal(0.8, 0.05, 200))
    found = interval_of(values)
    assert found.high - found.low == pytest.approx(2 * 1.97 * np.std(values) / np.sqrt(200), rel=0.01)


def test_an_interval_is_symmetric_on_the_logit():
    found = interval_of([0.6, 0.8, 0.7, 0.95])
    low, mean, high = (math.log(p / (1 - p)) for p in (found.low, found.mean, found.high))
    assert mean - low == pytest.approx(high - mean)
    error = np.std([0.6, 0.8, 0.7, 0.95], ddof=1) / 2
    assert high - mean == pytest.approx(3.1824463 * error / (found.mean * (1 - found.mean)))  # t of three degrees


def test_the_interval_of_a_distance_is_symmetric_on_the_logarithm():
    found = interval_of([1.0, 2.0, 9.0], largest=math.inf)
    assert found.low * found.high == pytest.approx(found.mean**2)


@pytest.mark.parametrize("cases", [4, 8, 20])
def test_of_a_hundred_intervals_about_95_hold_the_true_mean_even_with_few_cases(cases):
    generator = np.random.default_rng(0)
    found = [interval_of(list(generator.beta(20, 3, cases))) for _ in range(600)]
    assert np.mean([interval.low <= 20 / 23 <= interval.high for interval in found]) == pytest.approx(0.95, abs=0.02)


def test_the_mean_of_one_class_has_the_interval_of_that_class():
    values = [0.6, 0.8, 0.7, 0.95]
    assert interval_of_class_means([[value, None] for value in values]) == interval_of(values)


def test_classes_of_the_same_case_do_not_count_as_several_cases():
    values = [0.6, 0.8, 0.7, 0.95]
    one, two = interval_of(values), interval_of_class_means([[value, value] for value in values])
    assert (two.low, two.high) == (pytest.approx(one.low), pytest.approx(one.high))


def test_every_class_weighs_the_same_in_the_mean_over_classes():
    rows = [[0.9, 0.5], [0.9, None], [0.9, None]]
    assert interval_of_class_means(rows).mean == pytest.approx(0.7)


@pytest.mark.parametrize("cases", [3, 6, 42])
def test_a_class_that_few_cases_have_makes_the_interval_of_the_mean_wider(cases):
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        common, rare = generator.beta(18, 2, 42), generator.beta(6, 4, 42)
        rows = [[a, b if number < cases else None] for number, (a, b) in enumerate(zip(common, rare, strict=True))]
        found = interval_of_class_means(rows)
        held += found.low <= (0.9 + 0.6) / 2 <= found.high
    assert held / 400 == pytest.approx(0.95, abs=0.04)


def test_a_class_that_one_case_has_leaves_no_interval():
    found = interval_of_class_means([[0.9, 0.5], [0.8, None], [0.7, None]])
    assert (found.low, found.high) == (None, None)


def test_a_class_that_no_case_has_does_not_count():
    rows = [[0.9, None], [0.8, None]]
    assert interval_of_class_means(rows).mean == pytest.approx(0.85)


@pytest.mark.parametrize("rows", [[], [[None, None]], [[]]])
def test_no_cases_have_no_mean_over_classes(rows):
    assert interval_of_class_means(rows).mean is None


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
@example([1.0, 0.9999999999999999])
def test_an_interval_holds_the_mean_and_lies_within_what_is_possible(values):
    found = interval_of(values)
    assert 0 <= found.low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= found.high <= 1
