"""The page's first sections: how good, which configuration, at what cost."""

from __future__ import annotations

from collections.abc import Sequence

from automonai.report.intervals import RESAMPLES, Interval
from automonai.report.markup import (
    Cell,
    bounds,
    decimal,
    facts,
    notice,
    paragraph,
    section,
    span,
    table,
    tile,
)
from automonai.report.summary import EnsembleSummary, HeldOutScores, Spent, Summary, Winner
from automonai.report.words import (
    HYPERPARAMETER_WORDS,
    ORIGIN_WORDS,
    SAMPLER_WORDS,
    counted,
    cut_short_words,
    describe,
    duration,
    memory,
    scored_words,
    value_words,
)
from automonai.spec import SamplerName

_FEW_CASES = 10
TOLERANCE_MM = 1.0
"""Tolerance of the surface Dice by which the ensemble is scored."""


def answer_section(summary: Summary) -> str:
    """Return the answer: test scores, or else what is known so far and what is not."""
    if summary.test is not None:
        content = [_test_table(summary.test), _reading(summary.test), _optimism(summary), _cut_short(summary)]
    elif summary.ensemble is not None:
        content = [_no_test(summary), _cut_short(summary), _validation_table(summary)]
    else:
        content = [_not_there_yet(summary)]
    return section("answer", "The answer", _tiles(summary), *content, is_first=True)


def _tiles(summary: Summary) -> str:
    runs, budget = summary.runs, summary.budget
    boxes = [
        _dice_tile(summary),
        tile("Wall-clock time", duration(budget.seconds), _limits(budget), is_words=True),
        tile(
            "Epochs trained",
            f"{budget.epochs + budget.refit_epochs:,}",
            f"{budget.epochs:,} in the search, {budget.refit_epochs:,} in the refit",
        ),
        tile(
            "Runs completed",
            f"{runs.complete:,}",
            f"{runs.failed:,} failed, {runs.lost:,} lost; {counted(len(summary.trials), 'configuration')} tried",
        ),
    ]
    return f'<div class="tiles">{"".join(boxes)}</div>'


def _dice_tile(summary: Summary) -> str:
    test, ensemble, winner = summary.test, summary.ensemble, summary.winner
    if test is not None and test.mean_dice is not None:
        interval = bounds(test.mean_dice_low, test.mean_dice_high)
        return tile("Mean Dice on test cases", f"{test.mean_dice:.3f}", f"95 % interval {interval}", is_main=True)
    if ensemble is not None and ensemble.validation_mean_dice is not None:
        value, more = ensemble.validation_mean_dice, f"of the ensemble, on {_held_out_words(ensemble)}; no test"
        return tile("Mean Dice on validation", f"{value:.3f}", more, is_main=True)
    if winner is not None and winner.dice is not None:
        more = f"best so far, after {counted(winner.budget_epochs, 'epoch')}; not tested"
        return tile("Mean Dice on validation", f"{winner.dice:.3f}", more, is_main=True)
    return tile("Mean Dice", "–", "no result", is_main=True)


def _limits(budget: Spent) -> str:
    limits = []
    if budget.limit_seconds is not None:
        limits.append(duration(budget.limit_seconds))
    if budget.limit_epochs is not None:
        limits.append(counted(budget.limit_epochs, "epoch"))
    if budget.limit_iterations is not None:
        limits.append(counted(budget.limit_iterations, "iteration"))
    return f"limit: {' or '.join(limits)}"


def _test_table(test: HeldOutScores) -> str:
    rows = [_class_row(name, test) for name in test.dice]
    total: Sequence[str] = [
        "Mean over classes",
        decimal(test.mean_dice),
        Cell(bounds(test.mean_dice_low, test.mean_dice_high)),
        decimal(_mean(test.hd95_mm), 1),
        decimal(_mean(test.surface_dice)),
        Cell(""),
    ]
    head = [
        "Class",
        Cell("Dice"),
        Cell("95 % interval"),
        Cell("HD95 in mm"),
        Cell("Surface Dice"),
        Cell("Cases"),
    ]
    caption = f"The ensemble on {counted(len(test.cases), 'test case')} that nothing before had seen."
    return table(head, rows, caption=caption, total=total)


def _class_row(name: str, test: HeldOutScores) -> Sequence[str]:
    dice, distance, surface = test.dice[name], test.hd95_mm[name], test.surface_dice[name]
    undefined = distance.undefined - dice.undefined
    cases = f"{dice.cases}" + (f" ({undefined} without HD95)" if undefined > 0 else "")
    return [
        name,
        decimal(dice.mean),
        span(dice),
        decimal(distance.mean, 1),
        decimal(surface.mean),
        Cell(cases),
    ]


def _mean(intervals: dict[str, Interval]) -> float | None:
    means = [interval.mean for interval in intervals.values() if interval.mean is not None]
    return sum(means) / len(means) if means else None


def _reading(test: HeldOutScores) -> str:
    text = (
        "Dice is the overlap with the reference, from 0 to 1. HD95 is the distance in millimetres within which 95 % of "
        "the two surfaces lie from each other; less is better. Surface Dice is the share of the surfaces that agree to "
        f"within {TOLERANCE_MM:g} mm. The interval tells how far the mean may be off because only these patients were "
        f"tested: of intervals made in this way about 95 in 100 hold the true mean (bootstrap over cases, "
        f"{RESAMPLES:,} resamples)."
    )
    absent = [f"{name} ({i.undefined})" for name, i in test.dice.items() if i.undefined]
    if absent:
        text += f" Cases in which a structure is neither present nor found do not count for it: {', '.join(absent)}."
    few = f"With only {counted(len(test.cases), 'test case')} these intervals are rough."
    return paragraph(text, "small muted") + (notice(few) if len(test.cases) < _FEW_CASES else "")


