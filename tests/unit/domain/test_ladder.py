import pytest
from hypothesis import given
from hypothesis import strategies as st

from automonai.domain.bracket import hyperband_bracket, rung_budgets
from automonai.domain.ladder import ROUNDS, fit_ladder


@given(epochs=st.floats(min_value=0, max_value=1e6))
def test_two_rounds_of_the_ladder_fit_unless_there_is_hardly_any_time(epochs: float) -> None:
    ladder = fit_ladder(epochs)
    budgets = rung_budgets(ladder.min_epochs, ladder.max_epochs, ladder.eta)
    cost = sum(hyperband_bracket(i, budgets, ladder.eta).epochs_continued for i in range(len(budgets)))
    assert ladder.max_epochs == 1 or cost * ROUNDS <= epochs
    assert 1 <= ladder.min_epochs <= ladder.max_epochs <= 200
    assert ladder.iterations >= 1


@given(epochs=st.floats(min_value=0, max_value=1e5), more=st.floats(min_value=1, max_value=10))
def test_more_time_never_gives_a_lower_ladder(epochs: float, more: float) -> None:
    assert fit_ladder(epochs * more).max_epochs >= fit_ladder(epochs).max_epochs


@pytest.mark.parametrize(("epochs", "highest"), [(0, 1), (126, 9), (1e6, 200)])
def test_known_ladders(epochs: float, highest: int) -> None:
    assert fit_ladder(epochs).max_epochs == highest
