"""One training without a search: its folder holds it alone, and asking for it again goes on with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from automonai.domain.request import EnsembleMember, EnsembleResult, StudyData, TrainRequest
from automonai.domain.run import Result, RunState
from automonai.errors import SpecError
from automonai.preparing import prepare_data, refuse_changed_files
from automonai.spec import SplitSpec, TrainingSpec
from automonai.storage import keys
from automonai.storage.opening import is_remote, open_store
from automonai.storage.store import Store, read_record
from automonai.worker import serve


def train_alone(
    request: TrainRequest,
    dataset: str | Path,
    *,
    split: SplitSpec,
    output: str | Path,
    cache_folder: Path,
    stop: threading.Event,
) -> Result:
    """Train, or go on with what an interruption left, and make the networks of all complete folds what `predict` takes.

    What is complete is not trained again; what FAILED is. Beside the run, its output gets an ensemble in which every
    complete fold has the same weight, those of earlier calls included.

    Raises:
        UserError: If the dataset is faulty or not what it was, or the output holds another training or a study.
        StopRequestedError: If `stop` was set; the checkpoint is committed.
    """
    store, run_id = open_store(output), request.run_id
    _refuse_another(store, request, dataset, seed=split.seed, output=output)
    before = _result(store, run_id)
    if not store.exists(keys.DATA):
        data = prepare_data(dataset, split=split, training=TrainingSpec(), cache_folder=cache_folder)
        store.put(keys.DATA, data.model_dump_json(indent=1).encode())
    elif before is None or before.state is not RunState.COMPLETE:
        refuse_changed_files(read_record(store, keys.DATA, StudyData), cache_folder)
    if before is not None and before.state is RunState.FAILED:
        store.delete(keys.result(run_id))
    store.put(keys.request(run_id), request.model_dump_json().encode())
    serve(run_id, store=store, cache_folder=cache_folder, stop=stop)
    result = read_record(store, keys.result(run_id), Result)
    if members := _complete_folds(store):
        store.put(keys.ENSEMBLE, EnsembleResult(members=members).model_dump_json().encode())
    return result


def _complete_folds(store: Store) -> tuple[EnsembleMember, ...]:
    """Return the networks of the output's complete runs, by fold, each with the same weight."""
    found = [(request.run, _result(store, request.run_id)) for request in _requests(store)]
    complete = [(run, result.checkpoint) for run, result in found if result is not None and result.checkpoint]
    return tuple(
        EnsembleMember(run_id=run.id, trial=run.trial, fold=run.fold, weight=1 / len(complete), checkpoint=checkpoint)
        for run, checkpoint in sorted(complete, key=lambda member: member[0].fold)
    )


def _requests(store: Store) -> Iterator[TrainRequest]:
    """Yield what the output's runs were asked."""
    for key in store.list(keys.RUNS):
        if key.endswith("/request.json"):
            yield read_record(store, key, TrainRequest)


def _result(store: Store, run_id: str) -> Result | None:
    """Return a run's result; None before its end."""
    key = keys.result(run_id)
    return read_record(store, key, Result) if store.exists(key) else None


def _refuse_another(store: Store, request: TrainRequest, dataset: str | Path, *, seed: int, output: str | Path) -> None:
    """Refuse an output that holds anything but this training, of whichever folds."""
    if any(True for _ in store.list(keys.JOURNAL)):
        raise SpecError(f"{output}: holds a study; name another folder for a single training")
    differences: dict[str, tuple[object, object]] = {}
    if store.exists(keys.DATA):
        data = read_record(store, keys.DATA, StudyData)
        differences |= _differences({"dataset": _place(data.dataset.root)}, {"dataset": _place(dataset)})
        differences |= _differences({"seed": data.split.seed}, {"seed": seed})
    for held in _requests(store):
        differences |= _differences(_settings(held), _settings(request))
    if differences:
        words = "; ".join(f"{name}: {before}, now {now}" for name, (before, now) in differences.items())
        raise SpecError(f"{output}: holds another training ({words}); name another folder, or ask for the same again")


def _differences(before: dict[str, object], now: dict[str, object]) -> dict[str, tuple[object, object]]:
    return {name: (before[name], now[name]) for name in before if before[name] != now[name]}


def _settings(request: TrainRequest) -> dict[str, object]:
    return {"epochs": request.run.budget_epochs, **request.configuration.model_dump(mode="json")}


def _place(dataset: str | Path) -> str:
    """Return where a dataset lies, in words that a user's and a study's own can be compared by: without a pin."""
    return str(dataset).partition("#")[0].rstrip("/") if is_remote(dataset) else str(Path(dataset).resolve())