def _optimism(summary: Summary) -> str:
    found, winner = summary.optimism, summary.winner
    if found is None or winner is None:
        return ""
    direction = "higher than" if found.difference > 0 else "lower than"
    why = " Being chosen makes a score look better than it is." if found.difference > 0 else ""
    text = (
        f"In the search the winner reached {found.search_dice:.3f} after "
        f"{counted(winner.budget_epochs, 'epoch')} on the cases by which it was chosen, "
        f"{abs(found.difference):.3f} {direction} the ensemble's {found.test_dice:.3f} here.{why} "
        "The test score is the one to trust."
    )
    return paragraph(text)


def _no_test(summary: Summary) -> str:
    reason = (
        "No cases were set aside for a test."
        if summary.dataset.test_cases == 0
        else "The test cases have not been scored."
    )
    return notice(
        f"{reason} What follows was measured on cases that each network had not trained on, but by which the search "
        "chose; on new patients expect somewhat less."
    )


def _cut_short(summary: Summary) -> str:
    words = "" if summary.ensemble is None else cut_short_words(summary.ensemble)
    return notice(f"{words.capitalize()}.") if words else ""


def _held_out_words(ensemble: EnsembleSummary) -> str:
    return f"{scored_words(ensemble)} held-out cases" if cut_short_words(ensemble) else "held-out folds"


def _validation_table(summary: Summary) -> str:
    ensemble = summary.ensemble
    if ensemble is None or not ensemble.validation_dice:
        return ""
    rows = [[name, decimal(dice)] for name, dice in ensemble.validation_dice.items()]
    return table(
        ["Class", Cell("Dice")],
        rows,
        caption=f"The ensemble on {_held_out_words(ensemble)}.",
        total=["Mean over classes", decimal(ensemble.validation_mean_dice)],
    )


def _not_there_yet(summary: Summary) -> str:
    classes = ", ".join(summary.dataset.classes.values())
    if summary.succeeded is False:
        return notice(
            f"The study ended without a result: {summary.stopped_because}. There is no ensemble and no test score for "
            f"{classes}. What failed, and why, stands further down.",
            is_bad=True,
        )
    return notice(
        f"The study is not finished. There is no ensemble and no test score yet for {classes}; both come once the "
        "search and the refit are done. What follows is the state so far."
    )


def configuration_section(summary: Summary) -> str:
    """Return the winning configuration in plain words and in figures."""
    winner = summary.winner
    title = "The winning configuration" if summary.succeeded else "The best configuration so far"
    if winner is None:
        return section("configuration", title, notice("No configuration has a result."))
    sentences = " ".join(describe(winner.configuration))
    values = [
        [HYPERPARAMETER_WORDS[name], value_words(name, value), "searched" if name in summary.searched else "fixed"]
        for name, value in dict(winner.configuration).items()
    ]
    return section(
        "configuration",
        title,
        paragraph(_origin(winner)),
        paragraph(sentences),
        table(["Choice", "Value", "In this study"], values),
    )


def _origin(winner: Winner) -> str:
    text = f"Trial {winner.trial} ({ORIGIN_WORDS[winner.origin].lower()})"
    if winner.dice is not None:
        text += (
            f" reached a mean Dice of {winner.dice:.3f} after {counted(winner.budget_epochs, 'epoch')} in the search"
        )
    if winner.parameters is not None:
        text += f"; its network has {winner.parameters:,} weights"
    return f"{text}."


def _rungs(summary: Summary) -> str:
    *lower, highest = summary.rungs
    return ", ".join([*map(str, lower), counted(highest, "epoch")])


def cost_section(summary: Summary) -> str:
    """Return what the study cost, and why it stopped where it did."""
    budget, winner = summary.budget, summary.winner
    sampler = SAMPLER_WORDS[SamplerName(summary.sampler)]
    rows = [
        ("Search method", f"{sampler}, trained for {_rungs(summary)}"),
        ("Wall-clock time in all", duration(budget.seconds)),
        ("Of it the search", _search_time(summary)),
        ("Training time, all runs added up", duration(budget.run_seconds)),
        ("Epochs", f"{budget.epochs:,} in the search, {budget.refit_epochs:,} in the refit"),
        ("Budget", _limits(budget)),
        ("The refit", summary.refit_because or "not chosen yet"),
    ]
    if budget.peak_memory_bytes is not None:
        rows.append(("Largest memory of any one run", memory(budget.peak_memory_bytes)))
    if winner is not None and winner.prediction_seconds_per_case is not None:
        time = duration(winner.prediction_seconds_per_case)
        rows.append(("Prediction by one network", f"{time} per validation case"))
    return section("cost", "What it cost", facts(rows))


def _search_time(summary: Summary) -> str:
    seconds = summary.budget.search_seconds
    if seconds is None:
        return "goes on"
    return f"{duration(seconds)}; it ended because {summary.search_stopped_because}"
