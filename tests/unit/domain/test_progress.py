from __future__ import annotations

import pytest
from studies import make_spec

from automonai.domain.events import SearchEnded, StudyStarted
from automonai.domain.progress import runs_done_and_planned
from automonai.domain.study import Study


@pytest.mark.parametrize("folds", [3, 5])
def test_before_the_refit_is_chosen_a_network_is_planned_for_each_fold_that_there_is(folds: int) -> None:
    started = StudyStarted(at=0.0, spec=make_spec(), folds=folds)
    study = Study.replay([started, SearchEnded(at=1.0, why="enough")])
    assert runs_done_and_planned(study, 1.0) == (0, folds + 1)


@pytest.mark.parametrize("iterations", [1, 2, 3, 7, 10**9])
def test_so_many_brackets_have_so_many_runs_however_many_they_are(iterations: int) -> None:
    started = StudyStarted(at=0.0, spec=make_spec(iterations=iterations), folds=4)
    study = Study.replay([started])
    first = [sum(study.bracket(index).sizes) for index in range(3)]
    expected = sum(first[index % 3] for index in range(iterations)) if iterations < 10 else (10**9 // 3) * sum(first)
    assert 0 <= runs_done_and_planned(study, 0.0)[1] - (expected + 4 + 1) <= max(first)
