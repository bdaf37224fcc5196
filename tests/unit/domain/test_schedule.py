from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automonai.domain.schedule import refit_validations, validated_epochs


@pytest.mark.parametrize(
    ("length", "every", "validations", "expected"),
    [
        (100, 5, 4, [25, 50, 75]),
        (92, 5, 4, [23, 46, 69]),
        (92, 5, 2, [46]),
        (92, 5, 1, []),
        (92, 40, 4, [40]),
        (12, 5, 4, [5]),
        (13, 5, 4, [5, 10]),
        (5, 5, 4, []),
        (1, 1, 4, []),
        (4, 1, 4, [1, 2, 3]),
    ],
)
def test_a_refit_validates_in_equal_parts_but_not_oftener_than_the_spec_says(
    length: int, every: int, validations: int, expected: list[int]
) -> None:
    assert list(validated_epochs(length, every, validations)) == expected


@given(length=st.integers(0, 500), every=st.integers(1, 40), validations=st.integers(1, 4))
def test_a_refit_never_makes_more_validations_than_it_may(length: int, every: int, validations: int) -> None:
    assert 0 <= len(validated_epochs(length, every, validations)) < validations


@pytest.mark.parametrize(
    ("seconds", "each", "expected"), [(600, 20, 4), (599, 20, 3), (100, 10, 2), (99, 10, 1), (-5, 1, 1), (10, 0, 4)]
)
def test_validations_before_the_last_take_a_tenth_of_the_time(seconds: float, each: float, expected: int) -> None:
    assert refit_validations(seconds, each) == expected
