import subprocess
import sys
import threading
from pathlib import Path

import pytest
from studies import make_data, make_spec, train

import automonai.worker
from automonai.domain.configuration import Configuration
from automonai.domain.request import TrainRequest
from automonai.domain.run import FailureReason, Result, Run, RunState
from automonai.errors import CorruptObjectError, NonFiniteLossError, StopRequestedError
from automonai.storage import keys
from automonai.storage.memory import MemoryStore

REQUEST = TrainRequest(run=Run(trial=1, budget_epochs=1), configuration=Configuration(), seed=1)


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    store.put(keys.request(REQUEST.run_id), REQUEST.model_dump_json().encode())
    store.put(keys.DATA, make_data(make_spec()).model_dump_json().encode())
    return store


def serve(store: MemoryStore) -> int:
    return automonai.worker.serve(REQUEST.run_id, store=store, cache_folder=Path("cache"), stop=threading.Event())


def patch_training(monkeypatch: pytest.MonkeyPatch, outcome: Exception | None) -> list[TrainRequest]:
    import automonai.learning.training

    seen = []

    def train_run(request: TrainRequest, data: object, **options: object) -> Result:
        seen.append(request)
        if outcome is not None:
            raise outcome
        return train(request)

    monkeypatch.setattr(automonai.learning.training, "train_run", train_run)
    return seen


def test_a_run_leaves_its_result_and_its_log(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_training(monkeypatch, None)
    assert serve(store) == 0
    assert Result.model_validate_json(store.get(keys.result(REQUEST.run_id))).state is RunState.COMPLETE
    assert store.exists(keys.log(REQUEST.run_id))


def test_a_run_that_has_its_result_is_not_trained_again(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = patch_training(monkeypatch, None)
    serve(store)
    serve(store)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (NonFiniteLossError("loss became nan at step 3"), 65, FailureReason.NON_FINITE_LOSS),
        (MemoryError("no memory"), 66, FailureReason.OUT_OF_MEMORY),
    ],
)
def test_a_failure_of_the_runs_own_becomes_its_result(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, reason: FailureReason
) -> None:
    patch_training(monkeypatch, error)
    assert serve(store) == code
    result = Result.model_validate_json(store.get(keys.result(REQUEST.run_id)))
    assert result.state is RunState.FAILED
    assert result.reason is reason
    assert str(error) in result.message


def test_a_stopped_run_leaves_no_result(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_training(monkeypatch, StopRequestedError("asked to leave"))
    with pytest.raises(StopRequestedError):
        serve(store)
    assert not store.exists(keys.result(REQUEST.run_id))


@pytest.mark.parametrize("error", [OSError("no space left on device"), CorruptObjectError("checksum differs")])
def test_a_fault_of_the_infrastructure_is_no_result(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    patch_training(monkeypatch, error)
    with pytest.raises(type(error)):
        serve(store)
    assert not store.exists(keys.result(REQUEST.run_id))


def test_the_controller_needs_no_torch() -> None:
    code = "import sys, automonai.controller, automonai.api; assert not {'torch', 'monai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
