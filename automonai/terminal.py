"""What the verbs say: records as lines of text and as tables."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from io import StringIO
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from automonai.domain.configuration import Configuration
from automonai.domain.run import Origin, Result, RunState
from automonai.domain.study import Phase, Study
from automonai.report.words import FAILURE_WORDS, counted, duration, memory, overtaken_words
from automonai.storage.keys import REPORT_HTML
from automonai.storage.opening import join_location

if TYPE_CHECKING:
    from automonai.imaging.checking import CheckedDataset
    from automonai.learning.scoring import Evaluation, LabelScores
    from automonai.report import Summary

WIDE = 160
"""Columns for what goes into a file or a pipe."""
_PHASE_WORDS = {
    Phase.SEARCH: "searching",
    Phase.REFIT: "training the best to the end",
    Phase.ENSEMBLE: "choosing and testing the ensemble",
    Phase.OVER: "over",
}


def rendered(renderable: RenderableType) -> str:
    """Return a table as plain text, as wide as the terminal."""
    width = shutil.get_terminal_size((WIDE, 24)).columns
    text = StringIO()
    Console(file=text, width=width, no_color=True).print(renderable)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def configuration_words(configuration: Configuration | Mapping[str, object]) -> str:
    """Return the hyperparameters that differ from the package's standard, `standard` if none does."""
    values = configuration.model_dump(mode="json") if isinstance(configuration, Configuration) else configuration
    standard = Configuration().model_dump(mode="json")
    differing = [f"{name} {_short(value)}" for name, value in values.items() if value != standard.get(name)]
    return ", ".join(differing) or "standard"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- a running study


def study_table(study: Study, *, now: float) -> RenderableType:
    """Return the rungs, what runs, the best so far, what was spent and what is left at a moment in Unix seconds."""
    title = Text(f"{study.spec.name}: {_PHASE_WORDS[study.phase]}", style="bold")
    return Group(title, _rungs_table(study), _facts_table(study, now))


def _rungs_table(study: Study) -> Table:
    table = Table(box=None, header_style="dim")
    for column in ("rung", "complete", "failed", "running", "queued", "best Dice"):
        table.add_column(column, justify="right")
    for budget_epochs in study.rungs:
        records = [r for r in study.search_records() if r.run.budget_epochs == budget_epochs]
        states = [record.state for record in records]
        dice = [r.result.mean_dice for r in records if r.result and r.result.mean_dice is not None]
        table.add_row(
            counted(budget_epochs, "epoch"),
            str(states.count(RunState.COMPLETE)),
            str(states.count(RunState.FAILED)),
            str(states.count(RunState.RUNNING)),
            str(states.count(RunState.QUEUED)),
            f"{max(dice):.4f}" if dice else "-",
        )
    return table


def _facts_table(study: Study, now: float) -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for name, words in (
        ("running", _running_words(study, now)),
        ("best", _best_words(study)),
        ("tried", _tried_words(study)),
        ("spent", _spent_words(study, now)),
        ("left", _left_words(study, now)),
        ("last event", last_event_words(study, now)),
    ):
        if words:
            facts.add_row(name, Text(words))
    return facts


def _running_words(study: Study, now: float) -> str:
    running = [
        f"{record.run.id} ({_open_words(study, queued_at=record.queued_at, started_at=record.started_at, now=now)})"
        for record in study.open_runs
    ]
    if study.phase is Phase.ENSEMBLE:
        running.append(_ensemble_words(study, now))
    return ", ".join(running) or "nothing"


def _open_words(study: Study, *, queued_at: float, started_at: float | None, now: float) -> str:
    if started_at is None:
        waited = study.elapsed_seconds(now) - study.elapsed_at(queued_at)
        return f"queued for {duration(max(0.0, waited))}"
    return duration(max(0.0, now - started_at))


def _best_words(study: Study) -> str:
    if study.incumbent is None:
        return "no result yet"
    trial, result = study.incumbent
    score = f"loss {result.loss:.4f}" if result.mean_dice is None else f"Dice {result.mean_dice:.4f}"
    after = counted(result.curve_epochs, "epoch")
    return f"trial {trial.number}, {score} after {after}: {configuration_words(trial.configuration)}"


