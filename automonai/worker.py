"""The worker: one run after the other. Reads a request, trains, commits the checkpoint, then the result.

`python -m automonai.worker LOCATION --cache FOLDER` serves run ids from its standard input until that ends;
with `--run ID` it does one run and leaves with the exit code of its outcome (0, or `RunError.exit_code`). What ends
it without an answer is the last thing in its log and, in one line, in the file of `--last-words`.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from automonai.domain.request import (
    EnsembleRequest,
    EnsembleResult,
    StudyData,
    TrainRequest,
    request_adapter,
)
from automonai.domain.run import FailureReason, Result
from automonai.errors import (
    ObjectNotFoundError,
    RunError,
    RunOutOfMemoryError,
    StopRequestedError,
    StorageError,
    UserError,
    described,
)
from automonai.execution.jobs import GPUS_VARIABLE
from automonai.learning.metering import UNMETERED, EpochMeter, Meter
from automonai.observability import exposition, logs
from automonai.observability.storage_metrics import StorageMetrics
from automonai.observability.training_metrics import TrainingMetrics
from automonai.observability.worker_metrics import WorkerMetrics
from automonai.spec import ExecutionSpec
from automonai.storage import keys
from automonai.storage.datasets import fetch_dataset
from automonai.storage.observing import observed_by
from automonai.storage.opening import is_remote, open_store
from automonai.storage.store import Store, read_record

logger = logging.getLogger("automonai.worker")  # `__name__` is `__main__` in every worker

STOPPED_EXIT_CODE = 143
LAST_WORDS_CHARACTERS = 1000
"""Kubernetes keeps up to 4096 bytes of a container's termination message."""


def main(arguments: list[str] | None = None) -> int:
    """Serve requests; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m automonai.worker")
    parser.add_argument("location", help="the study's folder, or s3://bucket/studies/NAME")
    parser.add_argument("--cache", required=True, type=Path, help="folder of datasets and preprocessed cases")
    parser.add_argument("--run", help="one run id; without it ids are read from standard input")
    parser.add_argument("--metrics-port", type=int, help="show Prometheus the metrics of this process at this port")
    parser.add_argument("--metrics-file", type=Path, help="keep the metrics of the run at hand in this file")
    parser.add_argument("--last-words", type=Path, help="file for what ended this process without an answer")
    options = parser.parse_args(arguments)
    study = options.location.rstrip("/").rpartition("/")[2]
    logs.set_up(level=logging.INFO)
    logs.name_process(study=study, run=options.run)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with _last_words(options.last_words):
        store = open_store(options.location)
        with _metrics(options, study=study) as metrics:
            return _serve_all(options, store=store, stop=stop, metrics=metrics)


@contextmanager
def _last_words(file: Path | None) -> Iterator[None]:
    """Write an error that leaves this process to a file: who reports the run as lost says it, too."""
    try:
        yield
    except Exception as error:
        if file is not None:
            with suppress(OSError):
                file.write_text(" ".join(logs.redacted(described(error)).split())[:LAST_WORDS_CHARACTERS])
        raise


@contextmanager
def _metrics(options: argparse.Namespace, *, study: str) -> Iterator[WorkerMetrics | None]:
    """Show metrics as the options say; what hinders that is a warning, for the runs matter more."""
    if options.metrics_port is None and options.metrics_file is None:
        yield None
        return
    requests = StorageMetrics()
    metrics = WorkerMetrics(requests, study=study, file=options.metrics_file)
    with ExitStack() as stack:
        stack.enter_context(observed_by(requests))
        if options.metrics_port is not None:
            try:
                stack.enter_context(exposition.serve(metrics, port=options.metrics_port))
            except UserError as error:
                logger.warning("no metrics by HTTP: %s", error)
        yield metrics


def _serve_all(
    options: argparse.Namespace, *, store: Store, stop: threading.Event, metrics: WorkerMetrics | None
) -> int:
    """Serve one run, or all that come; return the exit code."""
    try:
        if options.run:
            return serve(options.run, store=store, cache_folder=options.cache, stop=stop, metrics=metrics)
        for run_id in _incoming(stop):
            code = serve(run_id, store=store, cache_folder=options.cache, stop=stop, metrics=metrics)
            if code == RunOutOfMemoryError.exit_code:  # whatever leaked, a new process starts clean
                return code
    except StopRequestedError:
        return STOPPED_EXIT_CODE
    return STOPPED_EXIT_CODE if stop.is_set() else 0


def serve(
    run_id: str,
    *,
    store: Store,
    cache_folder: Path,
    stop: threading.Event,
    metrics: WorkerMetrics | None = None,
) -> int:
    """Do one request and write its answer, its log beside it; one whose answer is there already is done.

    Its metrics end before the answer is there: from then on the controller counts it.

    Raises:
        StopRequestedError: When `stop` was set; nothing but the checkpoint was written.
    """
    logger.info("%s is asked for", run_id)
    if store.exists(keys.answer(run_id)):
        return 0
    request = request_adapter.validate_json(store.get(keys.request(run_id)))
    data = read_record(store, keys.DATA, StudyData)
    with _logged(run_id, store):
        data = _with_dataset_here(data, cache_folder)
        logger.info("the dataset is in %s", data.dataset.root)
        if isinstance(request, EnsembleRequest):
            choice = _choose(request, data, store=store, cache_folder=cache_folder, stop=stop, metrics=metrics)
            store.put(keys.ENSEMBLE, choice.model_dump_json().encode())
            code = 0
        else:
            result, code = _train(request, data, store=store, cache_folder=cache_folder, stop=stop, metrics=metrics)
            store.put(keys.result(run_id), result.model_dump_json().encode())
    from automonai.learning.memory import release_gpu_memory

    release_gpu_memory()
    return code


def _with_dataset_here(data: StudyData, cache_folder: Path) -> StudyData:
    """Return the data with the dataset's root on this machine; from S3 it is fetched, unless it is in the cache."""
    root = data.dataset.root
    if not is_remote(root):
        return data
    folder = fetch_dataset(root, cache_folder=cache_folder)
    return data.model_copy(update={"dataset": data.dataset.model_copy(update={"root": str(folder)})})


