from automonai.domain.configuration import Configuration
from automonai.domain.run import Origin
from automonai.report.drawing import draw_svg, label_of, short_duration
from automonai.report.figures import incumbent_moments, pareto_front
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
        configuration=Configuration(),
    )


def test_the_pareto_front_holds_what_nothing_beats_in_both():
    trials = [trial(0, 10, 0.5), trial(1, 20, 0.4), trial(2, 20, 0.7), trial(3, 30, 0.7), trial(4, 40, 0.9)]
    assert [member.trial for member in pareto_front(trials)] == [0, 2, 4]


def test_the_incumbent_ends_at_the_best_trial_of_the_ranking(finished):
    moments = incumbent_moments(finished.study)
    assert moments[-1].best == finished.study.incumbent[1].mean_dice
    assert [m.seconds for m in moments] == sorted(m.seconds for m in moments)


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
