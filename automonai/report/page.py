"""The report's page: one file without scripts or references, the answer first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from automonai.domain.study import Phase, Study
from automonai.report import figures
from automonai.report.answer import answer_section, configuration_section, cost_section
from automonai.report.markup import Cell, decimal, facts, figure, notice, paragraph, section, table
from automonai.report.pictures import pictures_section
from automonai.report.stylesheet import STYLESHEET
from automonai.report.summary import Summary, TrialSummary
from automonai.report.words import (
    FAILURE_WORDS,
    HYPERPARAMETER_WORDS,
    counted,
    duration,
    scored_words,
    value_words,
)
from automonai.storage.store import Store

_LONGEST_MESSAGE = 400
_MOST_RUNS_NAMED = 5
_BEST_SHOWN = 5
_NO_RUN = "No run of the search has completed, so there is nothing to draw."


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
        return f'<span class="state">Finished: {escape(summary.stopped_because)}</span>'
    return f'<span class="state bad">Failed: {escape(summary.stopped_because)}</span>'


def _footer() -> str:
    text = (
        "Dice measures overlap from 0 (none) to 1 (perfect). This page is for research; it is no medical device and "
        "does not replace a radiologist's reading. The same figures for programs are in report.json."
    )
    return f"<footer>{paragraph(text)}</footer>\n"


def _curves(summary: Summary, study: Study) -> str:
    halved = "A line that ends early was not among the best of its rung and was stopped to save time. "
    caption = (
        "How to read it: each line is one configuration as it trains, from left to right; higher is better. "
        f"{halved if len(summary.rungs) > 1 else ''}The three best are marked, "
        "the others are the paler the lower they rank in the end; a cross ends a configuration that failed. The "
        "Dice axis need not start at 0."
    )
    return section(
        "curves",
        "Learning curves",
        figure(figures.learning_curves(summary, study), caption, otherwise=_NO_RUN),
    )


def _incumbent(summary: Summary, study: Study) -> str:
    caption = (
        "How to read it: each point is a finished training, its shape tells how long it was; the line is the best "
        "configuration known at that time. Where the line is flat for long, more time bought nothing. It may step down "
        "when the best one is trained for longer and does worse."
    )
    drawn = figures.incumbent_over_time(summary, study)
    return section("incumbent", "The best configuration over time", figure(drawn, caption, otherwise=_NO_RUN))


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
    caption = (
        "How to read it: the longer the bar, the more the result depends on that choice, all others being free; bars "
        "near or left of zero cannot be told from chance. The thin lines show one standard deviation over repeated "
        "shuffles. All budgets count together, each result compared with others of the same length of training; failed "
        "runs do not count."
    )
    return section(
        "importance",
        "What mattered",
        paragraph(quality),
        "" if explained > 0.05 else weak,
        figure(figures.importance_bars(found), caption, otherwise=_NO_RUN),
    )


def _parallel(summary: Summary, study: Study) -> str:
    caption = (
        "How to read it: follow one line through all axes to read one configuration; every row of axes ends at the "
        "Dice that it reached (the weakest tenth is drawn at the lowest tick). Where the marked and dark lines meet, "
        "the good configurations agree. Values were reached at different lengths of training."
    )
    return section(
        "parallel",
        "All configurations",
        figure(
            figures.parallel_coordinates(summary, study),
            caption,
            otherwise="Fewer than two configurations have a result.",
        ),
        _best_table(summary),
    )


def _best_table(summary: Summary) -> str:
    best = [trial for trial in summary.trials if trial.rank is not None][:_BEST_SHOWN]
    if not best or not summary.searched:
        return ""
    rows: list[Sequence[str]] = [
        ["Mean Dice in the search", *(decimal(trial.dice) for trial in best)],
        ["Epochs trained", *(Cell(trial.budget_epochs) for trial in best)],
        ["Time spent", *(Cell(duration(trial.seconds)) for trial in best)],
    ]
    for name in summary.searched:
        rows.append([HYPERPARAMETER_WORDS.get(name, name), *(_value(trial, name) for trial in best)])
    head = ["", *(Cell(f"Trial {trial.trial}") for trial in best)]
    caption = "The best configurations of the search, the best on the left; all others are in report.json."
    return table(head, rows, caption=caption)


def _value(trial: TrialSummary, name: str) -> Cell:
    return Cell(value_words(name, getattr(trial.configuration, name)))


def _pareto(summary: Summary) -> str:
    caption = (
        "How to read it: further up is better, further left is cheaper. Circled configurations form the Pareto front: "
        "no other one is both cheaper and better. The shape tells how many epochs a configuration was trained for."
    )
    drawn = figures.dice_against_cost(summary)
    return section("pareto", "Dice against cost", figure(drawn, caption, otherwise=_NO_RUN))


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
    caption = (
        "How to read it: each bar counts configurations by where they came from. A search that learns has many "
        "proposed by the model; one that fell back to chance because the model failed is counted in a bar of its own."
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
        "Where the configurations came from",
        figure(figures.proposal_bars(summary), caption, otherwise="Nothing has been proposed yet."),
        paragraph(models),
        notice(fallen, is_bad=True) if found.fallback else paragraph(fallen),
    )


def _failures(summary: Summary) -> str:
    runs = summary.runs
    lost = f"a run was lost to the machine {counted(runs.lost, 'time')}" if runs.lost else "none was lost"
    counts = f"{counted(runs.complete, 'run')} completed, {runs.failed} failed, {runs.open} not finished; {lost}."
    rows = [
        [FAILURE_WORDS[f.cause], Cell(len(f.runs)), _shortened(f.message), _named(f.runs)] for f in summary.failures
    ]
    caption = "A failed run counts as a bad configuration and is not tried again."
    listed = (
        table(["Cause", Cell("Runs"), "What was reported", "Which"], rows, caption=caption)
        if rows
        else paragraph("No run failed.")
    )
    return section("failures", "What failed, and why", paragraph(counts), listed)


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
    component = (
        f"Of {', '.join(found.largest_component)} only the largest connected piece is kept, since that helped on "
        "validation cases; of all other classes every piece is kept."
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
    found = summary.ensemble
    rows: list[tuple[str, str]] = []
    if found is not None and found.single_validation_dice is not None:
        rows.append(("Best configuration alone, on held-out folds", f"Dice {found.single_validation_dice:.3f}"))
    if found is not None and found.validation_mean_dice is not None:
        rows.append(("Ensemble, on held-out folds", f"Dice {found.validation_mean_dice:.3f}"))
    if found is not None and found.scored_cases:
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
