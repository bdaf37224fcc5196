from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automonai.domain.schedule import is_validated, refit_validations, validated_epochs


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


@given(length=st.integers(1, 500), every=st.integers(1, 40), validations=st.integers(1, 4))
def test_a_refit_of_known_length_validates_after_those_epochs(length: int, every: int, validations: int) -> None:
    assert validated(every, validations, [length] * length) == list(validated_epochs(length, every, validations))


@given(validations=st.integers(2, 4), lengths=st.lists(st.integers(97, 103), min_size=120, max_size=120))
def test_a_refit_whose_foretold_length_wobbles_validates_neither_twice_nor_never(
    validations: int, lengths: list[int]
) -> None:
    done = validated(5, validations, lengths)
    assert len(done) == validations - 1
    assert all(late - early >= 15 for early, late in pairwise(done))


def validated(every: int, validations: int, lengths: list[int]) -> list[int]:
    """Return the epochs after which a refit validates whose length is foretold so after each of its epochs."""
    done: list[int] = []
    for epoch, length in enumerate(lengths, start=1):
        if epoch >= length:
            break
        last = done[-1] if done else 0
        if is_validated(epoch, last=last, length=length, every=every, validations=validations):
            done.append(epoch)
    return done
