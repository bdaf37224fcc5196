"""How a study begins and is taken up: what its journal and its workers' data say before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from operator import attrgetter
from pathlib import Path
from time import time

from pydantic import BaseModel

from automonai.documents import dump_yaml
from automonai.domain.events import SpecChanged, StudyStarted
from automonai.domain.request import StudyData
from automonai.domain.study import Study
from automonai.errors import SpecError, StudyNotFoundError
from automonai.preparing import cache_folder_of, prepare_data
from automonai.spec import StudySpec
from automonai.storage import keys
from automonai.storage.journal import Journal
from automonai.storage.opening import join_location
from automonai.storage.store import Store, read_record

_LASTING = ("budget.min_epochs", "budget.max_epochs", "budget.eta", "dataset", "split", "search", "training")
"""What of a spec stays as it was when the study was started."""
_LIMITS_OF_THE_SEARCH = ("budget.iterations", "budget.epochs")


def replay(journal: Journal, place: str | Path) -> Study:
    """Return a study as its journal tells it.

    Raises:
        StudyNotFoundError: If the journal is empty; names the place.
    """
    events = journal.read()
    if not events:
        raise StudyNotFoundError(
            f"{place}: there is no study; name the place <store>/<study name> where 'automonai search' has put it"
        )
    return Study.replay(events)


def begin(spec: StudySpec, store: Store, journal: Journal) -> tuple[Study, StudyData]:
    """Start a study, or take it up if its journal has events; nothing is run yet. For whoever holds the study.

    Raises:
        UserError: If spec or dataset are faulty, a started study's spec differs, or what is there is no study.
    """
    events = journal.read()
    if events:
        return _go_on(spec, Study.replay(events), store, journal)
    return _start(spec, _prepared(spec, store), store, journal)


def begin_if_new(spec: StudySpec, store: Store) -> None:
    """Start a study that is not there yet; of one that is, only see whether it may go on by this spec.

    For whoever does not hold the study: a started one's journal is its controller's alone, who may be at work.

    Raises:
        UserError: As `begin`.
    """
    journal = Journal(store)
    events = journal.read()
    if not events:
        data = _prepared(spec, store)
        events = journal.read()  # to check a dataset takes minutes, in which another may have started the study
        if not events:
            _start(spec, data, store, journal)
            return
    _refuse_another(spec, Study.replay(events))


def _prepared(spec: StudySpec, store: Store) -> StudyData:
    """Return a new study's data, once its dataset is checked.

    Raises:
        UserError: If the dataset or its division are faulty, or there are runs, whose results the study would take for
            its own.
    """
    other = next(chain(store.list(keys.RUNS), store.list(keys.ENSEMBLE)), None)
    if other is not None:
        raise SpecError(
            f"study {spec.name}: {join_location(spec.store, spec.name)} has no journal, but holds {other} of a single"
            " training, or of a study whose journal is gone; give this study another name, or move all of that away"
        )
    return prepare_data(
        spec.dataset,
        split=spec.split,
        training=spec.training,
        execution=spec.execution,
        cache_folder=cache_folder_of(spec.store),
    )


def _start(spec: StudySpec, data: StudyData, store: Store, journal: Journal) -> tuple[Study, StudyData]:
    """Write what all workers share, then the event that makes it a study."""
    store.put(keys.DATA, data.model_dump_json(indent=1).encode())
    store.put(keys.SPLIT, data.split.model_dump_json(indent=1).encode())
    store.put(keys.SPEC, dump_yaml(spec.model_dump(mode="json")).encode())
    started = StudyStarted(at=time(), spec=spec, software=_software(), folds=len(data.split.folds))
    journal.append(started)
    return Study.replay([started]), data


def take_up(spec: StudySpec, store: Store, journal: Journal) -> tuple[Study, StudyData]:
    """Replay a started study; limits of the budget, execution and refit may have changed since, nothing else.

    For whoever holds the study.

    Raises:
        StudyNotFoundError: If there is no study.
        SpecError: If something else has changed.
    """
    return _go_on(spec, replay(journal, join_location(spec.store, spec.name)), store, journal)


def _go_on(spec: StudySpec, study: Study, store: Store, journal: Journal) -> tuple[Study, StudyData]:
    """Write down what may have changed, and has.

    Workers read the execution's settings in the data. They are written before the event: whatever ends this call in
    between, the next one writes the rest.
    """
    data = read_record(store, keys.DATA, StudyData)
    _refuse_another(spec, study)
    if study.is_over:
        return study, data
    if data.execution != spec.execution:
        data = data.model_copy(update={"execution": spec.execution})
        store.put(keys.DATA, data.model_dump_json(indent=1).encode())
    if spec != study.spec:
        changed = SpecChanged(at=study.last_event_at, spec=spec)
        journal.append(changed)
        study.apply(changed)
    return study, data


def _refuse_another(spec: StudySpec, study: Study) -> None:
    """Refuse a spec that a started study is not of: its results would not compare, or its rungs would move.

    Nor can it change what has been decided by now: one that is over is no answer to another budget.
    """
    for name, since in _settled(study):
        before, now = (attrgetter(name)(given) for given in (study.spec, spec))
        if before != now:
            raise SpecError(
                f"study {spec.name} {since} another '{name}' ({_difference(before, now)}); give this one another name,"
                " or restore the setting"
            )


def _settled(study: Study) -> Iterator[tuple[str, str]]:
    """Yield what of the spec can no longer change, and since when."""
    for name in _LASTING:
        yield name, f"{'is over, and ' if study.is_over else ''}was started with"
    if study.is_over:
        yield from ((name, "is over, and was made with") for name in (*_LIMITS_OF_THE_SEARCH, "budget.time", "refit"))
    if study.search_ended is not None:
        yield from ((name, "has ended its search with") for name in _LIMITS_OF_THE_SEARCH)
    if study.refit is not None:
        yield "refit", "has begun its refit with"


def _difference(before: object, now: object) -> str:
    if not isinstance(before, BaseModel) or not isinstance(now, BaseModel):
        return f"{before}, now {now}"
    old, new = before.model_dump(), now.model_dump()
    return "; ".join(f"{key}: {old[key]!r}, now {new[key]!r}" for key in old if old[key] != new[key])


def _software() -> dict[str, str]:
    names = ("automonai", "torch", "monai", "hpbandster", "ConfigSpace", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
