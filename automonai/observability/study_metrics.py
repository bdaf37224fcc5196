"""A study's metrics, as its controller shows them.

All that can be counted from the journal is computed from the Study that it tells, so no counter falls when another
controller goes on. The controller's thread makes a finished snapshot now and then; the endpoint's threads show the
latest.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate, chain

from prometheus_client import Metric
from prometheus_client.registry import Collector

from automonai.domain.events import Event
from automonai.domain.progress import runs_done_and_planned
from automonai.domain.run import LossCause, Origin, Result, RunState
from automonai.domain.study import Study
from automonai.observability.definitions import Definition

SNAPSHOT_SECONDS = 1.0
ENSEMBLE_RUNG = "ensemble"
COMPLETE = RunState.COMPLETE.value
LOST = "lost"
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
_DURATIONS = (1.0, 10.0, _MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 4 * _HOUR, 12 * _HOUR, _DAY, 3 * _DAY, 7 * _DAY)

BUILD_INFO = Definition("automonai_build_info", "gauge", "Always 1; the label says which version runs.", ("version",))
STUDY_INFO = Definition(
    "automonai_study_info",
    "gauge",
    "Always 1; the labels say what is searched, how, and what is minimised.",
    ("dataset", "sampler", "objective"),
)
RUNS = Definition(
    "automonai_study_runs",
    "gauge",
    "Runs by state, those of the refit included, and the ensemble's work while it is queued or running.",
    ("state",),
)
FINISHED = Definition(
    "automonai_runs_finished_total",
    "counter",
    "Runs that ended for good. Outcome: complete, or the reason of the failure. Rung: the budget's epochs, refit, or"
    " ensemble.",
    ("rung", "outcome"),
)
RETRIES = Definition(
    "automonai_run_retries_total",
    "counter",
    "Runs that the infrastructure lost, by cause; the controller queues them again while the spec allows.",
    ("reason",),
)
DISRUPTIONS = Definition(
    "automonai_run_disruptions_total",
    "counter",
    "Pods that were taken away, by cause; Kubernetes makes them anew until there were too many, which loses the run.",
    ("reason",),
)
RUN_SECONDS = Definition(
    "automonai_run_duration_seconds",
    "histogram",
    "Wall-clock time of runs that ended with a result of their own, as it says: of the worker that ended them.",
    ("rung",),
    _DURATIONS,
)
QUEUE_SECONDS = Definition(
    "automonai_run_queue_duration_seconds",
    "histogram",
    "Time from queueing a run until a worker took it up; a run that was lost is queued and counted again.",
    buckets=_DURATIONS,
)
GPU_SECONDS = Definition(
    "automonai_gpu_seconds_total",
    "counter",
    "Time of ended runs times the GPUs of each, by outcome; lost: from a start until the run was lost. Runs without a"
    " GPU count as if they had one.",
    ("outcome",),
)
BEST_OBJECTIVE = Definition(
    "automonai_study_best_objective", "gauge", "Lowest loss of the search so far: what it minimises."
)
BEST_DICE = Definition(
    "automonai_study_best_dice", "gauge", "Mean foreground Dice of the search's best trial, on its validation cases."
)
SPENT = Definition(
    "automonai_study_budget_spent_ratio",
    "gauge",
    "Share of a limit of the spec's budget that is spent. Limit: time or epochs, as far as the spec states them.",
    ("limit",),
)
PROGRESS = Definition(
    "automonai_study_progress_ratio", "gauge", "Share of the planned runs that have ended; an estimate in the search."
)
PROPOSALS = Definition(
    "automonai_proposals_total",
    "counter",
    "Configurations that joined the search, by where they came from.",
    ("origin",),
)
PROPOSE_SECONDS = Definition(
    "automonai_propose_duration_seconds",
    "histogram",
    "How long the sampler took for a proposal, in this controller.",
    buckets=(0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
)
LAST_LOOP = Definition(
    "automonai_controller_last_loop_timestamp_seconds", "gauge", "Unix time at which the controller last went round."
)
RESUMES = Definition(
    "automonai_controller_resumes_total",
    "counter",
    "How often a controller has taken up what another one left unfinished.",
)
PATCHES = Definition(
    "automonai_study_patches_total",
    "counter",
    "Patches that completed runs trained on, by their results, so that trainings shorter than two scrapes count.",
)
EPOCHS = Definition(
    "automonai_study_epochs_total", "counter", "Epochs that ended runs trained, by their results.", ("rung",)
)
THROUGHPUT = Definition(
    "automonai_run_throughput_patches_per_second",
    "gauge",
    "Patches per second of the last run of a rung that ended and has a rate, as in its result.",
    ("rung",),
)
PEAK_MEMORY = Definition(
    "automonai_run_peak_memory_bytes",
    "gauge",
    "Peak memory of the last run of a rung that ended and tells it, as in its result; of the GPU, else the process's.",
    ("rung",),
)
STUDY_METRICS = (
    BUILD_INFO,
    STUDY_INFO,
    RUNS,
    FINISHED,
    RETRIES,
    DISRUPTIONS,
    RUN_SECONDS,
    QUEUE_SECONDS,
    GPU_SECONDS,
    BEST_OBJECTIVE,
    BEST_DICE,
    SPENT,
    PROGRESS,
    PROPOSALS,
    PROPOSE_SECONDS,
    LAST_LOOP,
    RESUMES,
    PATCHES,
    EPOCHS,
    THROUGHPUT,
    PEAK_MEMORY,
)


class StudyMetrics(Collector):
    """A watch of the controller that counts, and shows what it counted as a collector."""

    def __init__(self, *, gpus_per_run: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        """Remember what a run gets, and the clock that spaces the snapshots; 0 GPUs count as 1."""
        self._gpus_per_run = max(1, gpus_per_run)
        self._clock = clock
        self._made_at = float("-inf")
        self._snapshot: tuple[Metric, ...] = ()
        self._proposals = PROPOSE_SECONDS.histogram()

    def on_event(self, event: Event, study: Study) -> None:
        self._refresh(study, event.at)

    def on_tick(self, study: Study, now: float) -> None:
        self._refresh(study, now)

    def on_proposal(self, seconds: float) -> None:
        """Take note of how long the sampler took."""
        self._proposals.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """Return the last snapshot; empty before the controller's first event."""
        return chain(self._snapshot, self._proposals.collect())

    def _refresh(self, study: Study, now: float) -> None:
        if self._clock() - self._made_at >= SNAPSHOT_SECONDS or study.is_over:
            self._snapshot = tuple(study_families(study, now, gpus_per_run=self._gpus_per_run))
            self._made_at = self._clock()


