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
