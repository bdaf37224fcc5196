"""A trial's training as Prometheus sees it.

The training stores a few numbers at each step; families are made of them when somebody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.registry import Collector

from automonai.domain.run import CurvePoint, Result
from automonai.domain.tally import Tally
from automonai.observability.definitions import Definition

STEPS = Definition(
    "automonai_train_steps_total", "counter", "Optimiser steps of this process for the run at hand, as in its result."
)
PATCHES = Definition(
    "automonai_train_patches_total", "counter", "Patches that these steps trained on; the rate is the throughput."
)
WAIT_SECONDS = Definition(
    "automonai_train_data_wait_seconds_total",
    "counter",
    "How long the training waited for its next batch, as in its result.",
)
STEP_SECONDS = Definition(
    "automonai_train_step_duration_seconds",
    "summary",
    "How long steps took, by phase: data (waiting for the batch) and step (computing); validation is in neither.",
    labels=("phase",),
)
THROUGHPUT = Definition(
    "automonai_train_throughput_patches_per_second",
    "gauge",
    "Patches over the time of training and validation until now: at the run's end what its result says.",
)
PEAK_MEMORY = Definition(
    "automonai_peak_memory_bytes",
    "gauge",
    "Most memory since the run began: of tensors on a GPU, resident on a CPU; at the run's end what its result says.",
)
EPOCH = Definition("automonai_train_epoch", "gauge", "The trial's epoch at hand, lower rungs included.")
LOSS = Definition("automonai_train_loss", "gauge", "Training loss of the latest step.")
DICE = Definition(
    "automonai_validation_dice",
    "gauge",
    "Mean Dice of a class over the cases of the latest validation.",
    labels=("label",),
)
CHECKPOINT_SECONDS = Definition(
    "automonai_checkpoint_write_duration_seconds",
    "summary",
    "How long checkpoints took to be written until they count.",
)
CHECKPOINT_BYTES = Definition("automonai_checkpoint_size_bytes", "gauge", "Size of the latest checkpoint's file.")
TRAINING_METRICS = (
    STEPS,
    PATCHES,
    WAIT_SECONDS,
    STEP_SECONDS,
    THROUGHPUT,
    PEAK_MEMORY,
    EPOCH,
    LOSS,
    DICE,
    CHECKPOINT_SECONDS,
    CHECKPOINT_BYTES,
)


@dataclass(frozen=True)
class _Commits:
    count: int = 0
    seconds: float = 0.0
    latest_bytes: int = 0


class TrainingMetrics(Collector):
    """One run's training: hears of it as its meter, and shows it as a collector, each in a thread of its own.

    What belongs together is replaced as one value, so that no look sees half of a step.
    """

    def __init__(self, class_names: Mapping[int, str], *, peak_memory_bytes: Callable[[], int]) -> None:
        """Remember what the figures are called and where the peak is read.

        Args:
            class_names: Label value to name, of the foreground.
            peak_memory_bytes: Of the run until now; what its result will say.
        """
        self._class_names = class_names
        self._peak_memory_bytes = peak_memory_bytes
        self._tally = Tally()
        self._latest: tuple[int, float] | None = None
        self._dice: Mapping[int, float] = {}
        self._commits = _Commits()
        self._result: Result | None = None

    def stepped(self, tally: Tally, *, epoch: int, loss: float) -> None:
        self._tally = tally
        self._latest = epoch, loss

    def validated(self, tally: Tally, point: CurvePoint) -> None:
        self._tally = tally
        self._dice = point.dice

    def committed(self, *, seconds: float, size_bytes: int) -> None:
        before = self._commits
        self._commits = _Commits(before.count + 1, before.seconds + seconds, size_bytes)

    def finished(self, result: Result) -> None:
        """Show from now on the peak that the run's result says."""
        self._result = result

    def collect(self) -> Iterator[Metric]:
        """Yield the families of what is known by now."""
        tally, result, commits = self._tally, self._result, self._commits
        yield from _work(tally)
        if tally.patches_per_second is not None:
            yield _gauge(THROUGHPUT, tally.patches_per_second)
        peak = self._peak_memory_bytes() if result is None else result.peak_memory_bytes
        if peak is not None:
            yield _gauge(PEAK_MEMORY, peak)
        if self._latest is not None:
            epoch, loss = self._latest
            yield _gauge(EPOCH, epoch)
            yield _gauge(LOSS, loss)
        yield self._scores()
        yield from _checkpoints(commits)

    def _scores(self) -> Metric:
        family = DICE.gauge_family()
        for value, dice in self._dice.items():
            family.add_metric((self._class_names.get(value, str(value)),), dice)
        return family


def _work(tally: Tally) -> Iterator[Metric]:
    for definition, value in ((STEPS, tally.steps), (PATCHES, tally.patches), (WAIT_SECONDS, tally.data_wait_seconds)):
        family = definition.counter_family()
        family.add_metric((), value)
        yield family
    durations = STEP_SECONDS.summary_family()
    for phase, seconds in (("data", tally.data_wait_seconds), ("step", tally.step_seconds)):
        durations.add_metric((phase,), count_value=tally.steps, sum_value=seconds)
    yield durations


def _checkpoints(commits: _Commits) -> Iterator[Metric]:
    family = CHECKPOINT_SECONDS.summary_family()
    family.add_metric((), count_value=commits.count, sum_value=commits.seconds)
    yield family
    if commits.count:
        yield _gauge(CHECKPOINT_BYTES, commits.latest_bytes)


def _gauge(definition: Definition, value: float) -> Metric:
    family = definition.gauge_family()
    family.add_metric((), value)
    return family