def study_families(study: Study, now: float, *, gpus_per_run: int) -> Iterator[Metric]:
    """Yield what a study comes to, as metrics.

    Args:
        study: As its journal tells it.
        now: Unix seconds.
        gpus_per_run: At least 1.
    """
    results = _results(study)
    yield from _facts(study)
    yield from _runs(study, results)
    yield _counter(GPU_SECONDS, _gpu_seconds(study, results, gpus_per_run))
    yield from _standing(study, now)
    yield from _work(results)


def _facts(study: Study) -> Iterator[Metric]:
    spec = study.spec
    build, info = BUILD_INFO.gauge_family(), STUDY_INFO.gauge_family()
    build.add_metric((version("automonai"),), 1)
    info.add_metric((_dataset_name(spec.dataset), spec.search.sampler.value, spec.search.objective), 1)
    yield build
    yield info


def _dataset_name(location: str) -> str:
    """Return the last part of a location: where it lies is nobody's concern here."""
    return location.partition("#")[0].rstrip("/").rpartition("/")[2]


def _results(study: Study) -> tuple[tuple[str, Result], ...]:
    """Return the rung and result of all final runs, in the order in which they ended."""
    records = [study.runs[run_id] for run_id in study.finished]
    return tuple((record.run.rung, record.result) for record in records if record.result is not None)


def _runs(study: Study, results: Sequence[tuple[str, Result]]) -> Iterator[Metric]:
    states = Counter(record.state for record in study.runs.values())
    if study.ensemble_queued is not None and study.ensemble is None:
        states[RunState.QUEUED if study.ensemble_started_at is None else RunState.RUNNING] += 1
    yield _gauge(RUNS, {(state.value,): states[state] for state in RunState})
    rungs = (*map(str, study.rungs), "refit", ENSEMBLE_RUNG)
    finished: Counter[tuple[str, ...]] = Counter({(rung, COMPLETE): 0 for rung in rungs})
    finished.update((rung, outcome_of(result)) for rung, result in results)
    finished.update({(rung, LOST): count for rung, count in study.revived.items()})
    finished[(ENSEMBLE_RUNG, COMPLETE)] += study.ensemble is not None
    yield _counter(FINISHED, finished)
    yield _counter(RETRIES, {(cause.value,): study.losses[cause] for cause in LossCause})
    yield _counter(DISRUPTIONS, {(cause.value,): study.disruptions[cause] for cause in LossCause})
    yield _histogram(RUN_SECONDS, _durations(study, results))
    yield _histogram(QUEUE_SECONDS, {(): study.queue_seconds})


