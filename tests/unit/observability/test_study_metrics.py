from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.registry import Collector
from scraping import promtool_complaints, value, values
from studies import Bench, make_spec, train

from automonai.domain.configuration import Configuration
from automonai.domain.events import (
    EnsembleQueued,
    Event,
    RunDisrupted,
    RunFinished,
    RunLost,
    RunQueued,
    RunStarted,
    SessionStarted,
    StudyEnded,
    StudyStarted,
    TrialProposed,
)
from automonai.domain.facts import ENSEMBLE_RUN_ID
from automonai.domain.request import EnsembleResult, TrainRequest
from automonai.domain.run import FailureReason, LossCause, Origin, Purpose, Result, Run, RunState, Trial
from automonai.domain.study import Study
from automonai.errors import LostTooOftenError
from automonai.observability.exposition import Labelled
from automonai.observability.storage_metrics import OPERATIONS, REQUEST_SECONDS, REQUESTS, TRANSFERRED_BYTES
from automonai.observability.study_metrics import PROPOSE_SECONDS, STUDY_METRICS, StudyMetrics, study_families
from automonai.spec import StudySpec
from automonai.storage.journal import Journal


class Families(Collector):
    def __init__(self, study: Study, *, now: float, gpus_per_run: int = 1) -> None:
        self.families = tuple(study_families(study, now, gpus_per_run=gpus_per_run))

    def collect(self) -> tuple[object, ...]:  # type: ignore[override]
        return self.families


def shown(events: list[Event], *, now: float | None = None, gpus_per_run: int = 1) -> str:
    """Return what a controller would show after these events."""
    families = Families(Study.replay(events), now=events[-1].at if now is None else now, gpus_per_run=gpus_per_run)
    return generate_latest(families).decode()  # type: ignore[arg-type]


@dataclass
class Story:
    """A study's events, told one by one."""

    spec: StudySpec = field(default_factory=lambda: make_spec(iterations=1))
    now: float = 1000.0
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tell(StudyStarted(at=self.now, spec=self.spec), SessionStarted(at=self.now, host="h", process=1))

    def tell(self, *events: Event) -> None:
        self.events += events

    def propose(self, number: int, origin: Origin = Origin.RANDOM) -> None:
        trial = Trial(number=number, configuration=Configuration(), origin=origin, bracket=0)
        self.tell(TrialProposed(at=self.now, trial=trial))

    def run(self, run: Run, *, waits: float = 1.0, **result: object) -> None:
        """Let a run wait, start and end with a result."""
        self.tell(RunQueued(at=self.now, run=run))
        self.now += waits
        self.tell(RunStarted(at=self.now, run_id=run.id))
        self.now += 10.0
        answer = Result.model_validate({"run_id": run.id, "state": RunState.COMPLETE, **result})
        self.tell(RunFinished(at=self.now, run=run, result=answer))

    def lose(self, run: Run, cause: LossCause, *, after: float) -> None:
        self.tell(RunQueued(at=self.now, run=run), RunStarted(at=self.now, run_id=run.id))
        self.now += after
        self.tell(RunLost(at=self.now, run_id=run.id, cause=cause, why="gone"))


@pytest.fixture
def story() -> Story:
    return Story()


def test_runs_are_counted_by_state_and_every_state_is_there(story: Story) -> None:
    story.propose(0)
    story.run(Run(trial=0, budget_epochs=1), loss=0.5)
    story.tell(RunQueued(at=story.now, run=Run(trial=0, budget_epochs=3)))
    text = shown(story.events)
    counts = {state: value(text, "automonai_study_runs", state=state) for state in RunState}
    assert counts == {"queued": 1, "running": 0, "complete": 1, "failed": 0, "lost": 0}


def test_the_ensembles_work_is_a_run_while_it_waits_and_while_it_runs(story: Story) -> None:
    story.tell(EnsembleQueued(at=story.now, candidates=("refit-0000-fold-0",)))
    assert value(shown(story.events), "automonai_study_runs", state="queued") == 1
    story.tell(RunStarted(at=story.now, run_id=ENSEMBLE_RUN_ID))
    assert value(shown(story.events), "automonai_study_runs", state="queued") == 0
    assert value(shown(story.events), "automonai_study_runs", state="running") == 1


def test_ended_runs_are_counted_by_rung_and_outcome(story: Story) -> None:
    story.propose(0)
    failed = {"state": RunState.FAILED, "reason": FailureReason.NON_FINITE_LOSS}
    story.run(Run(trial=0, budget_epochs=1), loss=0.5)
    story.run(Run(trial=0, budget_epochs=3), **failed)
    story.run(Run(trial=0, budget_epochs=9, purpose=Purpose.REFIT), loss=0.4)
    text = shown(story.events)
    name = "automonai_runs_finished_total"
    assert value(text, name, rung="1", outcome="complete") == 1
    assert value(text, name, rung="3", outcome="non_finite_loss") == 1
    assert value(text, name, rung="refit", outcome="complete") == 1
    assert value(text, name, rung="9", outcome="complete") == 0


