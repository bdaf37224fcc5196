from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
import torch
from studies import make_data, make_spec
from tinytraining import tiny_plan

from automonai.domain.configuration import Configuration
from automonai.domain.dataset import Case, Dataset
from automonai.domain.plan import make_plan
from automonai.domain.request import TrainRequest
from automonai.domain.run import FailureReason, Run, RunState
from automonai.errors import (
    BadRequestError,
    DatasetError,
    DoesNotFitError,
    NonFiniteLossError,
    StopRequestedError,
    TooSlowError,
)
from automonai.imaging.phantom import write_phantom
from automonai.imaging.prepared_room import make_room, note_use
from automonai.learning import training
from automonai.learning.training import failed_result, train_run
from automonai.preparing import prepare_data
from automonai.spec import SplitSpec, TrainingSpec
from automonai.storage.memory import MemoryStore

REQUEST = TrainRequest(run=Run(trial=0, budget_epochs=1), configuration=Configuration(), seed=0)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NonFiniteLossError("x"), FailureReason.NON_FINITE_LOSS),
        (TooSlowError("x"), FailureReason.TOO_SLOW),
        (DoesNotFitError("x"), FailureReason.DOES_NOT_FIT),
        (torch.OutOfMemoryError("CUDA out of memory"), FailureReason.OUT_OF_MEMORY),
        (MemoryError(), FailureReason.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), FailureReason.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), FailureReason.OUT_OF_MEMORY),
        (ZeroDivisionError("x"), FailureReason.BAD_CONFIGURATION),
    ],
)
def test_every_error_becomes_a_failed_result_with_its_reason_and_peak(
    error: BaseException, reason: FailureReason
) -> None:
    result = failed_result(REQUEST, error, seconds=2.0)
    assert (result.state, result.reason, result.seconds) == (RunState.FAILED, reason, 2.0)
    assert result.peak_memory_bytes is not None
    assert result.peak_memory_bytes > 2**20


def test_a_plan_that_does_not_fit_is_refused_with_both_numbers(tmp_path: Path) -> None:
    request = REQUEST.model_copy(update={"memory_bytes": 123456})
    with pytest.raises(DoesNotFitError, match=r"needs about \d+ bytes .* may use 123456"):
        train_run(request, make_data(make_spec()), store=MemoryStore(), cache_folder=tmp_path, stop=threading.Event())


def test_a_fold_that_does_not_exist_is_a_bad_request(tmp_path: Path) -> None:
    request = REQUEST.model_copy(update={"run": Run(trial=0, budget_epochs=1, fold=9)})
    with pytest.raises(BadRequestError, match="fold 9"):
        train_run(request, make_data(make_spec()), store=MemoryStore(), cache_folder=tmp_path, stop=threading.Event())


def test_a_stop_while_cases_are_prepared_leaves_at_once(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(StopRequestedError):
        train_run(REQUEST, make_data(make_spec()), store=MemoryStore(), cache_folder=tmp_path, stop=stop)


def test_a_run_lets_go_of_the_cases_that_its_process_used_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare_case(dataset: Dataset, case: Case, **_: object) -> None:
        prepared(case.id)

    def prepared(name: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "case.json").write_bytes(b"facts")
        note_use(tmp_path / name)

    monkeypatch.setattr(training, "prepare_case", prepare_case)
    data = make_data(make_spec())
    plan = make_plan(Configuration(), dataset=data.dataset, fingerprint=data.fingerprint, training=data.training)
    prepared("earlier")
    training._prepare(REQUEST, data, plan, tmp_path, threading.Event())
    make_room(tmp_path, 100, limit_bytes=1)
    assert {path.parent.name for path in tmp_path.glob("*/case.json")} == {f"case-{number}" for number in range(8)}


def test_each_run_prepares_its_cases_in_an_order_of_its_own_and_holds_them_in_the_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, asked = make_data(make_spec()), []

    def prepare_case(dataset: Dataset, case: Case, **_: object) -> str:
        asked.append(case.id)
        return case.id

    monkeypatch.setattr(training, "prepare_case", prepare_case)
    plan = make_plan(Configuration(), dataset=data.dataset, fingerprint=data.fingerprint, training=data.training)
    before = random.getstate()
    for _ in range(3):
        cases = training._prepare(REQUEST, data, plan, tmp_path, threading.Event())
        assert (cases.training, cases.validation) == (data.split.training(0), data.split.validation(0))
    orders = {tuple(asked[start : start + 8]) for start in (0, 8, 16)}
    assert len(orders) > 1
    assert all(sorted(order) == sorted(asked[:8]) for order in orders)
    assert len(set(asked)) == 8
    assert random.getstate() == before


def test_a_case_whose_files_have_changed_since_the_studys_start_is_not_trained_on(tmp_path: Path) -> None:
    write_phantom(tmp_path / "phantom", cases=5, shape=(16, 16, 16))
    splitting, cache = SplitSpec(test=0.2, folds=2), tmp_path / "cache"
    data = prepare_data(tmp_path / "phantom", split=splitting, training=TrainingSpec(), cache_folder=tmp_path)
    case, other = data.dataset.cases[:2]
    training._prepared(data, tiny_plan(), case.id, cache, threading.Event())
    data.dataset.label_path(case).write_bytes(data.dataset.label_path(other).read_bytes())
    with pytest.raises(DatasetError, match=f"^case {case.id}: its files are not those with which"):
        training._prepared(data, tiny_plan(), case.id, cache, threading.Event())
