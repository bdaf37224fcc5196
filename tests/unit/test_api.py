"""What the public functions refuse, go on with and write before a training; datasets and trainings are made up."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import studies

from automonai import api, preparing, single_training, starting, worker
from automonai.domain.configuration import Configuration
from automonai.domain.dataset import Split
from automonai.domain.events import Event, RefitChosen, SearchEnded, SpecChanged, StudyEnded
from automonai.domain.request import EnsembleMember, EnsembleResult, StudyData, TrainRequest
from automonai.domain.run import Result, RunState
from automonai.errors import (
    CorruptObjectError,
    DatasetError,
    SpecError,
    StopRequestedError,
    StudyNotFoundError,
)
from automonai.imaging.phantom import write_phantom
from automonai.spec import ExecutionSpec, RefitSpec, SplitSpec, StudySpec, TrainingSpec
from automonai.storage import keys
from automonai.storage.journal import Journal
from automonai.storage.local import LocalStore
from automonai.storage.memory import MemoryStore

CPU = ExecutionSpec(device="cpu", precision="float32")


@pytest.fixture(autouse=True)
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Take every dataset for a small one that is in order; give the names of those that were looked at."""
    datasets: list[str] = []

    def prepare(
        dataset: str,
        *,
        split: SplitSpec,
        training: TrainingSpec,
        cache_folder: Path,
        execution: ExecutionSpec | None = None,
    ) -> StudyData:
        datasets.append(str(dataset))
        data = studies.make_data(studies.make_spec(), test_cases=0)
        ids = [case.id for case in data.dataset.cases]
        folds = 3 if split.file else split.folds
        division = Split(seed=split.seed, test=(), folds=tuple(tuple(ids[fold::folds]) for fold in range(folds)))
        root = str(Path(dataset).resolve())
        update = {"split": division, "training": training, "execution": execution or ExecutionSpec()}
        return data.model_copy(update={"dataset": data.dataset.model_copy(update={"root": root}), **update})

    monkeypatch.setattr(starting, "prepare_data", prepare)
    monkeypatch.setattr(single_training, "prepare_data", prepare)
    monkeypatch.setattr(single_training, "refuse_changed_files", lambda data, cache_folder: None)
    return datasets


# Studies


def data_of(store: MemoryStore) -> StudyData:
    return StudyData.model_validate_json(store.get(keys.DATA))


def with_execution(spec: StudySpec, execution: ExecutionSpec) -> StudySpec:
    return spec.model_copy(update={"execution": execution})


def test_a_study_knows_how_many_folds_its_own_division_has() -> None:
    spec = studies.make_spec().model_copy(update={"split": SplitSpec(file="split.json")})
    study, data = starting.begin(spec, store := MemoryStore(), Journal(store))
    assert study.folds == len(data.split.folds) == 3
    assert starting.begin(spec, store, Journal(store))[0].folds == 3


def test_another_execution_reaches_the_workers_of_a_study_that_goes_on() -> None:
    store, spec = MemoryStore(), studies.make_spec()
    starting.begin(spec, store, Journal(store))
    study, data = starting.begin(with_execution(spec, CPU), store, Journal(store))
    assert study.spec.execution == data.execution == data_of(store).execution == CPU
    assert isinstance(Journal(store).read()[-1], SpecChanged)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_change_of_execution_that_was_cut_short_is_completed_or_taken_back_by_the_next_call(
    is_old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, old = MemoryStore(), studies.make_spec()
    new = with_execution(old, CPU)
    starting.begin(old, store, Journal(store))

    def killed(self: Journal, event: Event) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            starting.begin(new, store, Journal(store))
    spec = old if is_old else new
    study, data = starting.begin(spec, store, Journal(store))
    assert study.spec.execution == data.execution == data_of(store).execution == spec.execution


@pytest.mark.parametrize("rungs", [{"max_epochs": 27}, {"min_epochs": 3}, {"eta": 2}])
def test_the_rungs_of_a_started_study_stay(rungs: dict[str, int]) -> None:
    store, spec = MemoryStore(), studies.make_spec()
    starting.begin(spec, store, Journal(store))
    other = spec.model_copy(update={"budget": spec.budget.model_copy(update=rungs)})
    for begin in (lambda: starting.begin(other, store, Journal(store)), lambda: starting.begin_if_new(other, store)):
        with pytest.raises(SpecError, match=rf"another 'budget.{next(iter(rungs))}' \(\d+, now \d+\)"):
            begin()
    more = spec.model_copy(update={"budget": spec.budget.model_copy(update={"iterations": 7})})
    assert starting.begin(more, store, Journal(store))[0].spec.budget.iterations == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": "elsewhere"}, "is over, and was started with another 'dataset'"),
        ({"budget": {"iterations": 7}}, r"is over, and was made with another 'budget.iterations' \(3, now 7\)"),
        ({"budget": {"time": 60.0}}, r"is over, and was made with another 'budget.time' \(None, now 60.0\)"),
        ({"refit": RefitSpec(members=1)}, r"is over, and was made with another 'refit' \(members: None, now 1\)"),
        ({"execution": ExecutionSpec(max_parallel_runs=2)}, ""),
    ],
)
def test_a_study_that_is_over_answers_no_other_spec(change: dict[str, object], words: str) -> None:
    store, spec = MemoryStore(), studies.make_spec()
    starting.begin(spec, store, Journal(store))
    Journal(store).append(StudyEnded(at=5.0, succeeded=True, why="the ensemble is chosen"))
    if "budget" in change:
        change = {"budget": spec.budget.model_copy(update=change["budget"])}
    other = spec.model_copy(update=change)
    if not words:
        assert starting.begin(other, store, Journal(store))[0].is_over
        return
    for begin in (lambda: starting.begin(other, store, Journal(store)), lambda: starting.begin_if_new(other, store)):
        with pytest.raises(SpecError, match=words):
            begin()