def test_losses_and_disruptions_are_told_apart_by_cause(story: Story) -> None:
    story.propose(0)
    run = Run(trial=0, budget_epochs=1)
    story.lose(run, LossCause.NODE_LOST, after=5.0)
    story.tell(RunDisrupted(at=story.now, run_id=run.id, cause=LossCause.DISRUPTION, why="drained"))
    text = shown(story.events)
    assert value(text, "automonai_run_retries_total", reason="node_lost") == 1
    assert value(text, "automonai_run_retries_total", reason="disruption") == 0
    assert value(text, "automonai_run_disruptions_total", reason="disruption") == 1


def test_waits_fall_into_the_buckets_that_hold_them_and_a_second_start_counts_again(story: Story) -> None:
    story.propose(0)
    run = Run(trial=0, budget_epochs=1)
    story.lose(run, LossCause.CRASH, after=5.0)
    story.run(run, waits=1.0, loss=0.5)
    story.run(Run(trial=0, budget_epochs=3), waits=90.0, loss=0.5)
    text, name = shown(story.events), "automonai_run_queue_duration_seconds"
    assert value(text, f"{name}_bucket", le="1.0") == 2
    assert value(text, f"{name}_bucket", le="60.0") == 2
    assert value(text, f"{name}_bucket", le="300.0") == 3
    assert (value(text, f"{name}_count"), value(text, f"{name}_sum")) == (3, 91)


def test_durations_are_those_of_the_results_by_rung(story: Story) -> None:
    story.propose(0)
    story.run(Run(trial=0, budget_epochs=1), loss=0.5, seconds=7.5)
    text, name = shown(story.events), "automonai_run_duration_seconds"
    assert value(text, f"{name}_bucket", rung="1", le="1.0") == 0
    assert value(text, f"{name}_bucket", rung="1", le="10.0") == 1
    assert value(text, f"{name}_sum", rung="1") == 7.5


def test_a_run_that_was_refused_has_no_duration(story: Story) -> None:
    story.propose(0)
    run = Run(trial=0, budget_epochs=1)
    refusal = Result(run_id=run.id, state=RunState.FAILED, reason=FailureReason.DOES_NOT_FIT)
    story.tell(RunFinished(at=story.now, run=run, result=refusal))
    text = shown(story.events)
    assert value(text, "automonai_runs_finished_total", outcome="does_not_fit") == 1
    assert "automonai_run_duration_seconds_count" not in text


@pytest.mark.parametrize(("gpus", "factor"), [(0, 1), (1, 1), (4, 4)])
def test_gpu_time_is_counted_by_outcome_that_of_lost_attempts_included(story: Story, gpus: int, factor: int) -> None:
    story.propose(0)
    story.lose(Run(trial=0, budget_epochs=1), LossCause.CRASH, after=5.0)
    story.run(Run(trial=0, budget_epochs=1), loss=0.5, seconds=10.0)
    out_of_memory = {"state": RunState.FAILED, "reason": FailureReason.OUT_OF_MEMORY, "seconds": 2.0}
    story.run(Run(trial=0, budget_epochs=3), **out_of_memory)
    metrics = StudyMetrics(gpus_per_run=gpus)
    metrics.on_tick(Study.replay(story.events), story.now)
    text = generate_latest(Labelled(metrics, labels={})).decode()  # type: ignore[arg-type]
    seconds = {o: value(text, "automonai_gpu_seconds_total", outcome=o) for o in ("complete", "lost", "out_of_memory")}
    assert seconds == {"complete": 10 * factor, "lost": 5 * factor, "out_of_memory": 2 * factor}


def test_the_choice_of_the_ensemble_has_one_gpu_however_many_a_run_has() -> None:
    study = Bench(make_spec(iterations=1)).run()
    study.ensemble = study.ensemble.model_copy(update={"seconds": 1000.0})  # type: ignore[union-attr]
    runs = sum(record.result.seconds for record in study.runs.values() if record.result)
    for gpus in (1, 4):
        metrics = StudyMetrics(gpus_per_run=gpus)
        metrics.on_tick(study, 0.0)
        text = generate_latest(Labelled(metrics, labels={})).decode()  # type: ignore[arg-type]
        assert value(text, "automonai_gpu_seconds_total", outcome="complete") == runs * gpus + 1000


