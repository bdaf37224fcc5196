import pytest

from automonai.domain.run import Origin
from automonai.report import summarise
from automonai.report.answer import answer_section, configuration_section, cost_section
from automonai.report.intervals import interval_of
from automonai.report.summary import CaseSummary, HeldOutScores


@pytest.fixture(scope="module")
def summary(finished):
    return summarise(finished.study, finished.data)


def with_test(summary, *, dice, hd95_mm):
    """Return the summary with a test of one class, a case for each figure."""
    cases = tuple(
        CaseSummary(case=f"case_{k}", mean_dice=d, dice={"organ": d}, hd95_mm={"organ": h}, surface_dice={"organ": d})
        for k, (d, h) in enumerate(zip(dice, hd95_mm, strict=True))
    )
    mean = interval_of(dice)
    scores = HeldOutScores(
        mean_dice=mean.mean,
        mean_dice_low=mean.low,
        mean_dice_high=mean.high,
        dice={"organ": mean},
        hd95_mm={"organ": interval_of(hd95_mm)},
        surface_dice={"organ": mean},
        cases=cases,
    )
    return summary.model_copy(update={"test": scores})


def test_a_distance_that_some_cases_lack_says_how_many_have_one_and_that_it_flatters(summary):
    page = answer_section(with_test(summary, dice=[0.5, 0.0, 0.6, None], hd95_mm=[1.0, None, 2.4, None]))
    assert page.count("1.7 (2 of 3)") == 2  # the class, and the mean over the only one
    assert "HD95 looks better than it is" in page
    assert "no distance to measure: organ (1)." in page
    assert "neither present nor found do not count for it: organ (1)." in page


def test_a_distance_that_every_case_has_stands_alone(summary):
    page = answer_section(with_test(summary, dice=[0.5, 0.6], hd95_mm=[1.0, 2.4]))
    assert ">1.7<" in page
    assert "HD95 looks better" not in page


def test_a_distance_that_no_case_has_is_a_dash(summary):
    assert "– (0 of 2)" in answer_section(with_test(summary, dice=[0.0, 0.0], hd95_mm=[None, None]))


