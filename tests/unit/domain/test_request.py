from __future__ import annotations

import pytest

from automonai.domain.configuration import Configuration
from automonai.domain.request import TrainRequest
from automonai.domain.run import Purpose, Run

ASKED = 1000.0


def request(deadline_seconds: float | None = 600.0) -> TrainRequest:
    run = Run(trial=0, budget_epochs=9, purpose=Purpose.REFIT)
    return TrainRequest(
        run=run, configuration=Configuration(), seed=0, deadline_seconds=deadline_seconds, asked_at=ASKED
    )


@pytest.mark.parametrize(("waited", "left"), [(0, 600), (100, 500), (400, 300), (5000, 300), (-50, 600)])
def test_a_late_start_takes_at_most_half_of_the_time(waited: float, left: float) -> None:
    assert request().seconds_left(ASKED + waited) == left


@pytest.mark.parametrize(
    ("waited", "worked", "left"), [(100, 50, 500), (500, 250, 100), (5000, 250, 50), (5000, 900, 0)]
)
def test_who_takes_the_place_of_an_evicted_worker_has_the_rest_of_it(waited: float, worked: float, left: float) -> None:
    assert request().seconds_left(ASKED + waited, worked_seconds=worked) == left


def test_without_a_deadline_nothing_is_left_to_keep() -> None:
    assert request(None).seconds_left(ASKED) is None