def outcome_of(result: Result) -> str:
    """Return `complete`, or the reason of a failure."""
    return COMPLETE if result.reason is None else result.reason.value


def _durations(study: Study, results: Sequence[tuple[str, Result]]) -> Mapping[tuple[str, ...], Sequence[float]]:
    """Return each rung's run times; a run that was refused, or lost for good, has none."""
    durations: dict[tuple[str, ...], list[float]] = {}
    for rung, result in results:
        if result.seconds > 0:
            durations.setdefault((rung,), []).append(result.seconds)
    if study.ensemble is not None:
        durations[(ENSEMBLE_RUNG,)] = [study.ensemble.seconds]
    return durations


def _gpu_seconds(
    study: Study, results: Sequence[tuple[str, Result]], gpus_per_run: int
) -> Mapping[tuple[str, ...], float]:
    spent: dict[str, float] = {COMPLETE: 0.0, LOST: study.lost_seconds}
    for _, result in results:
        outcome = outcome_of(result)
        spent[outcome] = spent.get(outcome, 0.0) + result.seconds
    gpu_seconds: dict[tuple[str, ...], float] = {(outcome,): total * gpus_per_run for outcome, total in spent.items()}
    if study.ensemble is not None:  # its Job has one GPU however many a run has
        gpu_seconds[(COMPLETE,)] += study.ensemble.seconds * min(1, gpus_per_run)
    return gpu_seconds


def _standing(study: Study, now: float) -> Iterator[Metric]:
    """Yield how far the search is, what it has found, and how its controllers do."""
    if study.incumbent is not None:
        result = study.incumbent[1]
        yield _gauge(BEST_OBJECTIVE, {} if result.loss is None else {(): result.loss})
        yield _gauge(BEST_DICE, {} if result.mean_dice is None else {(): result.mean_dice})
    yield _gauge(SPENT, _spent(study, now))
    done, planned = runs_done_and_planned(study, now)
    yield _gauge(PROGRESS, {(): done / planned if planned else 1.0})
    origins = Counter(trial.origin for trial in study.trials.values())
    yield _counter(PROPOSALS, {(origin.value,): origins[origin] for origin in Origin})
    yield _gauge(LAST_LOOP, {(): now})
    yield _counter(RESUMES, {(): study.resumes})


def _spent(study: Study, now: float) -> Mapping[tuple[str, ...], float]:
    budget = study.spec.budget
    spent: dict[tuple[str, ...], float] = {}
    if budget.time is not None:
        spent[("time",)] = study.elapsed_seconds(now) / budget.time
    if budget.epochs is not None:
        spent[("epochs",)] = study.epochs_spent / budget.epochs
    return spent


def _work(results: Sequence[tuple[str, Result]]) -> Iterator[Metric]:
    """Yield what results say of the training, which scrapes of a short one would miss."""
    epochs, patches = Counter[tuple[str, ...]](), 0
    rates: dict[tuple[str, ...], float] = {}
    peaks: dict[tuple[str, ...], float] = {}
    for rung, result in results:
        epochs[(rung,)] += result.epochs
        patches += result.epochs * (result.patches_per_epoch or 0)
        if result.patches_per_second is not None:
            rates[(rung,)] = result.patches_per_second
        if result.peak_memory_bytes is not None:
            peaks[(rung,)] = result.peak_memory_bytes
    yield _counter(PATCHES, {(): patches})
    yield _counter(EPOCHS, epochs)
    yield _gauge(THROUGHPUT, rates)
    yield _gauge(PEAK_MEMORY, peaks)


def _counter(definition: Definition, values: Mapping[tuple[str, ...], float]) -> Metric:
    family = definition.counter_family()
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _gauge(definition: Definition, values: Mapping[tuple[str, ...], float]) -> Metric:
    family = definition.gauge_family()
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _histogram(definition: Definition, observed: Mapping[tuple[str, ...], Sequence[float]]) -> Metric:
    family = definition.histogram_family()
    for labels, values in observed.items():
        counts = Counter(bisect_left(definition.buckets, value) for value in values)
        upto = accumulate(counts[index] for index in range(len(definition.buckets) + 1))
        limits = (*map(str, definition.buckets), "+Inf")
        family.add_metric(labels, list(zip(limits, upto, strict=True)), sum(values))
    return family
