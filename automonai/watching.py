"""How a running study is shown: a live table on a terminal, otherwise a line per event, which a cluster logs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep, time

from rich.console import Console
from rich.live import Live

from automonai import terminal
from automonai.controller import Watch
from automonai.domain.events import (
    ClockJumped,
    EnsembleFinished,
    EnsembleQueued,
    Event,
    RefitChosen,
    RunDisrupted,
    RunFinished,
    RunLost,
    RunQueued,
    RunStarted,
    SearchEnded,
    SessionStarted,
    SpecChanged,
    StudyEnded,
    TrialProposed,
)
from automonai.domain.request import StudyData
from automonai.domain.run import Origin, Purpose, Run
from automonai.domain.study import Study
from automonai.report import Summary, summarise
from automonai.report.words import counted
from automonai.starting import replay
from automonai.storage import keys
from automonai.storage.journal import Journal
from automonai.storage.opening import open_store
from automonai.storage.store import read_record

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 0.5
FOLLOW_SECONDS = 2.0
"""Between looks for a study's new events; each look is one request."""


@contextmanager
def watching(*, is_terminal: bool, write: Callable[[str], None], is_late: bool = False) -> Iterator[Watch]:
    """Give what shows a study while the body runs it, or follows it.

    Args:
        is_terminal: Whether a table can be drawn again and again.
        write: Takes one line; used where no table can be drawn.
        is_late: Whether the study runs already; the lines then begin with a table of where it stands.
    """
    if not is_terminal:
        yield LineWatch(write, is_late=is_late)
        return
    with Live(console=Console(), auto_refresh=False) as live:
        yield TableWatch(live)


def follow(
    study: str | Path,
    *,
    watch: Watch,
    clock: Callable[[], float] = time,
    wait: Callable[[], None] = lambda: sleep(FOLLOW_SECONDS),
) -> Summary:
    """Show a study that runs elsewhere until it is over; only events that are new are read again and again.

    Args:
        study: Its folder, or `s3://bucket/studies/NAME`.
        watch: Told of the time, and of each event that is written from now on.
        clock: Unix seconds.
        wait: Returns when it is time to look again.

    Raises:
        StudyNotFoundError: If there is no study.
    """
    store = open_store(study)
    journal = Journal(store)
    followed = replay(journal, study)
    while not followed.is_over:
        watch.on_tick(followed, clock())
        wait()
        for event in journal.read_new():
            followed.apply(event)
            watch.on_event(event, followed)
    watch.on_tick(followed, followed.last_event_at)  # time that passed since then is nobody's
    return summarise(followed, read_record(store, keys.DATA, StudyData))


class LineWatch:
    """Writes each event as a line with its local time."""

    def __init__(self, write: Callable[[str], None], *, is_late: bool = False) -> None:
        """Remember where the lines go, and whether earlier events have to be summed up first."""
        self._write = write
        self._owes_table = is_late

    def on_event(self, event: Event, study: Study) -> None:
        moment = datetime.fromtimestamp(event.at).strftime("%Y-%m-%d %H:%M:%S")
        self._write(f"{moment}  {event_words(event, study)}")

    def on_tick(self, study: Study, now: float) -> None:
        if self._owes_table:
            self._owes_table = False
            self._write(terminal.rendered(terminal.study_table(study, now=now)))


class LogWatch:
    """Logs each event as a line that has the event's kind, and its run where there is one, as fields of their own."""

    def on_event(self, event: Event, study: Study) -> None:
        run_id = _run_id(event)
        fields = {"event": event.kind} | ({} if run_id is None else {"run": run_id})
        level = logging.WARNING if _is_trouble(event) else logging.INFO
        logger.log(level, "%s", event_words(event, study), extra=fields)

    def on_tick(self, study: Study, now: float) -> None: ...


class TableWatch:
    """Draws the study's table, at most once every `REFRESH_SECONDS`, with what goes wrong above it."""

    def __init__(self, live: Live, clock: Callable[[], float] = monotonic) -> None:
        """Remember where to draw."""
        self._live = live
        self._clock = clock
        self._drawn_at = float("-inf")

    def on_event(self, event: Event, study: Study) -> None:
        if _is_trouble(event):
            self._live.console.print(event_words(event, study), markup=False, highlight=False)

    def on_tick(self, study: Study, now: float) -> None:
        if study.is_over or self._clock() - self._drawn_at >= REFRESH_SECONDS:
            self._drawn_at = self._clock()
            self._live.update(terminal.study_table(study, now=now), refresh=True)


def _is_trouble(event: Event) -> bool:
    """Whether an event ought not to happen: a run lost or disrupted, or a fallback to a random proposal."""
    return isinstance(event, RunLost | RunDisrupted) or (isinstance(event, TrialProposed) and bool(event.note))


def _run_id(event: Event) -> str | None:
    match event:
        case object(run=Run() as run):
            return run.id
        case object(run_id=str() as run_id):
            return run_id
        case _:
            return None


def event_words(event: Event, study: Study) -> str:
    """Return an event in one line; `study` has taken it into account already."""
    match event:
        case SessionStarted():
            return f"study {study.spec.name} taken up by process {event.process} on {event.host}"
        case ClockJumped():
            return "the clock jumped, as after a sleep, which counts for nothing"
        case SpecChanged():
            return "the spec's budget, execution or refit has changed"
        case TrialProposed():
            return _proposal_words(event)
        case RunQueued():
            return f"{event.run.id} queued{', continuing its lower rung' if event.resume_from else ''}"
        case RunFinished():
            return _finished_words(event, study)
        case RunStarted():
            return f"{event.run_id} started"
        case RunDisrupted():
            return f"{event.run_id} disrupted, and goes on: {event.why}"
        case RunLost():
            return f"{event.run_id} lost: {event.why}"
        case _:
            return _step_words(event)


def _step_words(event: Event) -> str:
    match event:
        case SearchEnded():
            return f"search ended: {event.why}"
        case RefitChosen():
            return (
                f"refit of {counted(len(event.runs), 'network')}, {event.why}"
                if event.runs
                else f"no refit: {event.why}"
            )
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
        origin = f"model of {counted(trial.model_budget_epochs, 'epoch')}"
    note = f" ({event.note})" if event.note else ""
    return f"trial {trial.number} proposed, {origin}{note}: {terminal.configuration_words(trial.configuration)}"


def _finished_words(event: RunFinished, study: Study) -> str:
    best = study.incumbent
    is_best = event.run.purpose is Purpose.SEARCH and best is not None and best[1].run_id == event.result.run_id
    return f"{terminal.result_line(event.result)}{', best so far' if is_best else ''}"
