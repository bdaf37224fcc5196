from __future__ import annotations

import logging
from io import StringIO

import pytest
import studies
from rich.console import Console
from rich.live import Live

from automonai import terminal
from automonai.controller import Controller, run_study
from automonai.domain.configuration import Configuration
from automonai.domain.events import (
    RunFinished,
    RunLost,
    RunQueued,
    RunStarted,
    SessionStarted,
    StudyStarted,
    TrialProposed,
)
from automonai.domain.run import LossCause, Origin, Run, Trial
from automonai.domain.study import Study
from automonai.observability import logs
from automonai.storage.journal import Journal
from automonai.watching import LineWatch, LogWatch, TableWatch, event_words


def watched(watch: LineWatch | LogWatch | TableWatch, **budget: object) -> Study:
    """Run a small study under the eyes of a watch."""
    bench = studies.Bench(studies.make_spec(**(budget or {"iterations": 1})))
    started = StudyStarted(at=bench.clock(), spec=bench.spec)
    journal = Journal(bench.store)
    journal.append(started)
    return run_study(
        Controller(
            study=Study.replay([started]),
            data=studies.make_data(bench.spec),
            store=bench.store,
            journal=journal,
            sampler=bench.sampler,
            executor=bench.executor(),
            clock=bench.clock,
            watch=watch,
        )
    )


def test_without_a_terminal_every_event_is_one_line_with_its_time() -> None:
    lines: list[str] = []
    study = watched(LineWatch(lines.append))
    assert all(line[4] == line[7] == "-" and "\n" not in line for line in lines)
    finished = [line for line in lines if " complete: " in line]
    assert len(finished) == len(study.finished)
    assert any("best so far" in line for line in finished)
    assert lines[-1].endswith("study done: the ensemble is chosen")


def test_lines_that_begin_late_begin_with_where_the_study_stands() -> None:
    lines: list[str] = []
    study = watched(LineWatch(lambda _: None))
    watch = LineWatch(lines.append, is_late=True)
    watch.on_tick(study, study.last_event_at)
    watch.on_tick(study, study.last_event_at)
    assert len(lines) == 1
    assert lines[0].startswith("test: over\n")


def test_on_a_cluster_every_event_is_a_record_with_its_kind_and_run(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "automonai.watching")
    study = watched(LogWatch())
    records = [record for record in caplog.records if record.name == "automonai.watching"]
    assert {"session_started", "run_queued", "run_finished", "study_ended"} <= {record.event for record in records}
    finished = [record.run for record in records if record.event == "run_finished"]
    assert finished == study.finished
    assert not [record for record in records if record.event == "trial_proposed" and hasattr(record, "run")]


def test_a_record_of_something_that_ought_not_to_happen_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "automonai.watching")
    study = watched(LineWatch(lambda _: None))
    run_id = study.finished[0]
    record = study.runs[run_id]
    assert record.result is not None
    LogWatch().on_event(RunLost(at=0.0, run_id=run_id, cause=LossCause.CRASH, why="killed"), study)
    LogWatch().on_event(RunFinished(at=0.0, run=record.run, result=record.result), study)
    assert [said.levelname for said in caplog.records if said.name == "automonai.watching"] == ["WARNING", "INFO"]
    assert [said.run for said in caplog.records if said.name == "automonai.watching"] == [run_id, run_id]


def test_on_a_terminal_the_table_is_drawn_with_rungs_best_and_time() -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with Live(console=console, auto_refresh=False) as live:
        watched(TableWatch(live), time=500.0)
    for words in ("test:", "9 epochs", "best", "left"):
        assert words in screen.getvalue()


def test_the_table_is_not_drawn_more_often_than_an_eye_can_follow() -> None:
    screen = StringIO()
    study = watched(LineWatch(lambda _: None))
    study.ended = None
    moments = iter([0.0, 0.0, 0.1, 0.2, 0.6, 0.6])
    with Live(console=Console(file=screen, force_terminal=True, width=120), auto_refresh=False) as live:
        drawn = []
        live.update = lambda *_, **__: drawn.append(True)  # type: ignore[method-assign]
        watch = TableWatch(live, clock=lambda: next(moments))
        for _ in range(4):
            watch.on_tick(study, 2000.0)
    assert len(drawn) == 2


def test_what_is_logged_meanwhile_stands_above_the_table() -> None:
    screen = StringIO()
    logs.set_up()
    with Live(console=Console(file=screen, force_terminal=True, width=120), auto_refresh=False) as live:
        TableWatch(live).on_tick(watched(LineWatch(lambda _: None)), 2000.0)
        logging.getLogger("automonai.storage").warning("no answer from the store")
    assert screen.getvalue().rfind("no answer from the store") < screen.getvalue().rfind("test: over")
    assert "no answer from the store" in screen.getvalue()


def test_a_table_says_how_long_ago_something_happened_unless_the_study_is_over() -> None:
    study = watched(LineWatch(lambda _: None))
    over = terminal.rendered(terminal.study_table(study, now=study.last_event_at + 90))
    study.ended = None
    going_on = terminal.rendered(terminal.study_table(study, now=study.last_event_at + 90))
    assert "last event" not in over
    assert "last event  1 min 30 s ago" in going_on


def test_a_table_tells_what_runs_from_what_waits_and_since_when() -> None:
    spec = studies.make_spec(parallel=2)
    study = Study.replay([StudyStarted(at=0.0, spec=spec), SessionStarted(at=0.0, host="here", process=1)])
    for number in (0, 1):
        trial = Trial(number=number, configuration=Configuration(), origin=Origin.RANDOM, bracket=0)
        study.apply(TrialProposed(at=0.0, trial=trial))
        study.apply(RunQueued(at=60.0, run=Run(trial=number, budget_epochs=1)))
    study.apply(RunStarted(at=90.0, run_id=Run(trial=0, budget_epochs=1).id))
    shown = terminal.rendered(terminal.study_table(study, now=100.0))
    assert "trial-0000-epochs-0001-fold-0 (10 s), trial-0001-epochs-0001-fold-0 (queued for 40 s)" in " ".join(
        shown.split()
    )
    header, row = (shown.splitlines()[line].split() for line in (1, 2))
    counts = dict(zip(header[:5], row[-6:-1], strict=True))
    assert (counts["running"], counts["queued"]) == ("1", "1")


def test_a_fallback_and_a_lost_run_are_said_in_words() -> None:
    study = watched(LineWatch(lambda _: None))
    trial = Trial(number=3, configuration=Configuration(depth=4), origin=Origin.FALLBACK, bracket=0)
    proposed = event_words(TrialProposed(at=0.0, trial=trial, note="no density"), study)
    assert proposed == "trial 3 proposed, fallback (no density): depth 4"
    lost = RunLost(at=0.0, run_id="trial-0003-epochs-0001-fold-0", cause=LossCause.CRASH, why="killed")
    assert event_words(lost, study) == "trial-0003-epochs-0001-fold-0 lost: killed"


def test_a_configuration_is_told_by_what_differs_from_the_standard() -> None:
    assert terminal.configuration_words(Configuration()) == "standard"
    changed = Configuration(depth=5, channel_multiplier=1.23456)
    assert terminal.configuration_words(changed) == "depth 5, channel_multiplier 1.23"
    assert terminal.configuration_words(changed.model_dump(mode="json")) == "depth 5, channel_multiplier 1.23"
