from __future__ import annotations

import pytest
import studies

from automonai import terminal
from automonai.report import Summary, summarise


@pytest.fixture(scope="module")
def summary() -> Summary:
    bench = studies.Bench(studies.make_spec(iterations=1))
    return summarise(bench.run(), studies.make_data(bench.spec))


def winner_lines(summary: Summary) -> list[str]:
    lines = terminal.summary_lines(summary, location="studies/test")
    first = next(number for number, line in enumerate(lines) if line.startswith("winner"))
    return lines[first:-2]  # the report and what comes next follow


def test_the_ensemble_is_told_with_its_trials(summary: Summary) -> None:
    assert summary.ensemble is not None
    assert {member.trial for member in summary.ensemble.members} == {summary.trials[0].trial}
    one = summary.ensemble.members[0]
    members = (one, one.model_copy(update={"trial": 0}))
    mixed = summary.model_copy(update={"ensemble": summary.ensemble.model_copy(update={"members": members})})
    line = f"ensemble 2 networks of trial 0 and trial {one.trial}"
    assert line in terminal.summary_lines(mixed, location="studies/test")


def test_a_winner_that_has_the_best_score_needs_no_explanation(summary: Summary) -> None:
    assert summary.winner is not None
    assert summary.winner.trial == summary.trials[0].trial
    assert len(winner_lines(summary)) == 1


def test_a_winner_that_is_not_shown_as_the_best_says_why_it_was_taken(summary: Summary) -> None:
    assert summary.winner is not None
    winner = summary.winner.model_copy(update={"trial": summary.trials[1].trial})
    lines = winner_lines(summary.model_copy(update={"winner": winner}))
    assert lines[0].startswith(f"winner   trial {summary.trials[1].trial}: ")
    best = summary.trials[0]
    assert best.refit == "complete"
    (line,) = lines[1:]
    assert line.startswith(
        f"         trial {best.trial} was first in the search; trained to the end as well, it has no"
    )


@pytest.mark.parametrize(
    ("budget", "runs", "line"),
    [
        ({"iterations": 2}, 2, "left 1 of 2 iterations to begin"),
        ({"iterations": 1}, 2, "left 0 of 1 iteration to begin"),
        ({"epochs": 60}, 2, "left until the epochs are spent"),
        ({"iterations": 1}, 14, "left nothing of the search"),
    ],
)
def test_what_a_budget_without_a_time_has_left(budget: dict[str, int], runs: int, line: str) -> None:
    bench = studies.Bench(studies.make_spec(**budget))
    executor = bench.executor()
    study = bench.run(executor=executor, should_stop=lambda: len(executor.trained) >= runs)
    shown = terminal.rendered(terminal.study_table(study, now=bench.clock())).splitlines()
    assert line in [" ".join(shown_line.split()) for shown_line in shown]
