import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automonai.domain.bracket import rung_budgets
from automonai.domain.ladder import FEWEST_STEPS, Ladder, fit_ladder, results_on_one_rung


@given(epochs=st.floats(min_value=0, max_value=1e6), steps=st.floats(min_value=0.5, max_value=1e4))
@settings(max_examples=50)
def test_every_ladder_can_be_built_and_is_within_bounds(epochs: float, steps: float) -> None:
    ladder = fit_ladder(epochs, steps_per_epoch=steps)
    assert rung_budgets(ladder.min_epochs, ladder.max_epochs, ladder.eta)[-1] == ladder.max_epochs
    assert ladder.iterations >= 1


@given(epochs=st.floats(min_value=0, max_value=1e5), steps=st.floats(min_value=1, max_value=1e3))
@settings(max_examples=50)
def test_a_ladder_of_several_rungs_starts_with_enough_steps(epochs: float, steps: float) -> None:
    ladder = fit_ladder(epochs, steps_per_epoch=steps)
    is_one_rung = ladder.min_epochs == ladder.max_epochs
    assert is_one_rung or ladder.min_epochs * round(steps) >= FEWEST_STEPS


@pytest.mark.parametrize(
    ("epochs", "steps", "lowest", "highest"),
    [
        (0, 31, 1, 1),  # nothing to spend: one epoch each
        (60, 31, 2, 2),  # 30 trials of 2 epochs
        (192, 31, 3, 9),  # 5.8 rounds of (3, 9), 33 epochs and 5 trials each, try 29 trials
        (500, 31, 4, 36),
        (1e6, 31, 22, 198),
    ],
)
def test_known_ladders(epochs: float, steps: float, lowest: int, highest: int) -> None:
    ladder = fit_ladder(epochs, steps_per_epoch=steps)
    assert (ladder.min_epochs, ladder.max_epochs) == (lowest, highest)


def test_the_results_on_one_rung_are_those_of_all_brackets() -> None:
    ladder = Ladder(min_epochs=1, max_epochs=9, eta=3, iterations=4)
    assert results_on_one_rung(ladder) == 9 + 9  # twice 9 trials on 1 epoch; on 3 epochs 3 + 3 + 3, on 9 1 + 1 + 3 + 1