@pytest.mark.parametrize(
    ("happened", "change", "words"),
    [
        (SearchEnded(at=5.0, why="so"), {"budget": {"iterations": 7}}, "has ended its search with another 'budget.it"),
        (SearchEnded(at=5.0, why="so"), {"budget": {"epochs": 700}}, "has ended its search with another 'budget.ep"),
        (SearchEnded(at=5.0, why="so"), {"refit": RefitSpec(members=1)}, ""),
        (RefitChosen(at=6.0, runs=(), why="so"), {"refit": RefitSpec(members=1)}, "has begun its refit with another"),
    ],
)
def test_what_is_decided_cannot_be_changed(happened: Event, change: dict[str, Any], words: str) -> None:
    store, spec = MemoryStore(), studies.make_spec()
    starting.begin(spec, store, Journal(store))
    Journal(store).append(happened)
    if "budget" in change:
        change = {"budget": spec.budget.model_copy(update=change["budget"])}
    other = spec.model_copy(update=change)
    if not words:
        assert starting.begin(other, store, Journal(store))[0].spec == other
        return
    with pytest.raises(SpecError, match=words):
        starting.begin(other, store, Journal(store))


@pytest.mark.parametrize("key", ["runs/refit-0000-fold-0/result.json", "ensemble/ensemble.json"])
def test_a_study_does_not_begin_where_another_has_left_answers(key: str) -> None:
    store = MemoryStore()
    store.put(key, b"{}")
    with pytest.raises(SpecError, match=f"has no journal, but holds {key} of a single training"):
        starting.begin(studies.make_spec(), store, Journal(store))


def test_a_dataset_that_is_gone_is_told_with_each_file(tmp_path: Path) -> None:
    spec = studies.make_spec()
    data = studies.make_data(spec)
    with pytest.raises(DatasetError, match="was there when the study was started, and is not now") as caught:
        preparing.refuse_changed_files(data, tmp_path)
    assert len(caught.value.problems) == 2 * len(data.dataset.cases)
    remote = data.dataset.model_copy(update={"root": "s3://bucket/datasets/a#1"})
    preparing.refuse_changed_files(data.model_copy(update={"dataset": remote}), tmp_path)


def test_a_case_whose_files_are_others_than_at_the_start_is_told(tmp_path: Path) -> None:
    phantom = tmp_path / "phantom"
    write_phantom(phantom, cases=5, shape=(16, 16, 16))
    data = preparing.prepare_data(
        phantom, split=SplitSpec(test=0.2, folds=2), training=TrainingSpec(), cache_folder=tmp_path
    )
    assert set(data.contents) == {case.id for case in data.dataset.cases}
    preparing.refuse_changed_files(data, tmp_path / "cache")
    preparing.refuse_changed_files(data, tmp_path / "cache")
    label, other = (data.dataset.label_path(case) for case in data.dataset.cases[:2])
    label.write_bytes(other.read_bytes())
    with pytest.raises(DatasetError, match=f"^case {data.dataset.cases[0].id}: its files are not those with which"):
        preparing.refuse_changed_files(data, tmp_path / "cache")


@pytest.mark.parametrize(("key", "kind"), [("data.json", "StudyData"), ("ensemble/ensemble.json", "EnsembleResult")])
def test_a_record_of_another_version_is_told(tmp_path: Path, key: str, kind: str) -> None:
    store = LocalStore(tmp_path)
    member = EnsembleMember(run_id="refit-0000-fold-0", trial=0, fold=0, weight=1, checkpoint="runs/a")
    whole = {
        "data.json": studies.make_data(studies.make_spec()).model_dump_json().encode(),
        "ensemble/ensemble.json": EnsembleResult(members=(member,)).model_dump_json().encode(),
    }
    for name in ("data.json", "ensemble/ensemble.json"):
        store.put(name, b"{}" if name == key else whole[name])
    with pytest.raises(CorruptObjectError, match=f"{key}: is no {kind} as this version of automonai writes it"):
        api.predict(tmp_path, [tmp_path], output=tmp_path / "out")


