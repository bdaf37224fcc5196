import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automonai.domain.bracket import (
    flat_bracket,
    halving_bracket,
    hyperband_bracket,
    promoted,
    rung_budgets,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from hpbandster.optimizers.bohb import BOHB

ladders = st.tuples(st.integers(1, 50), st.integers(1, 2000), st.integers(2, 10)).filter(lambda t: t[0] <= t[1])


@pytest.mark.parametrize(
    ("ladder", "expected"),
    [
        ((1, 243, 3), (1, 3, 9, 27, 81, 243)),
        ((1, 1000, 10), (1, 10, 100, 1000)),
        ((5, 200, 3), (7, 22, 67, 200)),
        ((5, 5, 3), (5,)),
        ((1, 2, 3), (2,)),
        ((1, 3, 2), (2, 3)),
        ((1, 125, 5), (1, 5, 25, 125)),
    ],
)
def test_rungs_are_decided_in_whole_numbers(ladder: tuple[int, int, int], expected: tuple[int, ...]) -> None:
    assert rung_budgets(*ladder) == expected


@given(ladders)
def test_rungs_rise_from_the_least_to_exactly_the_most(ladder: tuple[int, int, int]) -> None:
    low, high, eta = ladder
    budgets = rung_budgets(low, high, eta)
    assert list(budgets) == sorted(set(budgets))
    assert low <= budgets[0]
    assert budgets[-1] == high
    assert eta ** (len(budgets) - 1) <= high / low < eta ** len(budgets)


@pytest.mark.parametrize(("low", "high", "eta"), [(0, 5, 3), (6, 5, 3), (1, 5, 1)])
def test_an_impossible_ladder_is_refused(low: int, high: int, eta: int) -> None:
    with pytest.raises(ValueError, match="rungs need"):
        rung_budgets(low, high, eta)


def test_five_restarted_iterations_of_the_source_work_cost_3800_epochs_before_rounding() -> None:
    budgets = rung_budgets(5, 200, 3)
    exact = [200 / 27, 200 / 9, 200 / 3, 200.0]
    cost = 0.0
    for index in range(5):
        sizes = hyperband_bracket(index, budgets, 3).sizes
        cost += sum(size * budget for size, budget in zip(sizes, exact[-len(sizes) :], strict=True))
    assert cost == pytest.approx(3800)


def test_the_brackets_of_the_source_work() -> None:
    budgets = rung_budgets(5, 200, 3)
    assert [hyperband_bracket(index, budgets, 3).sizes for index in range(5)] == [
        (27, 9, 3, 1),
        (9, 3, 1),
        (6, 2),
        (4,),
        (27, 9, 3, 1),
    ]


def test_a_continued_bracket_costs_only_what_each_rung_adds() -> None:
    bracket = hyperband_bracket(0, rung_budgets(5, 200, 3), 3)
    assert bracket.epochs_restarted == 27 * 7 + 9 * 22 + 3 * 67 + 200
    assert bracket.epochs_continued == 27 * 7 + 9 * 15 + 3 * 45 + 133


def test_plain_halving_always_starts_on_the_lowest_rung() -> None:
    budgets = rung_budgets(1, 9, 3)
    assert [halving_bracket(index, budgets, 3).sizes for index in range(3)] == [(9, 3, 1)] * 3
    assert [halving_bracket(index, budgets, 3).index for index in range(3)] == [0, 1, 2]


def test_a_flat_bracket_trains_all_to_the_end() -> None:
    assert flat_bracket(2, 200, 1).epochs_continued == 200


def hpbandster_iteration(index: int, rungs: int, eta: int) -> SimpleNamespace:
    """Return HpBandSter's own successive halving for a bracket, its Pyro master left out."""
    master = SimpleNamespace(
        max_SH_iter=rungs,
        eta=eta,
        budgets=np.power(float(eta), np.arange(rungs)),
        config_generator=SimpleNamespace(get_config=None),
    )
    iteration: SimpleNamespace = BOHB.get_next_iteration(master, index)
    return iteration


@given(rungs=st.integers(1, 7), eta=st.integers(2, 5), index=st.integers(0, 20))
def test_sizes_equal_hpbandsters_but_where_its_floats_lose_a_trial(rungs: int, eta: int, index: int) -> None:
    ours = hyperband_bracket(index, tuple(eta**k for k in range(rungs)), eta)
    theirs = hpbandster_iteration(index, rungs, eta)
    assert len(ours.budgets_epochs) == len(theirs.budgets)
    for rung, (size, other) in enumerate(zip(ours.sizes, theirs.num_configs, strict=True)):
        exact = ours.sizes[0] * float(eta) ** -rung
        float_error = exact != round(exact) and math.isclose(exact, round(exact))
        assert size == other or (float_error and size == other + 1)


@given(losses=st.lists(st.floats(0, 1), min_size=9, max_size=9, unique=True), rungs=st.integers(3, 4), eta=st.just(3))
def test_promotions_equal_hpbandsters(losses: list[float], rungs: int, eta: int) -> None:
    iteration = hpbandster_iteration(rungs - 3, rungs, eta)  # the bracket of three rungs: 9, 3, 1
    assert list(iteration.num_configs) == [9, 3, 1]
    iteration.stage = 1
    advances = iteration._advance_to_next_stage(range(9), np.array(losses))
    assert sorted(promoted(dict(enumerate(losses)), 3)) == list(np.flatnonzero(advances))


def test_a_failed_trial_is_never_promoted_and_a_tie_goes_to_the_earlier_one() -> None:
    losses = {4: 0.3, 2: 0.3, 7: math.inf, 1: 0.9}
    assert promoted(losses, 3) == (2, 4, 1)
    assert promoted({1: math.inf, 2: math.inf}, 1) == ()