def _train(
    request: TrainRequest,
    data: StudyData,
    *,
    store: Store,
    cache_folder: Path,
    stop: threading.Event,
    metrics: WorkerMetrics | None,
) -> tuple[Result, int]:
    """Return a run's result and exit code, and show its metrics meanwhile."""
    from automonai.learning.memory import gpu_memory, peak_memory_bytes

    if metrics is None:
        return _attempt(request, data, store=store, cache_folder=cache_folder, stop=stop, meter=UNMETERED)
    training = TrainingMetrics(data.dataset.foreground, peak_memory_bytes=peak_memory_bytes)
    allocators = gpu_memory(data.execution, most_gpus=_most_gpus())
    with metrics.during(request, training, allocators=allocators):
        result, code = _attempt(request, data, store=store, cache_folder=cache_folder, stop=stop, meter=training)
        training.finished(result)
    return result, code


def _attempt(
    request: TrainRequest,
    data: StudyData,
    *,
    store: Store,
    cache_folder: Path,
    stop: threading.Event,
    meter: Meter,
) -> tuple[Result, int]:
    """Return a run's result and exit code; every failure of its own becomes a FAILED result."""
    from automonai.learning.faults import is_gpu_fault
    from automonai.learning.training import failed_result, train_run

    logger.info("the libraries are loaded")
    unseen = _unseen_gpus(data.execution)
    began, meter = time.monotonic(), EpochMeter(meter)
    try:
        result = train_run(
            request,
            data,
            store=store,
            cache_folder=cache_folder,
            stop=stop,
            meter=meter,
            most_gpus=_most_gpus(),
        )
    except (StopRequestedError, StorageError, UserError, OSError):
        raise  # no fault of the run's: it ends without a result, and counts as lost if nobody asked for it
    except Exception as error:  # noqa: BLE001 - the worker's main: whatever else it was becomes the run's result
        if is_gpu_fault(error):
            raise  # it counts as lost, too; and CUDA works again in a new process only
        logger.warning("the run failed", exc_info=True)
        result = failed_result(request, error, epochs=meter.epochs, seconds=time.monotonic() - began)
        return result, _exit_code(error, result)
    logger.info("%s loss=%s seconds=%.1f", result.state, result.loss, result.seconds)
    return result.model_copy(update={"device": unseen or result.device}), 0


