import math

from automonai.domain.run import Purpose
from automonai.report.importance import FEWEST_TRIALS, measure_importance
from automonai.spec import SearchSpec


def test_what_decides_the_results_comes_first(finished):
    found = measure_importance(finished.study)
    assert [share.name for share in found.shares[:2]] == ["convolution", "normalisation"]
    assert found.shares[0].mean > 3 * found.shares[0].std
    assert found.explained > 0


def test_it_counts_completed_runs_of_the_search_only(finished):
    found = measure_importance(finished.study)
    runs = [r for r in finished.study.runs.values() if r.run.purpose is Purpose.SEARCH and r.result.loss is not None]
    assert found.results == len(runs)
    assert found.trials == len({record.run.trial for record in runs})


def test_the_same_study_gives_the_same_importance(halfway):
    assert measure_importance(halfway.study) == measure_importance(halfway.study)


def test_too_few_results_are_said_to_be_too_few(fresh):
    found = measure_importance(fresh.study)
    assert found.shares == ()
    assert str(FEWEST_TRIALS) in found.missing


def test_a_space_without_ranges_has_no_importance(tell_study):
    told = tell_study(search=SearchSpec(space={"depth": 3}), iterations=1)
    assert measure_importance(told.study).missing == "No hyperparameter varied."


def test_a_logarithmic_range_can_be_measured(tell_study):
    space = {
        "learning_rate": {"type": "real", "low": 1e-5, "high": 1e-1, "log": True},
        "channel_multiplier": {"type": "real", "low": 0.5, "high": 3.0},
    }
    told = tell_study(search=SearchSpec(space=space), iterations=1)
    found = measure_importance(told.study)
    assert [share.name for share in found.shares] == ["channel_multiplier"]  # the other never varied
    assert math.isfinite(found.shares[0].mean)
