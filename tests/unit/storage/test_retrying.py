from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from automonai.storage.retrying import Retrying


@dataclass
class Time:
    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Flaky:
    """Fails so many times, each try taking so long, then answers."""

    def __init__(self, time: Time, *, failures: int, seconds: float = 0.0) -> None:
        self.time, self.failures, self.seconds, self.calls = time, failures, seconds, 0

    def __call__(self) -> str:
        self.calls += 1
        self.time.now += self.seconds
        if self.calls <= self.failures:
            raise ConnectionError("refused")
        return "answer"


@pytest.fixture
def time() -> Time:
    return Time()


def retrying(time: Time) -> Retrying:
    """Return one that always draws the longest wait."""
    return Retrying(clock=lambda: time.now, sleep=time.sleep, draw=lambda limit: limit)


def refused(error: Exception) -> str | None:
    return "refused" if isinstance(error, ConnectionError) else None


def test_an_answer_is_returned_without_waiting(time: Time) -> None:
    assert retrying(time).call(Flaky(time, failures=0), transient=refused) == "answer"
    assert time.slept == []


def test_the_limit_of_each_wait_doubles_up_to_the_longest(time: Time) -> None:
    retrying(time).call(Flaky(time, failures=9), transient=refused)
    assert time.slept == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10])


def test_waits_are_drawn_between_nothing_and_their_limit(time: Time) -> None:
    waits = Retrying(clock=lambda: time.now, sleep=time.sleep)
    waits.call(Flaky(time, failures=8), transient=refused)
    assert all(
        0 <= wait <= limit for wait, limit in zip(time.slept, [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10], strict=True)
    )


def test_it_gives_up_with_the_last_error_when_the_patience_is_over(time: Time) -> None:
    with pytest.raises(ConnectionError, match="refused"):
        retrying(time).call(Flaky(time, failures=10**6), transient=refused)
    assert 100 < time.now <= 120


def test_an_outage_of_a_minute_is_survived(time: Time) -> None:
    def work() -> float:
        if time.now < 60:
            raise ConnectionError("refused")
        return time.now

    assert retrying(time).call(work, transient=refused) < 75


def test_tries_that_outlast_the_patience_are_repeated_all_the_same(time: Time) -> None:
    work = Flaky(time, failures=10**6, seconds=600)
    with pytest.raises(ConnectionError):
        retrying(time).call(work, transient=refused)
    assert work.calls == 4


def test_what_is_not_transient_is_raised_at_once(time: Time) -> None:
    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        retrying(time).call(work, transient=refused)
    assert time.slept == []


def test_the_draws_leave_the_global_generator_alone(time: Time) -> None:
    import random

    random.seed(1)
    expected = random.random()
    random.seed(1)
    Retrying(clock=lambda: time.now, sleep=time.sleep).call(Flaky(time, failures=3), transient=refused)
    assert random.random() == expected