@pytest.mark.parametrize(
    ("cases", "promised", "narrow", "rough"),
    [(4, False, False, True), (12, True, True, False), (42, True, True, False), (60, True, False, False)],
)
def test_the_fewer_cases_the_less_an_interval_promises(summary, cases, promised, narrow, rough):
    page = answer_section(with_test(summary, dice=[0.5, 0.7] * (cases // 2), hd95_mm=[1.0] * cases))
    assert ("about 95 in 100 hold the true mean" in page) is promised
    assert ("fewer where the network fails on few patients" in page) is narrow
    assert (f"With only {cases} test cases the intervals are rough" in page) is rough
    assert "how much another training would differ it does not tell" in page


def test_a_class_that_few_cases_have_takes_the_promise_away(summary):
    tested = with_test(summary, dice=[0.5, 0.7] * 30, hd95_mm=[1.0] * 60)
    name, interval = next(iter(tested.test.dice.items()))
    rare = {**tested.test.dice, name: interval.model_copy(update={"cases": 3, "undefined": 57})}
    page = answer_section(tested.model_copy(update={"test": tested.test.model_copy(update={"dice": rare})}))
    assert "about 95 in 100" not in page
    assert f"With only 3 test cases that have {name} the intervals are rough" in page


def test_search_and_test_score_stand_side_by_side_without_a_cause(summary):
    page = answer_section(summary)
    assert f"had a mean Dice of {summary.optimism.search_dice:.3f} after 200 epochs" in page
    assert f"has {summary.optimism.test_dice:.3f} on the test cases" in page
    assert "cannot be compared strictly; the test score is the one to trust" in page


def test_the_winner_is_compared_with_the_standard_configuration(summary):
    found, page = summary.standard, configuration_section(summary)
    assert f"the standard configuration (trial 0) reached {found.standard_dice:.3f}" in page
    assert f"and the winner {found.winner_dice:.3f}" in page
    assert "for the winner is the best of 39." in page


def test_a_lead_that_counts_as_none_is_no_find(summary):
    update = {"standard_dice": summary.standard.winner_dice - 0.002, "epochs": summary.winner.budget_epochs}
    close = summary.standard.model_copy(update=update)
    page = configuration_section(summary.model_copy(update={"standard": close}))
    assert "the search has found nothing that is clearly better than the standard one" in page


def test_a_comparison_before_the_winners_last_epoch_gives_no_verdict(summary):
    for behind in (0.002, 0.05):
        early = {"epochs": 7, "standard_dice": summary.standard.winner_dice - behind}
        found = summary.standard.model_copy(update=early)
        page = configuration_section(summary.model_copy(update={"standard": found}))
        assert "later than which they were not compared." in page
        assert "clearly better" not in page


def test_a_standard_configuration_without_a_result_is_not_compared(summary):
    page = configuration_section(summary.model_copy(update={"standard": None}))
    assert "with the standard configuration, which was never scored after as many epochs as the winner." in page
    unknown = tuple(t.model_copy(update={"rank": None}) if t.origin is Origin.STANDARD else t for t in summary.trials)
    page = configuration_section(summary.model_copy(update={"standard": None, "trials": unknown}))
    assert "The winner cannot be compared with the standard configuration, which has no result." in page


def test_a_standard_configuration_that_wins_says_that_none_is_better(summary):
    winner = summary.winner.model_copy(update={"origin": Origin.STANDARD})
    page = configuration_section(summary.model_copy(update={"winner": winner, "standard": None}))
    assert "None of the 39 configurations with a result is better than the standard one." in page


@pytest.mark.parametrize(
    ("refit", "loss", "why"),
    [
        ("complete", 0.0, "trained to the end as well, it has no more weight in the ensemble"),
        ("failed", 0.0, "its training to the end failed."),
        ("open", 0.0, "its training to the end is not over."),
        (None, 0.0, "differences of up to 0.003 are taken for none, and the winner is the one of these that trains"),
        (None, 0.1, "it was not trained to the end."),
    ],
)
def test_a_winner_that_is_not_the_first_says_why(summary, refit, loss, why):
    first, second, *others = summary.trials
    winner = summary.winner.model_copy(update={"trial": second.trial, "loss": first.loss + loss})
    update = {
        "winner": winner,
        "trials": (first.model_copy(update={"refit": refit}), second, *others),
        "refitted_first": second.trial,
    }
    page = configuration_section(summary.model_copy(update=update))
    assert f"The best score of the search is that of trial {first.trial}, {first.dice:.3f}; {why}" in page
    page = configuration_section(summary.model_copy(update={**update, "objective": "loss"}))
    losses = f"{first.loss:.4f} where the winner has {winner.loss:.4f}"
    assert f"The lowest loss of the search is that of trial {first.trial}, {losses}; {why}" in page
    assert "The best score of the search" not in configuration_section(summary)


def test_a_winner_that_was_not_refitted_first_is_not_said_to_train_fastest(summary):
    first, second, *others = summary.trials
    update = {
        "winner": summary.winner.model_copy(update={"trial": second.trial, "loss": first.loss}),
        "trials": (first.model_copy(update={"refit": None}), second, *others),
        "refitted_first": others[0].trial,
    }
    page = configuration_section(summary.model_copy(update=update))
    assert "it was not trained to the end." in page


def test_a_standard_configuration_that_overtakes_the_first_says_so(summary):
    second = next(trial for trial in summary.trials if trial.rank == 2)
    update = {"trial": second.trial, "loss": summary.winner.loss + 0.1, "origin": Origin.STANDARD}
    standard = summary.winner.model_copy(update=update)
    page = configuration_section(summary.model_copy(update={"winner": standard, "standard": None}))
    assert "It is the standard configuration: in the end the search has found nothing better." in page


def test_an_ensemble_that_is_the_searchs_own_network_is_not_said_to_be_trained_to_the_end(summary):
    own = tuple(member.model_copy(update={"is_refit": False}) for member in summary.ensemble.members[:1])
    ensemble = summary.ensemble.model_copy(update={"members": own})
    page = answer_section(summary.model_copy(update={"ensemble": ensemble}))
    assert "the ensemble is the search&#x27;s own best network" in page
    assert "trained to the end, has" not in page


def test_the_winner_is_the_configuration_of_most_weight(finished):
    study, ensemble = finished.study, finished.study.ensemble
    first = study.refit.runs[0].trial
    other = next(member.trial for member in ensemble.members if member.trial != first)
    for least in (first, other):
        members = tuple(m.model_copy(update={"weight": 0.1 if m.trial == least else 0.4}) for m in ensemble.members)
        study.ensemble = ensemble.model_copy(update={"members": members})
        assert summarise(study, finished.data).winner.trial == (other if least == first else first)
    study.ensemble = ensemble


def test_what_the_ensemble_made_of_the_winner_stands_beside_it(summary):
    trials = sorted({member.trial for member in summary.ensemble.members})
    assert summary.winner.trial in trials
    (other,) = (trial for trial in trials if trial != summary.winner.trial)
    assert f"averages its networks with those of trial {other}" in configuration_section(summary)


def test_the_cost_says_after_how_many_epochs_configurations_were_compared(summary):
    assert "BOHB; configurations were compared after 7, 22, 67 and 200 epochs" in cost_section(summary)
    one = summary.model_copy(update={"rungs": (9,)})
    assert "configurations were compared after 9 epochs" in cost_section(one)


def test_the_cost_explains_its_words(summary):
    page = cost_section(summary)
    assert all(words in page for words in ("In an epoch", "A rung is", "A fold is", "The refit trains"))


def test_a_prediction_of_milliseconds_is_told_in_them(summary):
    winner = summary.winner.model_copy(update={"prediction_seconds_per_case": 0.0395})
    assert "40 ms, by one network" in cost_section(summary.model_copy(update={"winner": winner}))