def _tried_words(study: Study) -> str:
    origins = [trial.origin for trial in study.trials.values()]
    parts = [f"{origins.count(origin)} {origin.value.replace('_', ' ')}" for origin in Origin if origin in origins]
    return f"{counted(len(origins), 'configuration')}{' (' + ', '.join(parts) + ')' if parts else ''}"


def _spent_words(study: Study, now: float) -> str:
    limit = study.spec.budget.epochs
    of = f" of {limit:,}" if limit is not None else ""
    epochs = f"{study.epochs_spent:,}{of} epochs" if of else counted(study.epochs_spent, "epoch")
    return f"{epochs} in the search, {duration(study.elapsed_seconds(now))}"


def _left_words(study: Study, now: float) -> str:
    budget = study.spec.budget
    if study.is_over:
        return "nothing"
    if budget.time is None:
        return _left_of_search_words(study)
    left = max(0.0, budget.time - study.elapsed_seconds(now))
    search = max(0.0, left - budget.time * budget.refit_share)
    of_search = f", {duration(search)} of it for the search" if study.phase is Phase.SEARCH else ""
    return f"{duration(left)}{of_search}"


def _left_of_search_words(study: Study) -> str:
    """Return what a budget without a time has left."""
    iterations = study.spec.budget.iterations
    if study.phase is not Phase.SEARCH:
        return "nothing of the search"
    if iterations is None:
        return "until the epochs are spent"
    return f"{max(0, iterations - study.brackets_opened)} of {counted(iterations, 'iteration')} to begin"


def _ensemble_words(study: Study, now: float) -> str:
    queued = study.ensemble_queued
    if queued is None:
        return "the ensemble"
    return f"the ensemble ({_open_words(study, queued_at=queued.at, started_at=study.ensemble_started_at, now=now)})"


def last_event_words(study: Study, now: float) -> str:
    """Return how long ago something happened, by which one sees whether a controller is at work; empty when over."""
    return "" if study.is_over or now <= study.last_event_at else f"{duration(now - study.last_event_at)} ago"


# ---------------------------------------------------------------- results


def result_line(result: Result) -> str:
    """Return what came of a run in one line."""
    if result.state is not RunState.COMPLETE:
        cause = FAILURE_WORDS[result.reason] if result.reason else "failed"
        return f"{result.run_id} failed after {duration(result.seconds)}: {cause}: {result.message}"
    score = f"loss {result.loss:.4f}" if result.mean_dice is None else f"Dice {result.mean_dice:.4f}"
    peak = f", {memory(result.peak_memory_bytes)}" if result.peak_memory_bytes is not None else ""
    epochs = f", {counted(result.epochs, 'epoch')} in {duration(result.seconds)}"
    return f"{result.run_id} complete: {score}{epochs}{peak}"


def summary_lines(summary: Summary, *, location: str) -> list[str]:
    """Return what a study came to, where its report lies and what can be done next."""
    if summary.succeeded is None:
        return []
    if not summary.succeeded:
        return [
            f"study {summary.study} failed: {summary.stopped_because}",
            f"report   {join_location(location, REPORT_HTML)}",
        ]
    lines = [f"study {summary.study} is done: {summary.stopped_because}"]
    if summary.test is not None and summary.test.mean_dice is not None:
        lines += _test_lines(summary)
    elif summary.ensemble is not None and summary.ensemble.validation_mean_dice is not None:
        lines.append(f"Dice     {summary.ensemble.validation_mean_dice:.4f} out of fold; there are no test cases")
    if summary.ensemble is not None:
        trials = sorted({member.trial for member in summary.ensemble.members})
        of_trials = " and ".join(f"trial {trial}" for trial in trials)
        lines.append(f"ensemble {counted(len(summary.ensemble.members), 'network')} of {of_trials}")
    if summary.winner is not None:
        lines.append(f"winner   trial {summary.winner.trial}: {configuration_words(summary.winner.configuration)}")
        if words := overtaken_words(summary):
            lines.append(f"         trial {summary.trials[0].trial} was first in the search; {words}")
    lines.append(f"report   {join_location(location, REPORT_HTML)}")
    lines.append(f"next     automonai predict {shlex.quote(location)} IMAGES... --output DIR")
    return lines


