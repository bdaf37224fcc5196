"""The report's page: one file without scripts or references, the answer first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from itertools import groupby

from automonai.domain.run import FailureReason, Origin
from automonai.domain.study import Phase, Study
from automonai.report import figures
from automonai.report.answer import answer_section, configuration_section, cost_section
from automonai.report.markup import Cell, decimal, facts, figure, notice, paragraph, section, table
from automonai.report.pictures import pictures_section
from automonai.report.stylesheet import STYLESHEET
from automonai.report.summary import Failure, Summary, TrialSummary
from automonai.report.words import (
    FAILURE_WORDS,
    HYPERPARAMETER_WORDS,
    counted,
    duration,
    scored_words,
    value_words,
)
from automonai.spec import SamplerName
from automonai.storage.store import Store

_LONGEST_MESSAGE = 400
_MOST_RUNS_NAMED = 5
_BEST_SHOWN = 5
_ORIGINS = "Where the configurations came from"
_TOO_FEW = "Fewer than two configurations have a result, so there is nothing to compare."
_OFF_THE_AXIS = "A triangle at the lower edge stands for a value that lies below it. "


def render_page(summary: Summary, study: Study, store: Store) -> str:
    """Return the page; the same study gives the same text."""
    body = "".join(
        [
            answer_section(summary),
            configuration_section(summary),
            cost_section(summary),
            _curves(summary, study),
            _incumbent(summary, study),
            _importance(summary),
            _parallel(summary, study),
            _pareto(summary),
            _classes(summary),
            pictures_section(summary, store),
            _proposals(summary),
            _failures(summary),
            _ensemble(summary),
            _notes(summary),
            _software(summary),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(summary.study)} – AutoMONAI report</title><style>{STYLESHEET}</style></head>\n<body>\n"
        f"{_header(summary)}<main>\n{body}</main>\n{_footer()}</body></html>\n"
    )


_PHASES = {
    Phase.SEARCH: "Searching",
    Phase.REFIT: "Training the best configurations to the end",
    Phase.ENSEMBLE: "Choosing the ensemble",
}
_LINKS = {
    "answer": "Answer",
    "configuration": "Configuration",
    "cost": "Cost",
    "curves": "Learning curves",
    "incumbent": "Best over time",
    "importance": "Importance",
    "parallel": "All configurations",
    "pareto": "Dice and cost",
    "classes": "Test cases",
    "worst": "Worst cases",
    "proposals": "Proposals",
    "failures": "Failures",
    "ensemble": "Ensemble",
    "notes": "Notes",
    "software": "Software",
}


def _header(summary: Summary) -> str:
    data = summary.dataset
    started = datetime.fromtimestamp(summary.started_at, UTC).strftime("%d %B %Y, %H:%M UTC")
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name in _LINKS.items())
    about = (
        f"{data.name}: {counted(data.development_cases, 'case')} to develop on in {data.folds} folds, "
        f"{counted(data.test_cases, 'case')} set aside for the test. "
        f"Image channels: {', '.join(data.channels)}. Started {started}."
    )
    return (
        f'<header class="page"><p class="kicker">AutoMONAI report</p><h1>{escape(summary.study)}</h1>'
        f"<p>{_state(summary)}</p>{paragraph(about, 'muted small')}"
        f'<nav aria-label="Sections">{links}</nav></header>\n'
    )


def _state(summary: Summary) -> str:
    if summary.succeeded is None:
        return f'<span class="state">Not finished: {_PHASES[summary.phase].lower()}</span>'
    if summary.succeeded:
        tested = "chosen and tested" if summary.test is not None else "chosen, without a test"
        return f'<span class="state">Finished: the ensemble is {tested}</span>'
    return f'<span class="state bad">Failed: {escape(summary.stopped_because)}</span>'


def _footer() -> str:
    text = (
        "Dice measures overlap from 0 (none) to 1 (perfect). This page is for research; it is no medical device and "
        "does not replace a radiologist's reading. The same figures for programs are in report.json."
    )
    return f"<footer>{paragraph(text)}</footer>\n"


def _curves(summary: Summary, study: Study) -> str:
    early = "the search's time was up; a configuration with a single validation is a dot. "
    halved = "it was not among the best of its rung and was stopped to save time, or "
    caption = (
        "How to read it: each line is one configuration as it trains, from left to right; higher is better. Where a "
        f"line ends early {halved if len(summary.rungs) > 1 else ''}{early}"
        "The three best are marked, the others are the paler the lower they rank in the end; a cross ends a "
        f"configuration that failed. The Dice axis need not start at 0. {_OFF_THE_AXIS}"
    )
    return section(
        "curves",
        "Learning curves",
        figure(figures.learning_curves(summary, study), caption, otherwise=_TOO_FEW),
    )


def _incumbent(summary: Summary, study: Study) -> str:
    rungs = len(summary.rungs) > 1
    longer = "It may step down when the best one is trained for longer and does worse. " if rungs else ""
    caption = (
        f"How to read it: each point is a finished training{', its shape tells how long it was' if rungs else ''}; the "
        "line is the best configuration known at that time. Where the line is flat for long, more time bought nothing. "
        f"{longer}{_OFF_THE_AXIS}"
    )
    drawn = figures.incumbent_over_time(summary, study)
    return section("incumbent", "The best configuration over time", figure(drawn, caption, otherwise=_TOO_FEW))


def _importance(summary: Summary) -> str:
    found = summary.importance
    if found is None or found.missing:
        reason = found.missing if found else "It was not measured."
        return section("importance", "What mattered", notice(reason))
    explained = found.explained or 0.0
    quality = (
        f"From {counted(found.results, 'result')} of {counted(found.trials, 'configuration')}, a random forest "
        f"predicts {max(0.0, explained):.0%} of the differences between configurations that it was not shown."
    )
    weak = notice(
        "It learnt too little from so few results: take this order as a hint at most.",
        is_bad=True,
    )
    together = "All budgets count together, each result compared with others of the same length of training. "
    caption = (
        "How to read it: the longer the bar, the more the result depends on that choice, all others being free; bars "
        "near or left of zero cannot be told from chance. A bar may exceed the share that is predicted, since shuffled "
        "values mislead the forest as well. The thin lines show one standard deviation over repeated shuffles, and "
        "nothing of how the bars would differ in another search. "
        f"{_CHANCE if found.results < _FEW_RESULTS else ''}{together if len(summary.rungs) > 1 else ''}"
        "Failed runs do not count."
    )
    return section(
        "importance",
        "What mattered",
        paragraph(quality),
        "" if explained > 0.05 else weak,
        figure(figures.importance_bars(found), caption, otherwise=_TOO_FEW),
    )


_FEW_RESULTS = 100
_CHANCE = (
    "With so few results chance alone makes long bars: in studies of 24 to 46 results, the configurations shuffled "
    "among them, the longest one came to 0.23 to 0.36 in one of twenty cases. Take shorter ones as hints. "
)
"""Measured on four studies of five to eight hyperparameters; to do so in every report would take 4 s to a minute."""


def _parallel(summary: Summary, study: Study) -> str:
    lengths = " Values were reached at different lengths of training."
    caption = (
        "How to read it: follow one line through all axes to read one configuration; every row of axes ends at the "
        "Dice that it reached (at the lowest tick if it is below that). Where the marked and dark lines meet, "
        f"the good configurations agree.{lengths if len(summary.rungs) > 1 else ''}"
    )
    return section(
        "parallel",
        "All configurations",
        figure(figures.parallel_coordinates(summary, study), caption, otherwise=_TOO_FEW),
        _best_table(summary),
    )


def _best_table(summary: Summary) -> str:
    shown = _shown_trials(summary)
    if not shown or not summary.searched:
        return ""
    rows: list[Sequence[str]] = [
        ["Mean Dice in the search", *(decimal(trial.dice) for trial in shown)],
        ["Epochs trained", *(Cell(trial.budget_epochs) for trial in shown)],
        ["Time spent", *(Cell(duration(trial.seconds)) for trial in shown)],
    ]
    for name in summary.searched:
        rows.append([HYPERPARAMETER_WORDS.get(name, name), *(_value(trial, name) for trial in shown)])
    caption = "The best configurations, the best on the left, and the standard one; all others are in report.json."
    return table(["", *(Cell(_trial_words(trial)) for trial in shown)], rows, caption=caption)


def _shown_trials(summary: Summary) -> list[TrialSummary]:
    """Return the best, and the winner and the standard configuration wherever they rank; none without a result.

    They are so few that their columns fit on paper.
    """
    ranked = [trial for trial in summary.trials if trial.rank]
    if not ranked:
        return []
    winner = None if summary.winner is None else summary.winner.trial
    always = [trial for trial in summary.trials if trial.trial == winner or trial.origin is Origin.STANDARD]
    best = [trial for trial in ranked if trial not in always]
    best.sort(key=lambda trial: trial.rank or math.inf)
    shown = [*always, *best[: _BEST_SHOWN - len(always)]]
    return [trial for trial in summary.trials if trial in shown]


def _trial_words(trial: TrialSummary) -> str:
    return f"Standard (trial {trial.trial})" if trial.origin is Origin.STANDARD else f"Trial {trial.trial}"


def _value(trial: TrialSummary, name: str) -> Cell:
    return Cell(value_words(name, getattr(trial.configuration, name)))


def _pareto(summary: Summary) -> str:
    shape = "The shape tells how many epochs a configuration was trained for. " if len(summary.rungs) > 1 else ""
    caption = (
        "How to read it: further up is better, further left is cheaper. Circled configurations form the Pareto front: "
        f"no other one is both cheaper and better. {shape}{_OFF_THE_AXIS}"
    )
    drawn = figures.dice_against_cost(summary)
    return section("pareto", "Dice against cost", figure(drawn, caption, otherwise=_TOO_FEW))


def _classes(summary: Summary) -> str:
    title = "Test cases, class by class"
    if summary.test is None:
        return section("classes", title, notice(_why_no_test(summary)))
    caption = (
        "How to read it: each dot is one patient. The box holds the middle half of the patients, the line in it is the "
        "median, the diamond the mean; the whiskers reach to the last patient within 1.5 box lengths. Patients who do "
        "not have a structure, and in whom none was found, have no dot for it."
    )
    drawn = figures.class_boxes(summary.test)
    return section("classes", title, figure(drawn, caption, otherwise="No test case contains any of the classes."))


def _why_no_test(summary: Summary) -> str:
    if summary.dataset.test_cases == 0:
        return "No cases were set aside for a test, so there is nothing to show here."
    if summary.succeeded is None:
        return "The test cases are scored once, at the very end; the study is not there yet."
    return "The study ended before the test cases were scored."


def _proposals(summary: Summary) -> str:
    found = summary.proposals
    caption = "How to read it: each bar counts configurations by where they came from."
    if summary.sampler != SamplerName.BOHB:
        drawn = figure(figures.proposal_bars(summary), caption, otherwise="Nothing has been proposed yet.")
        return section("proposals", _ORIGINS, drawn, paragraph("This search method has no model."))
    caption += (
        " A search that learns has many proposed by the model; one that fell back to chance because the model failed "
        "is counted in a bar of its own."
    )
    if found.model_budgets:
        budgets = ", ".join(f"{epochs} epochs ({count})" for epochs, count in found.model_budgets.items())
        models = f"Budgets whose model proposed configurations, and how many: {budgets}."
    else:
        models = "No budget had enough results for a model to propose from."
    fallen = "No proposal fell back to chance because of an error."
    if found.fallback:
        fallen = f"{counted(found.fallback, 'proposal')} fell back to chance because the model failed; see the notes."
    return section(
        "proposals",
        _ORIGINS,
        figure(figures.proposal_bars(summary), caption, otherwise="Nothing has been proposed yet."),
        paragraph(models),
        notice(fallen, is_bad=True) if found.fallback else paragraph(fallen),
    )


def _failures(summary: Summary) -> str:
    runs = summary.runs
    lost = f"a run was lost to the machine {counted(runs.lost, 'time')}" if runs.lost else "none was lost"
    counts = f"{counted(runs.complete, 'run')} completed, {runs.failed} failed, {runs.open} not finished; {lost}."
    rows = [_failure_row(cause, list(failures)) for cause, failures in groupby(summary.failures, lambda f: f.cause)]
    caption = "A failed run counts as a bad configuration, unless it was lost to the machine, and is not tried again."
    listed = (
        table(["Cause", Cell("Runs"), "What was reported", "Which"], rows, caption=caption)
        if rows
        else paragraph("No run failed.")
    )
    return section("failures", "What failed, and why", paragraph(counts), listed)


def _failure_row(cause: FailureReason, failures: Sequence[Failure]) -> Sequence[str]:
    """Return the row of a cause; most messages name numbers of their own, and all of them are in report.json."""
    runs = [run for failure in failures for run in failure.runs]
    more = f" (and {counted(len(failures) - 1, 'other message')})" if len(failures) > 1 else ""
    return [FAILURE_WORDS[cause], Cell(len(runs)), _shortened(failures[0].message) + more, _named(runs)]


def _shortened(message: str) -> str:
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[: _LONGEST_MESSAGE - 1]}…"


def _named(runs: Sequence[str]) -> str:
    more = len(runs) - _MOST_RUNS_NAMED
    return ", ".join(runs[:_MOST_RUNS_NAMED]) + (f" and {more} more" if more > 0 else "")


def _ensemble(summary: Summary) -> str:
    title = "The ensemble"
    found = summary.ensemble
    if found is None:
        return section("ensemble", title, notice("No ensemble has been chosen" + _yet(summary)))
    rows = [
        [m.run_id, Cell(m.trial), Cell(m.fold), Cell(f"{m.weight:.0%}" if m.weight >= 0.01 else "<1%")]
        for m in found.members
    ]
    others = len(found.largest_component) < len(summary.dataset.classes)
    component = (
        f"Of {', '.join(found.largest_component)} only the largest connected piece is kept, since that helped on "
        f"validation cases{'; of all other classes every piece is kept' if others else ''}."
        if found.largest_component
        else "All pieces of every class are kept: only the largest connected one was no better on validation cases."
    )
    return section(
        "ensemble",
        title,
        paragraph("Prediction averages these networks by their weights; each was trained without its own fold."),
        table(["Network", Cell("Trial"), Cell("Held-out fold"), Cell("Weight")], rows),
        paragraph(component),
        facts(_validation_facts(summary)),
    )


def _validation_facts(summary: Summary) -> list[tuple[str, str]]:
    """Return how the choice came out on held-out cases, and how without it where there was one."""
    found = summary.ensemble
    if found is None:
        return []
    rows: list[tuple[str, str]] = []
    several = len({member.trial for member in found.members}) > 1
    alone = found.single_validation_dice
    if alone is not None and (several or found.largest_component):
        rows.append(("Dice on held-out cases, best configuration by itself", f"{alone:.3f}, all pieces kept"))
    if found.validation_mean_dice is not None:
        same = f"the same {scored_words(found)} cases" if found.scored_cases else "the same cases"
        networks = "the networks that had" if several else "the network that had"
        value = f"{found.validation_mean_dice:.3f}, each case by {networks} not seen it; "
        rows.append(("Dice on held-out cases, as chosen", f"{value}chosen on {same}, so slightly too good"))
    if found.scored_cases:
        rows.append(("Held-out cases by which it was chosen", scored_words(found)))
    return rows


def _yet(summary: Summary) -> str:
    return " yet: it comes after the refit." if summary.succeeded is None else "; the study ended before."


def _notes(summary: Summary) -> str:
    if not summary.notes:
        return section("notes", "Notes", paragraph("Nothing fell back and nothing was lost."))
    rows = [[Cell(duration(note.seconds)), note.text] for note in summary.notes]
    caption = "Everything that fell back or was lost, with the time since the study started."
    return section("notes", "Notes", table([Cell("At"), "What happened"], rows, caption=caption))


def _software(summary: Summary) -> str:
    rows = [*summary.software.items(), ("Devices", ", ".join(summary.devices) or "none used yet")]
    return section("software", "Software and devices", facts(rows))