def _exit_code(error: Exception, result: Result) -> int:
    if isinstance(error, RunError):
        return error.exit_code
    is_memory = result.reason is FailureReason.OUT_OF_MEMORY
    return RunOutOfMemoryError.exit_code if is_memory else RunError.exit_code


def _choose(
    request: EnsembleRequest,
    data: StudyData,
    *,
    store: Store,
    cache_folder: Path,
    stop: threading.Event,
    metrics: WorkerMetrics | None,
) -> EnsembleResult:
    from automonai.learning.ensembling import choose_ensemble
    from automonai.learning.memory import gpu_memory
    from automonai.learning.precision import choose_device, choose_precision

    _unseen_gpus(data.execution)
    device = choose_device(data.execution)
    shown = metrics.during(request, allocators=gpu_memory(data.execution)) if metrics is not None else nullcontext()
    with shown:
        return choose_ensemble(
            request,
            data,
            store=store,
            cache_folder=cache_folder,
            device=device,
            dtype=choose_precision(data.execution, device),
            stop=stop.is_set,
        )


def _held_gpus() -> int:
    """Return how many GPUs its Job holds; 0 where it is no Job's, or one for the CPU."""
    return int(os.environ.get(GPUS_VARIABLE) or 0)


def _most_gpus() -> int:
    """Return on how many GPUs a training computes: those that its Job holds; elsewhere on one."""
    return max(1, _held_gpus())


def _unseen_gpus(execution: ExecutionSpec) -> str | None:
    """Return what a result calls its device where the Job holds GPUs of which this process sees none; None elsewhere.

    A run in a Job that holds what it does not use is logged, and the report shows the device.
    """
    from automonai.learning.precision import choose_devices

    held = _held_gpus()
    if held == 0 or execution.device != "auto":
        return None
    devices = choose_devices(execution, most_gpus=held)
    if devices[0].type != "cpu":
        if len(devices) < held:
            logger.warning("its Job holds %d GPUs, and torch finds %d", held, len(devices))
        return None
    device = f"cpu, though its Job holds {held} GPU{'s' if held > 1 else ''}"
    logger.warning(
        "it runs on the %s: torch finds none; see whether the cluster needs trial.runtimeClassName (often nvidia) and"
        " whether the node's driver works",
        device,
    )
    return device


def _incoming(stop: threading.Event) -> Iterator[str]:
    """Yield run ids from standard input; its end, like SIGTERM, asks the run at hand to commit and leave."""
    ids: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            ids.put(line.strip())
        stop.set()
        ids.put(None)

    threading.Thread(target=read, daemon=True, name="requests").start()
    while not stop.is_set():
        try:
            run_id = ids.get(timeout=0.2)
        except queue.Empty:
            continue
        if run_id is None:
            return
        yield run_id


@contextmanager
def _logged(run_id: str, store: Store) -> Iterator[None]:
    """Keep what is logged meanwhile as the run's log in the store, readable: people read it, by `automonai logs`.

    Programs read the lines of standard error, which on a cluster are JSON. What ends the run without an answer is
    logged, too. A later attempt's log follows the earlier ones'.
    """
    text, key = io.StringIO(), keys.log(run_id)
    with suppress(ObjectNotFoundError):
        text.write(store.get(key).decode(errors="replace"))
    try:
        with logs.log_context(run=run_id), logs.copied_to(text):
            try:
                yield
            except StopRequestedError:
                raise
            except Exception:
                logger.warning("the run ends without an answer", exc_info=True)
                raise
    except BaseException:
        with suppress(StorageError, OSError):  # it must not take the place of what went wrong
            store.put(key, text.getvalue().encode())
        raise
    store.put(key, text.getvalue().encode())


if __name__ == "__main__":
    sys.exit(main())
