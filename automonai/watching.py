"""How a running study is shown: a live table on a terminal, one line per event otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from time import monotonic

from rich.console import Console
from rich.live import Live

from automonai import terminal
from automonai.controller import Watch
from automonai.domain.events import (
    EnsembleFinished,
    EnsembleQueued,
    Event,
    RefitChosen,
    RunFinished,
    RunLost,
    RunQueued,
    SearchEnded,
    SessionStarted,
    SpecChanged,
    StudyEnded,
    TrialProposed,
)
from automonai.domain.run import Origin, Purpose
from automonai.domain.study import Study
from automonai.report.words import counted

REFRESH_SECONDS = 0.5


@contextmanager
def watching(*, is_terminal: bool, write: Callable[[str], None]) -> Iterator[Watch]:
    """Give what shows a study while the body runs it.

    Args:
        is_terminal: Whether a table can be drawn again and again.
        write: Takes one line; used where no table can be drawn.
    """
    if not is_terminal:
        yield LineWatch(write)
        return
    with Live(console=Console(), auto_refresh=False) as live:
        yield TableWatch(live)


class LineWatch:
    """Writes each event as a line with its local time."""

    def __init__(self, write: Callable[[str], None]) -> None:
        """Remember where the lines go."""
        self._write = write

    def on_event(self, event: Event, study: Study) -> None:
        moment = datetime.fromtimestamp(event.at).strftime("%Y-%m-%d %H:%M:%S")
        self._write(f"{moment}  {event_words(event, study)}")

    def on_tick(self, study: Study, now: float) -> None: ...


class TableWatch:
    """Draws the study's table, at most once every `REFRESH_SECONDS`, with what goes wrong above it."""

    def __init__(self, live: Live, clock: Callable[[], float] = monotonic) -> None:
        """Remember where to draw."""
        self._live = live
        self._clock = clock
        self._drawn_at = float("-inf")

    def on_event(self, event: Event, study: Study) -> None:
        if isinstance(event, RunLost) or (isinstance(event, TrialProposed) and event.note):
            self._live.console.print(event_words(event, study), markup=False, highlight=False)

    def on_tick(self, study: Study, now: float) -> None:
        if study.is_over or self._clock() - self._drawn_at >= REFRESH_SECONDS:
            self._drawn_at = self._clock()
            self._live.update(terminal.study_table(study, now=now), refresh=True)


def event_words(event: Event, study: Study) -> str:
    """Return an event in one line; `study` has taken it into account already."""
    match event:
        case SessionStarted():
            return f"study {study.spec.name} taken up by process {event.process} on {event.host}"
        case SpecChanged():
            return "the spec's budget, execution or refit has changed"
        case TrialProposed():
            return _proposal_words(event)
        case RunQueued():
            return f"{event.run.id} queued{', continuing its lower rung' if event.resume_from else ''}"
        case RunFinished():
            return _finished_words(event, study)
        case RunLost():
            return f"{event.run_id} lost: {event.why}"
        case _:
            return _step_words(event)


def _step_words(event: Event) -> str:
    match event:
        case SearchEnded():
            return f"search ended: {event.why}"
        case RefitChosen():
            return f"refit of {counted(len(event.runs), 'network')}: {event.why}"
        case EnsembleQueued():
            return f"choosing the ensemble from {counted(len(event.candidates), 'network')}"
        case EnsembleFinished():
            return f"ensemble of {counted(len(event.result.members), 'network')} chosen"
        case StudyEnded():
            return f"study {'done' if event.succeeded else 'failed'}: {event.why}"
        case _:
            return event.kind.replace("_", " ")


def _proposal_words(event: TrialProposed) -> str:
    trial = event.trial
    origin = trial.origin.value.replace("_", " ")
    if trial.origin is Origin.MODEL and trial.model_budget_epochs is not None:
        origin = f"model of {terminal.epoch_words(trial.model_budget_epochs)}"
    note = f" ({event.note})" if event.note else ""
    return f"trial {trial.number} proposed, {origin}{note}: {terminal.configuration_words(trial.configuration)}"


def _finished_words(event: RunFinished, study: Study) -> str:
    best = study.incumbent
    is_best = event.run.purpose is Purpose.SEARCH and best is not None and best[1].run_id == event.result.run_id
    return f"{terminal.result_line(event.result)}{', best so far' if is_best else ''}"
