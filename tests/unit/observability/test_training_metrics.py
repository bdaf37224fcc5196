from __future__ import annotations

from prometheus_client.registry import Collector

from automonai.domain.run import CurvePoint, Result, RunState
from automonai.domain.tally import Tally
from automonai.learning.metering import Meter
from automonai.observability.training_metrics import TRAINING_METRICS, TrainingMetrics

POINT = CurvePoint(epoch=2, seconds=9.0, training_loss=0.4, validation_loss=0.5, dice={1: 0.75, 3: 0.5})


def shown(collector: Collector) -> dict[str, float]:
    """Sample name, with its label's value behind it, to value."""
    return {
        "/".join([sample.name.removeprefix("automonai_"), *sample.labels.values()]): sample.value
        for family in collector.collect()
        for sample in family.samples
    }


def make_metrics() -> TrainingMetrics:
    return TrainingMetrics({1: "liver", 2: "spleen"}, peak_memory_bytes=lambda: 1000)


def test_a_run_that_has_just_begun_shows_counters_at_zero_and_no_figure_that_it_does_not_have() -> None:
    assert shown(make_metrics()) == {
        "train_steps_total": 0,
        "train_patches_total": 0,
        "train_data_wait_seconds_total": 0,
        "train_step_duration_seconds_count/data": 0,
        "train_step_duration_seconds_sum/data": 0,
        "train_step_duration_seconds_count/step": 0,
        "train_step_duration_seconds_sum/step": 0,
        "checkpoint_write_duration_seconds_count": 0,
        "checkpoint_write_duration_seconds_sum": 0,
        "peak_memory_bytes": 1000,
    }


def test_what_the_training_says_is_shown_under_its_names() -> None:
    metrics = make_metrics()
    meter: Meter = metrics
    meter.stepped(Tally(steps=3, patches=6, seconds=3.0, data_wait_seconds=0.5, step_seconds=2.0), epoch=2, loss=0.25)
    meter.validated(Tally(steps=3, patches=6, seconds=4.0, data_wait_seconds=0.5, step_seconds=2.0), POINT)
    meter.committed(seconds=0.5, size_bytes=100)
    meter.committed(seconds=0.25, size_bytes=120)
    assert shown(metrics) == {
        "train_steps_total": 3,
        "train_patches_total": 6,
        "train_data_wait_seconds_total": 0.5,
        "train_step_duration_seconds_count/data": 3,
        "train_step_duration_seconds_sum/data": 0.5,
        "train_step_duration_seconds_count/step": 3,
        "train_step_duration_seconds_sum/step": 2.0,
        "train_throughput_patches_per_second": 1.5,
        "train_epoch": 2,
        "train_loss": 0.25,
        "validation_dice/liver": 0.75,
        "validation_dice/3": 0.5,
        "checkpoint_write_duration_seconds_count": 2,
        "checkpoint_write_duration_seconds_sum": 0.75,
        "checkpoint_size_bytes": 120,
        "peak_memory_bytes": 1000,
    }


def test_every_metric_of_a_training_is_declared() -> None:
    metrics = make_metrics()
    metrics.stepped(Tally(steps=1, patches=1, seconds=1.0), epoch=1, loss=1.0)
    metrics.validated(Tally(steps=1, patches=1, seconds=1.0), POINT)
    metrics.committed(seconds=1.0, size_bytes=1)
    names = {family.name for family in metrics.collect()}
    assert names == {definition.name.removesuffix("_total") for definition in TRAINING_METRICS}


def test_the_peak_at_the_end_is_the_results_own() -> None:
    metrics = make_metrics()
    metrics.finished(Result(run_id="r", state=RunState.COMPLETE, peak_memory_bytes=1234))
    assert shown(metrics)["peak_memory_bytes"] == 1234