def test_the_best_is_the_incumbents(story: Story) -> None:
    assert not [line for line in shown(story.events).splitlines() if line.startswith("automonai_study_best")]
    story.propose(0)
    story.propose(1)
    for trial, loss in ((0, 0.5), (1, 0.25)):
        point = {"epoch": 1, "seconds": 1.0, "training_loss": 1.0, "validation_loss": 1.0, "dice": {1: 1 - loss}}
        story.run(Run(trial=trial, budget_epochs=1), loss=loss, curve=[point])
    text = shown(story.events)
    assert value(text, "automonai_study_best_objective") == 0.25
    assert value(text, "automonai_study_best_dice") == 0.75


def test_the_share_of_each_stated_limit_is_told() -> None:
    story = Story(make_spec(time=200.0, epochs=10))
    story.propose(0)
    story.run(Run(trial=0, budget_epochs=1), loss=0.5, epochs=4)
    text = shown(story.events, now=1050.0)
    assert value(text, "automonai_study_budget_spent_ratio", limit="time") == 0.25
    assert value(text, "automonai_study_budget_spent_ratio", limit="epochs") == 0.4


def test_proposals_are_counted_by_origin(story: Story) -> None:
    for number, origin in enumerate([Origin.STANDARD, Origin.MODEL, Origin.MODEL]):
        story.propose(number, origin)
    text = shown(story.events)
    assert [value(text, "automonai_proposals_total", origin=origin) for origin in Origin] == [1, 2, 0, 0, 0, 0]


def test_every_controller_but_the_first_is_a_resume(story: Story) -> None:
    assert value(shown(story.events), "automonai_controller_resumes_total") == 0
    story.tell(SessionStarted(at=story.now, host="h", process=2))
    assert value(shown(story.events), "automonai_controller_resumes_total") == 1


def test_the_last_results_of_each_rung_are_shown_as_they_stand_and_patches_add_up(story: Story) -> None:
    story.propose(0)
    speed = {"loss": 0.5, "patches_per_epoch": 8, "patches_per_second": 3.3333333, "peak_memory_bytes": 123456789}
    story.run(Run(trial=0, budget_epochs=1), **{**speed, "epochs": 1, "patches_per_second": 4.0})
    story.propose(1)
    story.run(Run(trial=1, budget_epochs=1), **{**speed, "epochs": 2, "patches_per_epoch": 10})
    text = shown(story.events)
    assert value(text, "automonai_run_throughput_patches_per_second", rung="1") == 3.3333333
    assert value(text, "automonai_run_peak_memory_bytes", rung="1") == 123456789
    assert value(text, "automonai_study_patches_total") == 1 * 8 + 2 * 10
    assert value(text, "automonai_study_epochs_total", rung="1") == 3


def test_a_dataset_is_named_without_its_place(story: Story) -> None:
    spec = make_spec(iterations=1).model_copy(update={"dataset": "s3://secret-bucket/data/brain/"})
    text = shown([StudyStarted(at=1.0, spec=spec)])
    assert value(text, "automonai_study_info", dataset="brain", sampler="bohb", objective="dice") == 1
    assert "secret-bucket" not in text


# Over whole studies


def fast(request: TrainRequest) -> Result:
    return train(request).model_copy(update={"patches_per_second": 8.0, "peak_memory_bytes": 2**30})


def whole_study(*, losses: float = 0.0, seed: int = 0) -> list[Event]:
    """Return the events of a study that ran to its end, some of its runs lost on the way.

    Where so much is lost that the controller gives up, the study is taken up again, as its user would.
    """
    bench, draw = Bench(make_spec(parallel=2, iterations=2)), random.Random(seed)
    while not (events := Journal(bench.store).read()) or not isinstance(events[-1], StudyEnded):
        with suppress(LostTooOftenError):
            bench.run(bench.executor(train=fast, lose=lambda request: "gone" if draw.random() < losses else None))
    return events


Series = tuple[str, frozenset[tuple[str, str]]]


def series(study: Study) -> dict[Series, tuple[str, float]]:
    """Return each series of a controller with its type and value."""
    families = study_families(study, study.last_event_at, gpus_per_run=2)
    return {
        (sample.name, frozenset(sample.labels.items())): (family.type, sample.value)
        for family in families
        for sample in family.samples
    }


def counters(study: Study) -> Mapping[Series, float]:
    return {key: number for key, (kind, number) in series(study).items() if kind != "gauge"}