def test_whoever_does_not_hold_a_study_only_starts_one_that_is_new(prepared: list[str]) -> None:
    store, spec = MemoryStore(), studies.make_spec()
    starting.begin_if_new(spec, store)
    started = {key: store.get(key) for key in store.list()}
    starting.begin_if_new(with_execution(spec, CPU), store)
    assert {key: store.get(key) for key in store.list()} == started
    assert len(prepared) == 1


def test_a_study_that_somebody_starts_while_its_dataset_is_checked_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, spec = MemoryStore(), studies.make_spec()
    prepare = starting.prepare_data

    def slowly(*arguments: Any, **options: Any) -> StudyData:
        monkeypatch.setattr(starting, "prepare_data", prepare)
        starting.begin(with_execution(spec, CPU), store, Journal(store))
        return prepare(*arguments, **options)

    monkeypatch.setattr(starting, "prepare_data", slowly)
    starting.begin_if_new(spec, store)
    assert len(Journal(store).read()) == 1
    assert data_of(store).execution == CPU


def test_a_study_does_not_take_results_of_something_else_for_its_own(prepared: list[str]) -> None:
    store, spec = MemoryStore(), studies.make_spec()
    store.put(keys.result("refit-0000-fold-0"), b"{}")
    with pytest.raises(SpecError, match=r"no journal, but holds runs/refit-0000-fold-0/result.json"):
        starting.begin(spec, store, Journal(store))
    assert not prepared
    assert list(store.list()) == [keys.result("refit-0000-fold-0")]


def test_a_study_that_is_over_keeps_its_execution() -> None:
    store, spec = MemoryStore(), studies.make_spec()
    starting.begin(spec, store, Journal(store))
    Journal(store).append(StudyEnded(at=9.0, succeeded=True, why="done"))
    study, data = starting.begin(with_execution(spec, CPU), store, Journal(store))
    assert study.spec == spec
    assert data.execution == data_of(store).execution == spec.execution


def test_a_device_that_is_not_here_is_told_before_anything_is_read_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: list[str]
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'execution.device is cuda' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    spec = with_execution(studies.make_spec(), ExecutionSpec(device="cuda"))
    with pytest.raises(SpecError, match="^execution.device is cuda$"):
        api.search(spec.model_copy(update={"store": str(tmp_path / "studies")}))
    assert not prepared
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize(("wish", "words"), [({"name": "My Study"}, "My Study"), ({"budget": "soon"}, "soon")])
def test_a_name_or_budget_that_cannot_be_is_told_before_the_dataset_is_checked(
    wish: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "check", lambda *_: pytest.fail("the dataset was checked"))
    with pytest.raises(SpecError, match=words):
        api.init("data", **wish)


# A single training

ASKED: dict[str, Any] = {"configuration": Configuration(channels=8), "epochs": 5}


@dataclass
class Trainer:
    """Stands in for a worker's training: answers one after the other, the last one again and again."""

    answers: list[RunState | Exception] = field(default_factory=lambda: [RunState.COMPLETE])
    requests: list[TrainRequest] = field(default_factory=list)

    def __call__(self, request: TrainRequest, data: StudyData, **_: object) -> tuple[Result, int]:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        is_complete = answer is RunState.COMPLETE
        result = Result(
            run_id=request.run_id,
            state=answer,
            loss=0.2 if is_complete else None,
            epochs=request.run.budget_epochs,
            checkpoint=keys.checkpoint_manifest(request.run_id) if is_complete else None,
        )
        return result, 0


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    stand_in = Trainer()
    monkeypatch.setattr(worker, "_train", stand_in)
    return stand_in


@pytest.fixture
def train(tmp_path: Path, trainer: Trainer) -> Callable[..., Result]:
    """Give the call of a training, always into the same folder."""

    def ask(dataset: str = "data", **changed: object) -> Result:
        return api.train(dataset, output=tmp_path / "out", **(ASKED | changed))

    return ask


def test_a_training_that_is_complete_answers_at_once(train: Callable[..., Result], trainer: Trainer) -> None:
    assert train() == train()
    assert len(trainer.requests) == 1


def test_a_training_that_was_interrupted_goes_on(train: Callable[..., Result], trainer: Trainer) -> None:
    trainer.answers = [StopRequestedError("asked to leave"), RunState.COMPLETE]
    with pytest.raises(StopRequestedError):
        train()
    assert train().state is RunState.COMPLETE
    assert trainer.requests[0] == trainer.requests[1]


