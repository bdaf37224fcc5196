from __future__ import annotations

from io import StringIO

import studies
from rich.console import Console
from rich.live import Live

from automonai import terminal
from automonai.controller import Controller, run_study
from automonai.domain.configuration import Configuration
from automonai.domain.events import RunLost, StudyStarted, TrialProposed
from automonai.domain.run import Origin, Trial
from automonai.domain.study import Study
from automonai.storage.journal import Journal
from automonai.watching import LineWatch, TableWatch, event_words


def watched(watch: LineWatch | TableWatch, **budget: object) -> Study:
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


def test_a_fallback_and_a_lost_run_are_said_in_words() -> None:
    study = watched(LineWatch(lambda _: None))
    trial = Trial(number=3, configuration=Configuration(depth=4), origin=Origin.FALLBACK, bracket=0)
    proposed = event_words(TrialProposed(at=0.0, trial=trial, note="no density"), study)
    assert proposed == "trial 3 proposed, fallback (no density): depth 4"
    lost = RunLost(at=0.0, run_id="trial-0003-epochs-0001-fold-0", why="killed")
    assert event_words(lost, study) == "trial-0003-epochs-0001-fold-0 lost: killed"


def test_a_configuration_is_told_by_what_differs_from_the_standard() -> None:
    assert terminal.configuration_words(Configuration()) == "standard"
    changed = Configuration(depth=5, channel_multiplier=1.23456)
    assert terminal.configuration_words(changed) == "depth 5, channel_multiplier 1.23"
    assert terminal.configuration_words(changed.model_dump(mode="json")) == "depth 5, channel_multiplier 1.23"
