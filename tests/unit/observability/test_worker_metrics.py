from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import Gauge

from automonai.domain.configuration import Configuration
from automonai.domain.request import EnsembleRequest, Member, TrainRequest
from automonai.domain.run import Purpose, Run
from automonai.observability import gpu, worker_metrics
from automonai.observability.worker_metrics import WorkerMetrics, run_labels

REQUEST = TrainRequest(run=Run(trial=7, budget_epochs=9), configuration=Configuration(), seed=1)
REFIT = REQUEST.model_copy(update={"run": Run(trial=7, budget_epochs=9, fold=2, purpose=Purpose.REFIT)})
ENSEMBLE = EnsembleRequest(candidates=(Member(run_id="r", trial=7, fold=0, checkpoint="c"),))


class Allocator:
    number = 0
    uuid = "aaaa"

    def allocated_bytes(self) -> int:
        return 1

    def reserved_bytes(self) -> int:
        return 2

    def peak_bytes(self) -> int:
        return 3


def labels(metrics: WorkerMetrics) -> dict[str, dict[str, str]]:
    return {sample.name: sample.labels for family in metrics.collect() for sample in family.samples}


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def a_gauge() -> Gauge:
    return Gauge("automonai_train_loss", "Loss.", registry=None)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (REQUEST, {"trial": "7", "rung": "9"}),
        (REFIT, {"trial": "7", "rung": "refit"}),
        (ENSEMBLE, {"rung": "ensemble"}),
    ],
)
def test_a_runs_labels_are_those_of_its_job(asked: TrainRequest | EnsembleRequest, expected: dict[str, str]) -> None:
    assert run_labels(asked) == expected


def test_everything_has_the_runs_labels_while_it_is_at_hand_and_the_process_alone_is_shown_after() -> None:
    metrics = WorkerMetrics(study="brain")
    with metrics.during(REQUEST, a_gauge(), allocators=()):
        during = labels(metrics)
    after = labels(metrics)
    run = {"study": "brain", "trial": "7", "rung": "9"}
    assert during["automonai_train_loss"] == during["process_resident_memory_bytes"] == run
    assert "automonai_train_loss" not in after
    assert after["process_resident_memory_bytes"] == {"study": "brain"}


def test_a_runs_gpu_is_shown_with_the_runs_labels_and_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "load_nvml", lambda: None)
    metrics = WorkerMetrics(study="brain")
    with metrics.during(REQUEST, allocators=[Allocator()]):
        found = labels(metrics)["automonai_gpu_memory_peak_bytes"]
    assert found == {"study": "brain", "trial": "7", "rung": "9", "device": "0"}


def test_a_run_that_fails_leaves_neither_its_series_nor_its_file(tmp_path: Path) -> None:
    file = tmp_path / "workers" / "worker-0.prom"
    metrics = WorkerMetrics(study="brain", file=file)

    def fail() -> None:
        with metrics.during(REQUEST, a_gauge(), allocators=()):
            wait_until(file.exists)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(file.parent.iterdir()) == []
    assert "automonai_train_loss" not in labels(metrics)


def test_the_file_follows_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_metrics, "WRITE_SECONDS", 0.01)
    file = tmp_path / "worker-0.prom"
    metrics, loss = WorkerMetrics(study="brain", file=file), a_gauge()
    with metrics.during(REQUEST, loss, allocators=()):
        wait_until(file.exists)
        loss.set(0.125)
        wait_until(lambda: 'automonai_train_loss{rung="9",study="brain",trial="7"} 0.125' in file.read_text())


def test_a_file_that_cannot_be_written_is_said_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def refuse(collector: object, path: Path) -> None:
        tries.append(path)
        raise OSError("disk full")

    monkeypatch.setattr(worker_metrics, "WRITE_SECONDS", 0.01)
    monkeypatch.setattr(worker_metrics, "write_textfile", refuse)
    file = tmp_path / "worker-0.prom"
    with WorkerMetrics(study="brain", file=file).during(REQUEST, allocators=()):
        wait_until(lambda: len(tries) > 2)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == [f"no metrics in {file}: disk full"]
