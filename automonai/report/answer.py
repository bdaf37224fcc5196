"""The page's first sections: how good, which configuration, at what cost."""

from __future__ import annotations

from collections.abc import Sequence

from automonai.domain.refit import ALIKE
from automonai.domain.run import Origin
from automonai.report.intervals import Interval
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
    is_alike,
    memory,
    overtaken_words,
    own_network_words,
    scored_words,
    value_words,
)
from automonai.spec import SamplerName

_VERY_FEW_CASES, _MANY_CASES = 10, 60
"""Below the first intervals are rough; below the second they miss what happens to one patient in twenty."""
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
        value, more = ensemble.validation_mean_dice, f"on the {_held_out_words(ensemble)} of the choice; no test"
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
    known, cases = (sum(interval.cases for interval in of.values()) for of in (test.hd95_mm, test.dice))
    total: Sequence[str] = [
        "Mean over classes",
        decimal(test.mean_dice),
        Cell(bounds(test.mean_dice_low, test.mean_dice_high)),
        _distance(_mean(test.hd95_mm), known, cases),
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
    dice, distance = test.dice[name], test.hd95_mm[name]
    return [
        name,
        decimal(dice.mean),
        span(dice),
        _distance(distance.mean, distance.cases, dice.cases),
        decimal(test.surface_dice[name].mean),
        Cell(dice.cases),
    ]


def _distance(mean: float | None, known: int, cases: int) -> Cell:
    """Return a mean distance; with in how many of the cases there is one, if that is not all."""
    return Cell(f"{decimal(mean, 1)}{f' ({known} of {cases})' if known < cases else ''}")


def _mean(intervals: dict[str, Interval]) -> float | None:
    means = [interval.mean for interval in intervals.values() if interval.mean is not None]
    return sum(means) / len(means) if means else None


def _reading(test: HeldOutScores) -> str:
    cases = min((interval.cases for interval in test.dice.values() if interval.cases), default=0)
    text = (
        "Dice is the overlap with the reference, from 0 to 1. HD95 is the distance in millimetres within which 95 % of "
        "the two surfaces lie from each other; less is better. Surface Dice is the share of the surfaces that agree to "
        f"within {TOLERANCE_MM:g} mm. The interval tells how far the mean may be off because only these patients were "
        f"tested{_coverage(cases)}; how much another training would differ it does not tell."
    )
    absent = [f"{name} ({i.undefined})" for name, i in test.dice.items() if i.undefined]
    if absent:
        text += f" Cases in which a structure is neither present nor found do not count for it: {', '.join(absent)}."
    few = (
        f"With only {counted(cases, 'test case')} {_of_a_class(test, cases)}the intervals are rough, and too narrow "
        "where the network fails on few patients: these cases may hold none of them."
    )
    is_rough = 1 < cases < _VERY_FEW_CASES
    return paragraph(text, "small muted") + _unmatched(test) + (notice(few) if is_rough else "")


def _of_a_class(test: HeldOutScores, cases: int) -> str:
    """Return which class has so few cases, if others have more."""
    names = [name for name, interval in test.dice.items() if interval.cases == cases]
    return "" if cases == len(test.cases) else f"that {'have' if cases > 1 else 'has'} {' or '.join(names)} "


def _coverage(cases: int) -> str:
    """Return how far to trust the intervals, as their module measured."""
    if cases < _VERY_FEW_CASES:
        return ""
    narrow = (
        "; fewer where the network fails on few patients, of whom these may hold none" if cases < _MANY_CASES else ""
    )
    return f" (of intervals made in this way about 95 in 100 hold the true mean{narrow})"


def _unmatched(test: HeldOutScores) -> str:
    """Return of how many cases HD95 keeps silent though a structure is missing or made up."""
    counts = {name: dice.cases - test.hd95_mm[name].cases for name, dice in test.dice.items()}
    named = ", ".join(f"{name} ({count})" for name, count in counts.items() if count)
    if not named:
        return ""
    return notice(
        f"HD95 looks better than it is. It leaves out the cases in which a structure was missed altogether, or found "
        f"where there is none, since there is no distance to measure: {named}. Their Dice is 0 and counts."
    )


def _optimism(summary: Summary) -> str:
    found, winner, ensemble = summary.optimism, summary.winner, summary.ensemble
    if found is None or winner is None or ensemble is None:
        return ""
    text = (
        f"In the search one network of the winning configuration had a mean Dice of {found.search_dice:.3f} after "
        f"{counted(winner.budget_epochs, 'epoch')}, on the validation cases by which it was chosen. "
    )
    if is_of_search := own_network_words(ensemble):
        text += f"It has {found.test_dice:.3f} on the test cases, the score to trust: {is_of_search}."
    else:
        text += (
            f"The ensemble, trained to the end, has {found.test_dice:.3f} on the test cases. The two differ in "
            "networks, training and patients and cannot be compared strictly; the test score is the one to trust."
        )
    return paragraph(text)


def _no_test(summary: Summary) -> str:
    reason = (
        "No cases were set aside for a test."
        if summary.dataset.test_cases == 0
        else "The test cases have not been scored."
    )
    return notice(
        f"{reason} What follows was measured on cases that each network had not trained on, but by which the ensemble "
        "was chosen, so it is slightly too good; each case was segmented by one network of each configuration, not by "
        "all of them."
    )


def _cut_short(summary: Summary) -> str:
    words = "" if summary.ensemble is None else cut_short_words(summary.ensemble)
    return notice(f"{words.capitalize()}.") if words else ""


def _held_out_words(ensemble: EnsembleSummary) -> str:
    return f"{scored_words(ensemble)} held-out cases" if ensemble.scored_cases else "held-out cases"


def _validation_table(summary: Summary) -> str:
    ensemble = summary.ensemble
    if ensemble is None or not ensemble.validation_dice:
        return ""
    rows = [[name, decimal(dice)] for name, dice in ensemble.validation_dice.items()]
    return table(
        ["Class", Cell("Dice")],
        rows,
        caption=f"On the {_held_out_words(ensemble)} by which the ensemble was chosen.",
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
        *(
            paragraph(text)
            for tell in (_of_equals, _beside_the_standard, _in_the_ensemble)
            if (text := tell(summary, winner))
        ),
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


def _of_equals(summary: Summary, winner: Winner) -> str:
    """Return why the winner is not the one with the best score, where that is so."""
    first = summary.best_trial
    if first is None or first.trial == winner.trial or first.dice is None:
        return ""
    why = overtaken_words(summary)
    if summary.objective == "loss" and first.loss is not None and winner.loss is not None:
        losses = f"{first.loss:.4f} where the winner has {winner.loss:.4f}"
        return f"The lowest loss of the search is that of trial {first.trial}, {losses}; {why}."
    return f"The best score of the search is that of trial {first.trial}, {first.dice:.3f}; {why}."


def _beside_the_standard(summary: Summary, winner: Winner) -> str:
    """Return whether the search has found anything better than what it began with."""
    known = sum(trial.rank is not None for trial in summary.trials)
    first = summary.best_trial
    if first is None or known < 2:
        return ""
    if winner.origin is Origin.STANDARD:
        if first.trial != winner.trial and not is_alike(first, winner):
            return "It is the standard configuration: in the end the search has found nothing better."
        better = "better" if first.trial == winner.trial else "clearly better"
        return f"None of the {known} configurations with a result is {better} than the standard one."
    found = summary.standard
    if found is None:
        has_result = any(trial.origin is Origin.STANDARD and trial.rank is not None for trial in summary.trials)
        why = "was never scored after as many epochs as the winner" if has_result else "has no result"
        return f"The winner cannot be compared with the standard configuration, which {why}."
    lead = found.winner_dice - found.standard_dice
    text = (
        f"After the same {counted(found.epochs, 'epoch')} on the same validation cases the standard configuration "
        f"(trial {found.trial}) reached {found.standard_dice:.3f} and the winner {found.winner_dice:.3f}"
    )
    if found.epochs < winner.budget_epochs:
        text += ", later than which they were not compared"
    elif lead < ALIKE:
        return f"{text}: the search has found nothing that is clearly better than the standard one."
    if lead < ALIKE:
        return f"{text}."
    best = "the best" if first.trial == winner.trial else "one of the best"
    return f"{text}. Part of this lead of {lead:.3f} is luck, for the winner is {best} of {known}."


def _in_the_ensemble(summary: Summary, winner: Winner) -> str:
    """Return what the ensemble made of the winner, where it is not of the winner's networks alone."""
    trials = [] if summary.ensemble is None else sorted({member.trial for member in summary.ensemble.members})
    others = " and ".join(f"trial {trial}" for trial in trials if trial != winner.trial)
    if not others:
        return ""
    return f"The ensemble averages its networks with those of {others}, since that did best on held-out cases."


def _rungs(summary: Summary) -> str:
    *lower, highest = summary.rungs
    epochs = counted(highest, "epoch")
    return f"after {', '.join(map(str, lower))} and {epochs}" if lower else f"after {epochs}"


def cost_section(summary: Summary) -> str:
    """Return what the study cost, and why it stopped where it did."""
    budget, winner = summary.budget, summary.winner
    sampler = SAMPLER_WORDS[SamplerName(summary.sampler)]
    rows = [
        ("Search method", f"{sampler}; configurations were compared {_rungs(summary)}"),
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
        each = winner.configuration.passes
        flips = f"; predictions mirror it, which takes {each} times as long" if each > 1 else ""
        words = f"{time}, by one network on the device of one run{flips}"
        rows.append(("Predicting and scoring a validation case", words))
    return section("cost", "What it cost", facts(rows), paragraph(_COST_TERMS, "small muted"))


_COST_TERMS = (
    "In an epoch a network trains on one patch of each training case. A rung is a number of epochs after which "
    "configurations are compared, and only the best train on. A fold is a part of the cases that is held out of a "
    "network's training and scores it. The refit trains the winner to the end, one network for each of several folds."
)


def _search_time(summary: Summary) -> str:
    seconds = summary.budget.search_seconds
    if seconds is None:
        return "goes on"
    return f"{duration(seconds)}; it ended because {summary.search_stopped_because}"
