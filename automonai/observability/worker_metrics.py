"""What a worker's process shows of itself and of the run at hand."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import Metric, ProcessCollector
from prometheus_client.registry import Collector

from automonai.domain.request import EnsembleRequest, TrainRequest
from automonai.observability.exposition import Labelled, write_textfile
from automonai.observability.gpu import Allocator, GpuMetrics

logger = logging.getLogger(__name__)

WRITE_SECONDS = 5.0
"""Between two writings of the metrics' file."""


class WorkerMetrics(Collector):
    """One process: always itself, and while a run is at hand that run, with its labels on everything."""

    def __init__(self, *collectors: Collector, study: str, file: Path | None = None) -> None:
        """Remember the settings; no file is written before a run.

        Args:
            collectors: Of the process, beside its memory and time.
            study: Its name.
            file: Written every few seconds while a run is at hand, and removed when that ends.
        """
        self._study = study
        self._file = file
        self._process = (ProcessCollector(registry=None), *collectors)
        self._between_runs = self._shown = Labelled(*self._process, labels={"study": study})

    def collect(self) -> Iterable[Metric]:
        return self._shown.collect()

    @contextmanager
    def during(
        self, request: TrainRequest | EnsembleRequest, *collectors: Collector, allocators: Sequence[Allocator]
    ) -> Iterator[None]:
        """Show what a run has to show meanwhile.

        Args:
            request: Gives the labels.
            collectors: Of the run.
            allocators: Of the GPUs that it uses; none on a CPU.
        """
        gpus = (GpuMetrics(*allocators),) if allocators else ()
        labels = {"study": self._study, **run_labels(request)}
        self._shown = Labelled(*self._process, *collectors, *gpus, labels=labels)
        try:
            with _written(self._shown, self._file) if self._file else contextlib.nullcontext():
                yield
        finally:
            self._shown = self._between_runs


def run_labels(request: TrainRequest | EnsembleRequest) -> dict[str, str]:
    """Return a run's labels; the folds that a refit trains side by side differ in nothing but their process."""
    if isinstance(request, EnsembleRequest):
        return {"rung": request.rung}
    return {"trial": str(request.run.trial), "rung": request.rung}


@contextmanager
def _written(collector: Collector, path: Path) -> Iterator[None]:
    """Keep the file up to date from a thread; no file is left."""
    ended = threading.Event()
    thread = threading.Thread(target=_write_until, args=(ended, collector, path), daemon=True, name="metrics-file")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(WRITE_SECONDS)  # a file system that hangs must not keep the run's result
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _write_until(ended: threading.Event, collector: Collector, path: Path) -> None:
    is_reported = False
    while True:
        try:
            write_textfile(collector, path)
        except OSError as error:
            if not is_reported:
                logger.warning("no metrics in %s: %s", path, error)
            is_reported = True
        if ended.wait(WRITE_SECONDS):
            return
