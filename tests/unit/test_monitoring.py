from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from scraping import free_port, promtool_complaints, scrape, value
from studies import Bench, SeededSampler, make_data, make_spec

from automonai.controller import Controller, Watches, run_study
from automonai.domain.events import Event, SessionStarted, StudyStarted
from automonai.domain.study import Study
from automonai.errors import UserError
from automonai.monitoring import Monitoring, monitored
from automonai.observability.exposition import write_textfile
from automonai.observability.storage_metrics import StorageMetrics
from automonai.search.sampler import History
from automonai.search.timed import TimedSampler
from automonai.storage.journal import Journal
from automonai.storage.observing import observed


@dataclass
class Noting:
    notes: list[str] = field(default_factory=list)

    def on_event(self, event: Event, study: Study) -> None:
        self.notes.append(event.kind)

    def on_tick(self, study: Study, now: float) -> None:
        self.notes.append(f"tick {now}")


def run(bench: Bench, seen: Monitoring) -> Study:
    """Take a study through, watched."""
    started = StudyStarted(at=bench.clock(), spec=bench.spec)
    journal, study = Journal(bench.store), Study.replay([started])
    journal.append(started)
    return run_study(
        Controller(
            study=study,
            data=make_data(bench.spec),
            store=bench.store,
            journal=journal,
            sampler=seen.timed(bench.sampler),
            executor=bench.executor(),
            watch=seen.watch,
            clock=bench.clock,
        )
    )


def test_several_watches_are_told_of_everything_in_their_order() -> None:
    first, second = Noting(), Noting()
    watches, study = Watches(first, second), Study(spec=make_spec(), started_at=0.0, folds=4)
    watches.on_event(SessionStarted(at=0.0, host="h", process=1), study)
    watches.on_tick(study, 2.0)
    assert first.notes == second.notes == ["session_started", "tick 2.0"]


def test_a_timed_sampler_proposes_the_same_and_tells_its_time() -> None:
    seconds: list[float] = []
    timed = TimedSampler(SeededSampler(), seconds.append)
    proposals = [sampler.propose(History(), index=3, budget_epochs=1) for sampler in (timed, SeededSampler())]
    assert proposals[0] == proposals[1]
    assert len(seconds) == 1
    assert 0 <= seconds[0] < 1


def test_without_a_port_nothing_is_counted_and_the_watch_is_the_callers() -> None:
    noting, sampler = Noting(), SeededSampler()
    with monitored("brain", port=None, watch=noting) as seen:
        assert seen.watch is noting
        assert seen.timed(sampler) is sampler


def test_a_studys_metrics_are_shown_with_its_name_and_stay_until_the_end() -> None:
    bench, noting, port = Bench(make_spec(iterations=1)), Noting(), free_port()
    with monitored("brain", port=port, watch=noting, gpus_per_run=2) as seen:
        study = run(bench, seen)
        observed(lambda: b"abc", operation="get", code_of=str, received_bytes=len)
        text = scrape(port)
    assert value(text, "automonai_proposals_total", study="brain", origin="random") == len(study.trials) - 1
    assert value(text, "automonai_propose_duration_seconds_count", study="brain") == len(study.trials)
    seconds = sum(record.result.seconds for record in study.runs.values() if record.result)
    assert value(text, "automonai_gpu_seconds_total", outcome="complete") == 2 * seconds
    assert value(text, "automonai_storage_transferred_bytes_total", direction="received") == 3
    assert "study_ended" in noting.notes
    assert promtool_complaints(text) == ""


def test_workers_files_are_shown_beside_the_controllers_metrics(tmp_path: Path) -> None:
    port = free_port()
    write_textfile(StorageMetrics(), tmp_path / "worker-0.prom")
    with monitored("brain", port=port, workers_folder=tmp_path):
        text = scrape(port)
    name = "automonai_storage_requests_total"
    assert value(text, name, operation="get", worker="worker-0") == 0
    assert value(text, name, operation="get", study="brain") == 0
    assert text.count(f"# TYPE {name} ") == 1


def test_a_port_in_use_is_told_before_anything_is_done() -> None:
    port = free_port()
    with monitored("a", port=port), pytest.raises(UserError, match=f"port {port}"), monitored("b", port=port):
        pytest.fail("the body ran")