def test_another_fold_is_not_trained_on_other_files(
    train: Callable[..., Result], trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(data: StudyData, cache_folder: Path) -> None:
        raise DatasetError([f"{data.dataset.root}: is not what it was"])

    complete = train()
    monkeypatch.setattr(single_training, "refuse_changed_files", refuse)
    assert train() == complete
    with pytest.raises(DatasetError, match="is not what it was"):
        train(fold=1)
    assert len(trainer.requests) == 1


def test_a_training_that_failed_is_tried_anew(train: Callable[..., Result], trainer: Trainer) -> None:
    trainer.answers = [RunState.FAILED, RunState.COMPLETE]
    assert [train().state, train().state] == [RunState.FAILED, RunState.COMPLETE]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"configuration": Configuration(channels=64)}, "channels: 8, now 64"),
        ({"epochs": 50}, "epochs: 5, now 50"),
        ({"seed": 7}, "seed: 0, now 7"),
        ({"dataset": "other"}, "dataset: .*data, now .*other"),
        ({"fold": 1, "epochs": 50}, "epochs: 5, now 50"),
    ],
)
def test_a_folder_that_holds_another_training_is_refused(
    changed: dict[str, object], words: str, train: Callable[..., Result], trainer: Trainer
) -> None:
    train()
    with pytest.raises(SpecError, match=f"out: holds another training \\({words}\\); name another folder"):
        train(**changed)
    assert len(trainer.requests) == 1


def test_another_fold_of_the_same_training_may_stand_beside_it(train: Callable[..., Result]) -> None:
    assert [train().run_id, train(fold=1).run_id] == ["refit-0000-fold-0", "refit-0000-fold-1"]


def test_all_complete_folds_of_a_training_are_the_ensemble_that_predict_takes(
    train: Callable[..., Result], trainer: Trainer, tmp_path: Path
) -> None:
    def members() -> dict[str, float]:
        ensemble = EnsembleResult.model_validate_json(LocalStore(tmp_path / "out").get(keys.ENSEMBLE))
        return {member.checkpoint: member.weight for member in ensemble.members}

    folds = [keys.checkpoint_manifest(f"refit-0000-fold-{fold}") for fold in range(4)]
    train(fold=2)
    assert members() == {folds[2]: 1.0}
    train(fold=0)
    assert members() == {folds[0]: 0.5, folds[2]: 0.5}
    trainer.answers = [RunState.FAILED, RunState.COMPLETE]
    train(fold=1)
    assert members() == {folds[0]: 0.5, folds[2]: 0.5}
    train(fold=1)
    assert members() == pytest.approx(dict.fromkeys(folds[:3], 1 / 3))


def test_a_fold_that_was_interrupted_is_no_member(
    train: Callable[..., Result], trainer: Trainer, tmp_path: Path
) -> None:
    trainer.answers = [StopRequestedError("asked to leave")]
    with pytest.raises(StopRequestedError):
        train(fold=3)
    trainer.answers = [RunState.COMPLETE]
    train()
    ensemble = EnsembleResult.model_validate_json(LocalStore(tmp_path / "out").get(keys.ENSEMBLE))
    assert [(member.fold, member.weight) for member in ensemble.members] == [(0, 1.0)]


def test_a_folder_that_holds_a_study_is_refused(train: Callable[..., Result], tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out")
    starting.begin(studies.make_spec(), store, Journal(store))
    with pytest.raises(SpecError, match="holds a study"):
        train()


def test_a_fold_that_does_not_exist_is_told_before_anything_is_read_or_written(
    train: Callable[..., Result], prepared: list[str], tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="fold 9 does not exist: there are 4, 0 to 3"):
        train(fold=9)
    assert not prepared
    assert not (tmp_path / "out").exists()


# Predictions


def test_a_place_without_a_study_is_told_from_a_study_without_an_ensemble(tmp_path: Path) -> None:
    with pytest.raises(StudyNotFoundError, match="nowhere: there is no study and no training; name the place"):
        api.predict(tmp_path / "nowhere", [tmp_path], output=tmp_path / "out")
    store, spec = LocalStore(tmp_path / "begun"), studies.make_spec()
    starting.begin(spec, store, Journal(store))
    with pytest.raises(StudyNotFoundError, match="begun: there is no ensemble; run 'automonai search' to its end"):
        api.predict(tmp_path / "begun", [tmp_path], output=tmp_path / "out")
    LocalStore(tmp_path / "trained").put(keys.DATA, studies.make_data(spec).model_dump_json().encode())
    with pytest.raises(StudyNotFoundError, match="there is no complete network; start 'automonai train' again"):
        api.predict(tmp_path / "trained", [tmp_path], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
