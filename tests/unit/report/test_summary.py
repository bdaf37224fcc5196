import json

import pytest

from automonai.domain.events import EnsembleFinished
from automonai.domain.run import FailureReason
from automonai.domain.study import Phase, Study
from automonai.report.summarising import longest_curves, summarise
from automonai.report.summary import Summary


@pytest.fixture(scope="module")
def summary(finished):
    return summarise(finished.study, finished.data)


def test_the_test_scores_carry_the_names_of_the_classes(summary):
    assert list(summary.test.dice) == ["Hippocampus anterior", "Hippocampus posterior", "Lesion"]


def test_the_mean_dice_is_the_mean_of_the_classes(summary):
    means = [interval.mean for interval in summary.test.dice.values()]
    assert summary.test.mean_dice == pytest.approx(sum(means) / 3)
    assert summary.test.mean_dice_low < summary.test.mean_dice < summary.test.mean_dice_high


def test_scores_without_meaning_are_counted(summary):
    assert summary.test.dice["Lesion"].undefined == 11
    assert summary.test.hd95_mm["Lesion"].cases == 31


def test_the_test_cases_stand_worst_first(summary):
    dice = [case.mean_dice for case in summary.test.cases]
    assert dice == sorted(dice)


def test_the_winner_is_what_was_refitted_first(summary, finished):
    assert summary.winner.trial == finished.study.refit.runs[0].trial
    assert summary.winner.configuration == finished.study.trials[summary.winner.trial].configuration


def test_winner_and_standard_are_compared_after_the_most_epochs_that_both_were_validated(summary, finished):
    found, curves = summary.standard, longest_curves(finished.study)
    assert (found.trial, found.epochs) == (0, 65)  # after 67 only the one of them was validated
    dice = [next(p.mean_dice for p in curves[trial] if p.epoch == 65) for trial in (summary.winner.trial, 0)]
    assert [found.winner_dice, found.standard_dice] == dice


def test_a_standard_configuration_that_is_the_best_has_nothing_to_be_compared_with(fresh, tell_study):
    assert summarise(fresh.study, fresh.data).standard is None
    first = tell_study(events=6)
    found = summarise(first.study, first.data)
    assert (found.winner.trial, found.standard) == (0, None)


def test_optimism_is_search_minus_test(summary):
    assert summary.optimism.difference == pytest.approx(summary.winner.dice - summary.test.mean_dice)


def test_warm_up_counts_as_random_and_on_its_own(summary):
    found = summary.proposals
    assert (found.standard, found.model, found.random, found.warm_up, found.fallback) == (1, 15, 29, 21, 1)
    assert found.standard + found.model + found.random + found.fallback + found.grid == len(summary.trials)


def test_budgets_that_had_a_model_are_listed(summary):
    assert summary.proposals.model_budgets == {7: 9, 22: 6}


def test_runs_are_counted_by_what_became_of_them(summary):
    assert summary.runs.model_dump() == {"complete": 64, "failed": 7, "lost": 3, "open": 0}


def test_failures_are_gathered_by_cause_and_message(summary):
    assert {failure.cause for failure in summary.failures} == set(FailureReason)
    diverged = next(f for f in summary.failures if f.cause is FailureReason.NON_FINITE_LOSS)
    assert len(diverged.runs) == 2


def test_refit_epochs_are_not_counted_as_search_epochs(summary, finished):
    assert summary.budget.epochs == finished.study.epochs_spent
    assert summary.budget.refit_epochs == 6 * 200


def test_trials_stand_by_rank_and_those_without_a_result_last(summary):
    ranks = [trial.rank for trial in summary.trials]
    ranked = [rank for rank in ranks if rank is not None]
    assert ranked == list(range(1, len(ranked) + 1))
    assert ranks[len(ranked) :] == [None] * (len(ranks) - len(ranked))


def test_the_summary_survives_its_json(summary):
    assert Summary.model_validate_json(summary.model_dump_json()) == summary


def test_a_study_in_its_search_has_a_best_configuration_and_no_test(halfway):
    found = summarise(halfway.study, halfway.data)
    assert (found.phase, found.succeeded, found.test, found.ensemble) == (Phase.SEARCH, None, None, None)
    assert found.winner is not None


def test_a_failed_study_says_why(failed):
    found = summarise(failed.study, failed.data)
    assert found.succeeded is False
    assert found.stopped_because == "no configuration could be trained"
    assert found.winner is None


def test_a_study_without_test_cases_has_validation_dice(untested):
    found = summarise(untested.study, untested.data)
    assert found.test is None
    assert found.ensemble.validation_mean_dice == pytest.approx(0.883)


def test_an_ensemble_that_was_chosen_by_all_its_cases_leaves_no_note(summary):
    assert (summary.ensemble.scored_cases, summary.ensemble.planned_cases, summary.ensemble.left_out) == (96, 96, ())
    assert not [note for note in summary.notes if "ensemble" in note.text]


def test_what_the_choice_of_the_ensemble_went_without_is_the_last_note(untested):
    def without_some(event):
        if not isinstance(event, EnsembleFinished):
            return event
        return event.model_copy(update={"result": event.result.model_copy(update={"left_out": (3, 8)})})

    study = Study.replay(map(without_some, untested.events))
    found = summarise(study, untested.data)
    assert found.ensemble.left_out == (3, 8)
    assert [note.text for note in found.notes[-2:]] == [
        "the ensemble was chosen on 12 of 96 planned held-out cases: the time was up",
        "the ensemble was chosen without trial 3 and trial 8, having no fold in common with the better configurations",
    ]
    assert found.notes[-1].seconds == study.elapsed_at(study.ended.at) >= found.notes[0].seconds


def test_every_prefix_of_a_study_can_be_summarised(untested):
    for count in range(1, len(untested.events) + 1, 7):
        study = Study.replay(untested.events[:count])
        json.dumps(summarise(study, untested.data).model_dump(mode="json"), allow_nan=False)
