from copy import deepcopy

import pytest
from matplotlib.figure import Figure

from automonai.domain.configuration import Configuration
from automonai.domain.events import RunFinished
from automonai.domain.run import FailureReason, Origin, Result, Run, RunState
from automonai.report import summarise
from automonai.report.drawing import (
    draw_points,
    draw_svg,
    label_of,
    log_seconds_axis,
    range_of_the_best,
    short_duration,
)
from automonai.report.figures import (
    dice_against_cost,
    incumbent_moments,
    incumbent_over_time,
    learning_curves,
    pareto_front,
)
from automonai.report.summary import TrialSummary


def trial(number, seconds, dice):
    return TrialSummary(
        trial=number,
        rank=None,
        origin=Origin.RANDOM,
        model_budget_epochs=None,
        bracket=0,
        budget_epochs=7,
        loss=1 - dice,
        dice=dice,
        epochs=7,
        seconds=seconds,
        failure=None,
        refit=None,
        configuration=Configuration(),
    )


def test_the_pareto_front_holds_what_nothing_beats_in_both():
    trials = [trial(0, 10, 0.5), trial(1, 20, 0.4), trial(2, 20, 0.7), trial(3, 30, 0.7), trial(4, 40, 0.9)]
    assert [member.trial for member in pareto_front(trials)] == [0, 2, 4]


def test_the_incumbent_ends_at_the_best_trial_of_the_ranking(finished):
    moments = incumbent_moments(finished.study)
    assert moments[-1].best == finished.study.incumbent[1].mean_dice
    assert [m.seconds for m in moments] == sorted(m.seconds for m in moments)


def test_the_incumbent_falls_back_when_the_best_fails_in_a_longer_training(finished):
    study = deepcopy(finished.study)
    trial, result = study.incumbent
    longer = Run(trial=trial.number, budget_epochs=10 * result.curve_epochs)
    failed = Result(run_id=longer.id, state=RunState.FAILED, reason=FailureReason.NON_FINITE_LOSS)
    study.apply(RunFinished(at=study.last_event_at, run=longer, result=failed))
    assert study.incumbent[0] != trial
    assert incumbent_moments(study)[-1].best == study.incumbent[1].mean_dice
    assert incumbent_over_time(summarise(study, finished.data), study)


def test_the_axis_leaves_out_the_lowest_quarter_only_where_it_takes_most_of_the_room():
    assert range_of_the_best([0.0, 0.8, 0.85, 0.86, 0.9]) == (0.8, 0.9)
    assert range_of_the_best([0.75, 0.8, 0.85, 0.86, 0.9]) == (0.75, 0.9)
    assert range_of_the_best([0.7]) == (0.7, 0.7)


def test_what_lies_below_the_axis_is_drawn_as_a_triangle_at_its_edge():
    axes = Figure().subplots()
    axes.set_ylim(0.5, 1.0)
    draw_points(axes, [(1, 0.7), (2, 0.2), (3, 0.5)], "o", color="black")
    shown = {line.get_marker(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert shown["o"] == [(1, 0.7), (3, 0.5)]
    assert shown["v"] == [(2, pytest.approx(0.509))]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (1, 60, ["1 s", "2 s", "5 s", "10 s", "20 s", "30 s", "1 min"]),
        (12, 16, ["12 s", "16 s"]),
        (13.1, 13.2, ["13 s"]),
    ],
)
def test_a_logarithmic_axis_of_seconds_has_its_ends_where_there_is_no_round_duration(low, high, labels):
    axes = Figure().subplots()
    log_seconds_axis(axes, low, high)
    assert [text.get_text() for text in axes.get_xticklabels()] == labels


def test_a_single_configuration_has_nothing_to_be_compared_with(tell_study):
    told = tell_study(events=6)
    summary = summarise(told.study, told.data)
    assert [trial.trial for trial in summary.trials if trial.rank] == [0]
    assert learning_curves(summary, told.study) == ""
    assert incumbent_over_time(summary, told.study) == ""
    assert dice_against_cost(summary) == ""


def test_where_rungs_are_few_the_first_validations_are_ticks(finished):
    summary = summarise(finished.study, finished.data)
    assert "(ticks: the budgets of the search)" in learning_curves(summary, finished.study)
    two = learning_curves(summary.model_copy(update={"rungs": (67, 200)}), finished.study)
    assert "(ticks: the budgets of the search and first validations)" in two


def test_a_long_name_is_cut_to_two_lines():
    label = label_of("Left ventricle of the heart including papillary muscles and trabeculations")
    assert label.count("\n") == 1
    assert label.endswith("…")
    assert max(map(len, label.split("\n"))) <= 24


def test_a_name_without_spaces_is_cut_as_well():
    assert max(map(len, label_of("x" * 100).split("\n"))) <= 24


def test_a_short_name_stays():
    assert label_of("Aorta") == "Aorta"


def test_round_durations_are_short():
    assert [short_duration(s) for s in (0, 0.5, 30, 90, 5400, 86400)] == [
        "0",
        "0.5 s",
        "30 s",
        "1.5 min",
        "1.5 h",
        "1 d",
    ]


def test_drawings_are_the_same_each_time_and_keep_text_as_text():
    def draw(figure):
        figure.subplots().set_title("Dice & <cost> $x$")

    first, second = (draw_svg("one", draw, height_inches=2, description='a "test"') for _ in range(2))
    assert first == second
    assert "Dice &amp; &lt;cost&gt; $x$" in first
    assert "http" not in first
    assert 'id="one-' in first
    assert 'aria-label="a &quot;test&quot;"' in first