@settings(max_examples=5)
@given(losses=st.sampled_from([0.0, 0.2, 0.5]), seed=st.integers(0, 1000))
def test_no_counter_ever_falls_whatever_prefix_of_the_journal_a_controller_takes_up(losses: float, seed: int) -> None:
    first, *events = whole_study(losses=losses, seed=seed)
    study = Study.replay([first])
    before = counters(study)
    for event in events:
        study.apply(event)
        now = counters(study)
        assert not [key for key, number in before.items() if now[key] < number]
        before = now
    assert sum(number for (name, _), number in before.items() if name == "automonai_runs_finished_total") > 10


MOST_SERIES = 512
"""Of one controller, as docs/monitoring.md promises."""


def test_a_study_of_ten_rungs_on_which_everything_has_happened_stays_within_the_budget_of_series() -> None:
    story = Story(make_spec(min_epochs=1, max_epochs=512, eta=2, time=3600.0, epochs=1000))
    story.propose(0)
    reasons = [None, *FailureReason]
    for number, reason in enumerate(reasons):
        story.propose(number)
        figures = {"seconds": 1.0, "patches_per_second": 1.0, "peak_memory_bytes": 1, "reason": reason}
        state = RunState.COMPLETE if reason is None else RunState.FAILED
        for rung in Study.replay(story.events).rungs:
            story.run(Run(trial=number, budget_epochs=rung), state=state, loss=0.5, **figures)
        story.run(Run(trial=number, budget_epochs=9, purpose=Purpose.REFIT), state=state, **figures)
    study = Study.replay(story.events)
    assert len(study.rungs) == 10
    study.ensemble = EnsembleResult(members=())
    storage = {f"{operation}/{code}" for operation in OPERATIONS for code in ("2xx", "404", "403", "503", "unanswered")}
    others = PROPOSE_SECONDS.series() + REQUESTS.series(len(storage)) + REQUEST_SECONDS.series(len(OPERATIONS))
    others += TRANSFERRED_BYTES.series(2)
    assert MOST_SERIES * 0.8 < len(series(study)) + others <= MOST_SERIES


def test_a_whole_study_ends_with_its_ensemble_counted() -> None:
    text = shown(whole_study())
    assert value(text, "automonai_runs_finished_total", rung="ensemble") == 1
    assert value(text, "automonai_study_progress_ratio") == 1


def watched(events: list[Event]) -> str:
    metrics, study = StudyMetrics(), Study.replay(events)
    metrics.on_event(events[-1], study)
    metrics.on_proposal(0.2)
    return generate_latest(Labelled(metrics, labels={"study": "brain"})).decode()  # type: ignore[arg-type]


def test_promtool_has_nothing_to_say() -> None:
    assert promtool_complaints(watched(whole_study(losses=0.3))) == ""


def test_only_what_is_defined_is_shown_and_all_of_it_with_the_labels_that_are_defined() -> None:
    text = watched(whole_study(losses=0.3))
    labels: dict[str, set[str]] = {}
    for (name, own), _ in values(text).items():
        stem = name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
        labels.setdefault(stem, set()).update(key for key, _ in own if key not in ("study", "le"))
    defined = {definition.name: set(definition.labels) for definition in STUDY_METRICS}
    del defined["automonai_study_budget_spent_ratio"]  # of a spec without a limit on time or epochs
    assert labels == defined


# The watch


def test_a_snapshot_is_made_at_most_once_a_second_and_at_the_end() -> None:
    seconds = [100.0]
    metrics = StudyMetrics(clock=lambda: seconds[0])
    study = Study.replay(whole_study()[:5])

    def last_loop() -> float:
        return value(
            generate_latest(Labelled(metrics, labels={})).decode(),  # type: ignore[arg-type]
            "automonai_controller_last_loop_timestamp_seconds",
        )

    metrics.on_tick(study, 1.0)
    seconds[0] += 0.9
    metrics.on_tick(study, 2.0)
    assert last_loop() == 1.0
    seconds[0] += 0.1
    metrics.on_tick(study, 3.0)
    assert last_loop() == 3.0
    metrics.on_tick(Study.replay(whole_study()), 4.0)
    assert last_loop() == 4.0


def test_a_snapshot_is_not_changed_by_what_the_study_becomes(story: Story) -> None:
    metrics, study = StudyMetrics(), Study.replay(story.events)
    metrics.on_tick(study, 1.0)
    families = list(metrics.collect())
    story.propose(0)
    study.apply(story.events[-1])
    assert [family.samples for family in families] == [family.samples for family in metrics.collect()]


def test_the_samplers_time_is_counted() -> None:
    metrics = StudyMetrics()
    metrics.on_proposal(0.2)
    text = generate_latest(Labelled(metrics, labels={})).decode()  # type: ignore[arg-type]
    assert value(text, "automonai_propose_duration_seconds_bucket", le="0.3") == 1
    assert value(text, "automonai_propose_duration_seconds_bucket", le="0.1") == 0