def _test_lines(summary: Summary) -> list[str]:
    test = summary.test
    if test is None or test.mean_dice is None:
        return []
    mean = f"{test.mean_dice:.4f}{_interval_words(test.mean_dice_low, test.mean_dice_high)}"
    lines = [f"Dice     {mean} on {counted(len(test.cases), 'test case')}"]
    for name, interval in test.dice.items():
        value = "-" if interval.mean is None else f"{interval.mean:.4f}"
        lines.append(f"         {value}{_interval_words(interval.low, interval.high)} {name}")
    return lines


def _interval_words(low: float | None, high: float | None) -> str:
    return f" (95 % interval {low:.4f} to {high:.4f})" if low is not None and high is not None else ""


def runs_table(rows: Sequence[Mapping[str, object]]) -> Table:
    """Return runs as a table, in the order in which they were queued."""
    table = Table(box=None, header_style="bold")
    for column in ("run", "origin", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("loss", "seconds", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("configuration, where it differs from the standard")
    for row in rows:
        table.add_row(*(Text(cell) for cell in _run_cells(row)))
    return table


def _run_cells(row: Mapping[str, object]) -> tuple[str, ...]:
    loss, seconds, peak = row["loss"], row["seconds"], row["peak_memory_bytes"]
    configuration = row["configuration"]
    reason = row.get("reason")
    return (
        str(row["id"]),
        str(row["origin"]).replace("_", " "),
        f"{row['state']}{f' ({reason})' if reason else ''}",
        f"{loss:.4f}" if isinstance(loss, float) else "-",
        f"{seconds:.1f}" if isinstance(seconds, float) else "-",
        memory(peak) if isinstance(peak, int) else "-",
        configuration_words(configuration) if isinstance(configuration, Mapping) else "",
    )


def evaluation_table(evaluation: Evaluation) -> RenderableType:
    """Return the mean figures of each label, and in how many cases one had no meaning."""
    table = Table(box=None, header_style="bold")
    for column in ("label", "Dice", "HD95 (mm)", "surface Dice", "cases without Dice, HD95, surface Dice"):
        table.add_column(column, justify="right")
    for value, mean in evaluation.mean.items():
        missing = mean.undefined
        without = f"{missing.dice}, {missing.hd95_mm}, {missing.surface_dice}"
        table.add_row(str(value), *_figures(mean), without)
    lines = [f"means over {counted(len(evaluation.cases), 'case')}"]
    if evaluation.without_prediction:
        lines.append(f"left out: {counted(len(evaluation.without_prediction), 'label')} without a prediction")
    return Group(*lines, table)


def _figures(scores: LabelScores) -> tuple[str, str, str]:
    dice, hd95_mm, surface_dice = (
        "-" if figure is None else f"{figure:.4f}" for figure in (scores.dice, scores.hd95_mm, scores.surface_dice)
    )
    return dice, hd95_mm, surface_dice


def dataset_lines(checked: CheckedDataset) -> list[str]:
    """Return what a sound dataset holds."""
    dataset, facts = checked.dataset, list(checked.facts.values())
    shapes = list(zip(*(fact.shape_voxels for fact in facts), strict=True))
    spacings = list(zip(*(fact.spacing_mm for fact in facts), strict=True))
    lines = [
        f"{dataset.name}: {counted(len(dataset.cases), 'case')}, no fault found",
        f"channels  {', '.join(dataset.channels)}",
        f"voxels    {' x '.join(_span(side) for side in shapes)}",
        f"spacing   {' x '.join(f'{median(side):.3g}' for side in spacings)} mm (median)",
    ]
    for value, name in dataset.foreground.items():
        volumes = [fact.class_voxels.get(value, 0) for fact in facts]
        share = f"in {sum(volume > 0 for volume in volumes)} cases"
        lines.append(f"label {value}   {name}: {share}, median {median(volumes):,.0f} voxels")
    return lines


def _span(sides: Sequence[int]) -> str:
    return str(sides[0]) if len(set(sides)) == 1 else f"{min(sides)}-{max(sides)}"
