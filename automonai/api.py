"""The public functions, and the only place that names concrete adapters."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, time
from typing import TYPE_CHECKING

from automonai.controller import Controller, Watch, run_study
from automonai.documents import read_yaml
from automonai.domain.configuration import Configuration
from automonai.domain.facts import RunRecord
from automonai.domain.request import EnsembleResult, StudyData, TrainRequest
from automonai.domain.run import Purpose, Result, Run
from automonai.domain.seeds import derive_seed
from automonai.domain.study import Study
from automonai.errors import DatasetError, ObjectNotFoundError, SpecError, StudyNotFoundError
from automonai.execution.local import LocalExecutor, workers_folder
from automonai.execution.lock import locked
from automonai.execution.machine import detect_machine, refuse_unusable
from automonai.monitoring import monitored
from automonai.observability.logs import log_context
from automonai.parameters import parse_configuration
from automonai.preparing import CACHE_FOLDER, cache_folder_of, check_folder, dataset_here, refuse_changed_files
from automonai.report import Summary, summarise, write_report
from automonai.search import make_sampler
from automonai.spec import ExecutionSpec, SplitSpec, StudySpec, load_spec, parse_limit, parse_spec
from automonai.starting import begin, replay
from automonai.storage import keys
from automonai.storage.datasets import Push, push_dataset
from automonai.storage.journal import Journal
from automonai.storage.local import discard_unfinished, refuse_unwritable
from automonai.storage.opening import is_remote, join_location, open_store, place_on_this_machine, user_cache_folder
from automonai.storage.store import Store, read_record

if TYPE_CHECKING:
    from automonai.imaging.checking import CheckedDataset
    from automonai.learning.scoring import Evaluation

logger = logging.getLogger(__name__)


def phantom(
    folder: str | Path,
    *,
    cases: int = 24,
    seed: int = 0,
    shape: tuple[int, int, int] = (48, 56, 40),
    channels: int = 1,
) -> Path:
    """Write a dataset of our own in MSD layout and return its folder.

    Args:
        folder: Must not exist or be empty.
        cases: Number of labelled cases.
        seed: The same seed gives the same voxels.
        shape: Typical extent in voxels; cases differ.
        channels: Number of image channels, each with its own contrast.

    Raises:
        UserError: If the folder is not empty or a number is out of range.
    """
    from automonai.imaging.phantom import write_phantom

    if Path(folder).exists() and any(Path(folder).iterdir()):
        raise SpecError(f"{folder}: is not empty; name a new folder for the phantom dataset")
    write_phantom(Path(folder), cases=cases, seed=seed, shape=shape, channels=channels)
    return Path(folder)


def check(dataset: str | Path, *, on_case: Callable[[int, int], None] | None = None) -> CheckedDataset:
    """Read every case of a dataset and return its facts.

    Args:
        dataset: Folder in MSD or nnU-Net layout, or the `s3://` location of a pushed one.
        on_case: Told after each case how many are done, and of how many.

    Raises:
        DatasetError: With every fault of every case.
    """
    return check_folder(dataset_here(dataset, user_cache_folder()), on_case=on_case)


def push_data(folder: str | Path, location: str, *, on_file: Callable[[str, int, int], None] | None = None) -> Push:
    """Upload a dataset, so that searches may name its location; what is there already is not sent again.

    Args:
        folder: In MSD or nnU-Net layout. Hidden files are left out.
        location: `s3://bucket/datasets/NAME`.
        on_file: Told after each file its path, how many are done, and of how many.

    Raises:
        UserError: If the folder holds no dataset or lacks files, or the location cannot be written to.
    """
    from automonai.imaging.layouts import find_dataset

    dataset = find_dataset(Path(folder))
    needed = [path for case in dataset.cases for path in dataset.case_paths(case)]
    missing = [f"{path}: dataset.json names it, but it is not there" for path in needed if not path.is_file()]
    if missing:
        raise DatasetError(missing)
    return push_dataset(Path(folder), location, on_file=on_file)


def init(dataset: str | Path, *, budget: str | None = None, name: str | None = None) -> str:
    """Return a commented spec fitted to dataset, machine and budget.

    Args:
        dataset: Folder in MSD or nnU-Net layout, or the `s3://` location of a pushed one; it is checked first.
        budget: A duration (`1h`), `30 epochs` or `3 iterations`; None: the source work's five iterations.
        name: Of the study; None: the dataset's.

    Raises:
        UserError: If the dataset is faulty, the budget cannot be read or the name is not allowed.
    """
    from automonai.initial_spec import initial_spec

    # Before the check, which reads every voxel.
    if budget is not None:
        parse_limit(budget)
    if name is not None:
        parse_spec({"name": name, "dataset": str(dataset), "budget": {"iterations": 1}})
    return initial_spec(
        check(dataset),
        path=dataset if is_remote(dataset) else Path(dataset),
        machine=detect_machine(),
        budget=budget,
        name=name,
    )


def search(
    spec: StudySpec | str | Path,
    *,
    overrides: Sequence[str] = (),
    watch: Watch | None = None,
    metrics_port: int | None = None,
) -> Summary:
    """Start a study, or take it up where it was left, and see it through to its report.

    Kill it at any moment: the next call goes on with everything that was finished.

    Args:
        spec: The spec or its YAML file.
        overrides: `section.field=value` each, of a file's settings.
        watch: Told of every event and of the time; see `automonai.controller.Watch`.
        metrics_port: Where Prometheus finds the metrics of the study and its runs meanwhile; None: nowhere.

    Raises:
        UserError: If spec or dataset are faulty, this machine lacks the device or precision that the spec demands,
            another controller has the study, a started study's spec differs, or the port is in use.
    """
    if not isinstance(spec, StudySpec):
        spec = load_spec(spec, tuple(overrides))
    elif overrides:
        raise SpecError("overrides go with a file; change a StudySpec by its model_copy(update=...)")
    make_sampler(spec.search)  # a faulty space, or a GPU that is not there, is told before anything is read or written
    refuse_unusable(spec.execution)
    location = join_location(spec.store, spec.name)
    shown = monitored(spec.name, port=metrics_port, watch=watch, workers_folder=workers_folder(location))
    with log_context(study=spec.name), locked(place_on_this_machine(location), study=location) as lock, shown as seen:
        store = open_store(location)
        discard_unfinished(place_on_this_machine(location))
        journal, began, ahead = Journal(store), time(), time() - monotonic()
        study, data = begin(spec, store, journal)
        if not study.is_over:
            refuse_changed_files(data, cache_folder_of(study.spec.store))
        executor = _local_executor(study.spec, location, lock=lock, metrics=metrics_port is not None)
        try:
            with stop_on_sigterm() as stopped:
                run_study(
                    Controller(
                        study=study,
                        data=data,
                        store=store,
                        journal=journal,
                        sampler=seen.timed(make_sampler(study.spec.search)),
                        executor=executor,
                        memory_bytes=_memory_per_run(study.spec.execution),
                        watch=seen.watch,
                        steady_clock=monotonic,
                        ahead=ahead,
                        began=began,
                        should_stop=stopped.is_set,
                    )
                )
        finally:
            executor.close()
        return write_report(study, data, store)


def load_study(study: str | Path) -> tuple[Study, StudyData, Store]:
    """Return a study as its journal tells it, its data and its store.

    Args:
        study: Its folder, or `s3://bucket/studies/NAME`.

    Raises:
        StudyNotFoundError: If there is no study.
    """
    store = open_store(study)
    loaded = replay(Journal(store), study)
    return loaded, read_record(store, keys.DATA, StudyData), store


def summary(study: str | Path) -> Summary:
    """Return where a study stands and what it has found so far.

    Raises:
        StudyNotFoundError: If that folder holds no study.
    """
    loaded, data, _ = load_study(study)
    return summarise(loaded, data)


def runs(study: str | Path) -> list[dict[str, object]]:
    """Return every run of a study as plain values, in the order in which they were queued.

    Raises:
        StudyNotFoundError: If that folder holds no study.
    """
    loaded, _, _ = load_study(study)
    return [_run_row(loaded, record) for record in loaded.runs.values()]


def report(study: str | Path) -> str:
    """Write a study's report anew and return where the page lies: its path, or its `s3://` location.

    Raises:
        StudyNotFoundError: If that folder holds no study.
    """
    loaded, data, store = load_study(study)
    write_report(loaded, data, store)
    return join_location(study, keys.REPORT_HTML)


def train(
    dataset: str | Path,
    *,
    configuration: Configuration | str | Path,
    epochs: int,
    output: str | Path,
    fold: int = 0,
    seed: int = 0,
    on_interrupt: Callable[[], None] | None = None,
) -> Result:
    """Train one configuration without a search; `predict` takes the output folder as it takes a study's.

    The learning rate decays to zero over the epochs. One fold is held out and scored. Called again after an
    interruption, it goes on from the last checkpoint; called again after its end, it answers at once, but tries anew
    what has failed.

    Args:
        dataset: Folder in MSD or nnU-Net layout.
        configuration: Or its YAML or JSON file; what it does not name keeps the standard's value.
        epochs: One epoch is one patch of each training case.
        output: Folder or `s3://` location for checkpoint, result and log; it holds one training, of any folds.
        fold: Of four, no case being kept for a test.
        seed: Of weights, order and augmentation.
        on_interrupt: Called at a first Ctrl-C, which then stops the training as SIGTERM does; a second one interrupts
            at once. None: so does the first.

    Raises:
        UserError: If dataset or configuration are faulty, there is no such fold, or the output holds another training.
        StopRequestedError: After SIGTERM, or Ctrl-C as above, once the state is saved; the same call goes on.
    """
    from automonai.single_training import train_alone

    split = SplitSpec(test=0, seed=seed)
    if fold >= split.folds:
        raise SpecError(f"fold {fold} does not exist: there are {split.folds}, 0 to {split.folds - 1}")
    chosen = configuration
    if not isinstance(chosen, Configuration):
        chosen = parse_configuration(read_yaml(chosen), where=str(chosen))
    run = Run(trial=0, budget_epochs=epochs, fold=fold, purpose=Purpose.REFIT)
    request = TrainRequest(
        run=run,
        configuration=chosen,
        seed=derive_seed(seed, "train"),
        decay=True,
        memory_bytes=_memory_per_run(ExecutionSpec(max_parallel_runs=1)),
    )
    place = place_on_this_machine(output)
    with locked(place, study=str(output)), stop_on_sigterm(on_interrupt=on_interrupt) as stopped:
        return train_alone(
            request,
            dataset,
            split=split,
            output=output,
            cache_folder=user_cache_folder() if is_remote(output) else place / CACHE_FOLDER,
            stop=stopped,
        )


def predict(
    study: str | Path,
    images: Sequence[str | Path],
    *,
    output: str | Path,
    on_case: Callable[[str, Path], None] | None = None,
) -> list[Path]:
    """Segment images with a study's ensemble; return the label maps' paths.

    Args:
        study: A study's folder or `s3://` location, or the output of `train`.
        images: Files or folders. In a study on nnU-Net data, or of several channels, files CASE_0000, CASE_0001 are
            the channels of CASE.
        output: Folder; a label map per case, in its image's orientation, shape and affine.
        on_case: Told each case's id and label map once that is written.

    Raises:
        StudyNotFoundError: If there is no ensemble.
        DatasetError: Naming every image that could not be segmented; the others' label maps are written.
    """
    from automonai.imaging.layouts import find_images
    from automonai.learning.precision import choose_device, choose_precision, limit_threads
    from automonai.learning.predicting import predict_cases

    store = open_store(study)
    try:
        ensemble = read_record(store, keys.ENSEMBLE, EnsembleResult)
        data = read_record(store, keys.DATA, StudyData)
    except ObjectNotFoundError as error:
        what = "ensemble; run 'automonai search' to its end, or see 'automonai status'"
        if not any(True for _ in store.list(keys.JOURNAL)):
            what = "complete network; start 'automonai train' again, and see what it says in runs/"
        if not store.exists(keys.DATA):
            what = "study and no training; name the place <store>/<study name>, or the output of 'automonai train'"
        raise StudyNotFoundError(f"{study}: there is no {what}") from error
    cases = find_images(
        [Path(image) for image in images],
        layout=data.dataset.layout,
        channel_count=len(data.dataset.channels),
    )
    execution = ExecutionSpec()  # this machine's own: the study may have been made on another
    device = choose_device(execution)
    limit_threads()
    refuse_unwritable(Path(output))
    with TemporaryDirectory(prefix="automonai-") as scratch:
        return predict_cases(
            ensemble,
            store=store,
            data=data,
            images=cases,
            output=Path(output),
            scratch_folder=Path(scratch),
            device=device,
            dtype=choose_precision(execution, device),
            on_case=on_case,
        )


def evaluate(predictions: str | Path, labels: str | Path, *, tolerance_mm: float = 1.0) -> Evaluation:
    """Score label maps against the truth: Dice, 95 % Hausdorff distance and surface Dice per case and label value.

    Args:
        predictions: Folder of label maps.
        labels: Folder of label maps under the same names.
        tolerance_mm: Of the surface Dice.

    Raises:
        DatasetError: If a prediction has no label, or they are unreadable or of different shape or affine. Labels
            without a prediction are named in the result.
    """
    from automonai.learning.scoring import evaluate_folders

    return evaluate_folders(Path(predictions), Path(labels), tolerance_mm=tolerance_mm)


def _local_executor(spec: StudySpec, location: str, *, lock: int, metrics: bool) -> LocalExecutor:
    machine = detect_machine()
    slots = spec.execution.max_parallel_runs
    gpus = () if spec.execution.device == "cpu" else tuple(gpu.id for gpu in machine.gpus)
    return LocalExecutor(
        location,
        slots=slots,
        threads=spec.execution.threads or machine.threads_per_run(slots),
        cache_folder=cache_folder_of(spec.store),
        gpus=gpus,
        inherited_lock=lock,
        metrics=metrics,
    )


def _memory_per_run(execution: ExecutionSpec) -> int:
    if execution.memory_gib is not None:
        return int(execution.memory_gib * 2**30)
    return detect_machine().memory_per_run(execution.max_parallel_runs, on_gpu=execution.device != "cpu")


def _run_row(study: Study, record: RunRecord) -> dict[str, object]:
    trial, result = study.trials[record.run.trial], record.result
    return {
        "id": record.run.id,
        "trial": record.run.trial,
        "configuration": trial.configuration.model_dump(mode="json"),
        "budget_epochs": record.run.budget_epochs,
        "fold": record.run.fold,
        "purpose": record.run.purpose.value,
        "state": record.state.value,
        "loss": result.loss if result else None,
        "seconds": result.seconds if result else None,
        "peak_memory_bytes": result.peak_memory_bytes if result else None,
        "origin": trial.origin.value,
        "reason": result.reason.value if result and result.reason else None,
        "message": result.message if result else "",
    }


@contextmanager
def stop_on_sigterm(*, on_interrupt: Callable[[], None] | None = None) -> Iterator[threading.Event]:
    """Turn SIGTERM into an event while the body runs; only the main thread can.

    Args:
        on_interrupt: Called at a first Ctrl-C, which then is an event, too; None: it interrupts as usual.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: stopped.set())}

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        stopped.set()
        if on_interrupt is not None:
            on_interrupt()

    if on_interrupt is not None and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's background jobs
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
