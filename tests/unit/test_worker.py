import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from studies import make_data, make_spec, train

import automonai.worker
from automonai.domain.configuration import Configuration
from automonai.domain.request import TrainRequest
from automonai.domain.run import FailureReason, Result, Run, RunState
from automonai.domain.tally import Tally
from automonai.errors import (
    CorruptObjectError,
    DatasetError,
    NonFiniteLossError,
    StopRequestedError,
    StoreUnavailableError,
)
from automonai.execution.jobs import GPUS_VARIABLE
from automonai.learning.metering import Meter
from automonai.observability import logs
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


def test_the_log_of_a_later_attempt_follows_the_first_ones(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_training(monkeypatch, OSError("the drive is away"))
    with pytest.raises(OSError, match="the drive is away"):
        serve(store)
    patch_training(monkeypatch, None)
    serve(store)
    log = store.get(keys.log(REQUEST.run_id)).decode()
    assert log.index("the drive is away") < log.rindex("the dataset is in")
    assert log.count("the dataset is in") == 2


def test_a_store_that_is_away_does_not_hide_why_a_run_ended(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(key: str, content: bytes) -> None:
        raise StoreUnavailableError("no answer")

    patch_training(monkeypatch, StopRequestedError("stopped after step 3"))
    monkeypatch.setattr(store, "put", away)
    with pytest.raises(StopRequestedError):
        serve(store)


def test_a_runs_stored_log_is_text_with_its_id_where_standard_error_is_json(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pythonjsonlogger", reason="needs the extra automonai[cluster]")
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "json")
    logs.set_up(level=logging.INFO)
    patch_training(monkeypatch, None)
    serve(store)
    fields = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (fields["run"], fields["level"]) == (REQUEST.run_id, "INFO")
    assert fields["logger"] == "automonai.worker"
    assert store.get(keys.log(REQUEST.run_id)).decode().endswith(f"{REQUEST.run_id}: {fields['message']}\n")


def test_a_fault_that_is_not_the_runs_ends_the_worker_with_1_and_a_line_that_names_study_and_run(
    tmp_path: Path,
) -> None:
    pytest.importorskip("pythonjsonlogger", reason="needs the extra automonai[cluster]")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "automonai.worker", str(tmp_path / "brain")),
            *("--cache", str(tmp_path), "--run", "a-run", "--last-words", str(tmp_path / "last-words")),
        ],
        env=os.environ | {logs.FORMAT_VARIABLE: "json"},
        capture_output=True,
        text=True,
        check=False,
    )
    fields = json.loads(ended.stderr.splitlines()[-1])
    assert ended.returncode == 1
    assert (fields["level"], fields["study"], fields["run"]) == ("CRITICAL", "brain", "a-run")
    assert "no such object" in fields["exception"]
    last_words = (tmp_path / "last-words").read_text()
    assert "no such object" in last_words
    assert last_words.count("\n") == 0


def test_a_run_that_fails_has_trained_the_epochs_that_it_came_to_the_end_of(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import automonai.learning.training

    def train_run(request: TrainRequest, data: object, *, meter: Meter, **options: object) -> Result:
        for epoch in (4, 4, 5, 6, 6):  # it went on from a lower rung's three
            meter.stepped(Tally(), epoch=epoch, loss=0.5)
        raise NonFiniteLossError("loss became nan")

    monkeypatch.setattr(automonai.learning.training, "train_run", train_run)
    assert serve(store) == NonFiniteLossError.exit_code
    assert Result.model_validate_json(store.get(keys.result(REQUEST.run_id))).epochs == 2


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
        (RuntimeError("CUDA error: out of memory"), 66, FailureReason.OUT_OF_MEMORY),
        (ZeroDivisionError("division by zero"), 64, FailureReason.BAD_CONFIGURATION),
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


@pytest.mark.parametrize(
    "error",
    [
        OSError("no space left on device"),
        CorruptObjectError("checksum differs"),
        DatasetError(["/data/a.nii.gz: cannot be read: Stale file handle"]),
        RuntimeError("CUDA error: unspecified launch failure"),
    ],
)
def test_a_fault_of_the_infrastructure_is_no_result_and_the_runs_log_names_it(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    patch_training(monkeypatch, error)
    with pytest.raises(type(error)):
        serve(store)
    assert not store.exists(keys.result(REQUEST.run_id))
    assert str(error) in store.get(keys.log(REQUEST.run_id)).decode()


@pytest.mark.parametrize(("held", "device"), [("1", "its Job holds 1 GPU"), ("2", "its Job holds 2 GPUs")])
def test_a_job_that_sees_none_of_its_gpus_says_so_in_its_log_and_its_result(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, held: str, device: str
) -> None:
    monkeypatch.setenv(GPUS_VARIABLE, held)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    patch_training(monkeypatch, None)
    assert serve(store) == 0
    assert Result.model_validate_json(store.get(keys.result(REQUEST.run_id))).device == f"cpu, though {device}"
    log = store.get(keys.log(REQUEST.run_id)).decode()
    assert "trial.runtimeClassName" in log
    assert "driver" in log


@pytest.mark.parametrize("held", ["0", "1", "2", "3"])
def test_a_job_that_uses_its_gpus_is_told_only_of_those_that_it_does_not_see(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, held: str
) -> None:
    monkeypatch.setenv(GPUS_VARIABLE, held)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    patch_training(monkeypatch, None)
    serve(store)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == (["its Job holds 3 GPUs, and torch finds 2"] if held == "3" else [])
    assert Result.model_validate_json(store.get(keys.result(REQUEST.run_id))).device == train(REQUEST).device


def test_a_served_run_gives_its_gpus_memory_back(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(True))
    patch_training(monkeypatch, None)
    serve(store)
    assert given_back == [True]


def patch_main(monkeypatch: pytest.MonkeyPatch, store: MemoryStore) -> None:
    monkeypatch.setattr(automonai.worker, "open_store", lambda _: store)
    monkeypatch.setattr(signal, "signal", lambda *_: None)


def main(tmp_path: Path, *options: str) -> int:
    arguments = ["s3://bucket/studies/brain", "--cache", str(tmp_path), "--run", REQUEST.run_id, *options]
    return automonai.worker.main(arguments)


@pytest.fixture
def port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def test_the_last_words_of_a_foreign_error_name_its_kind_in_one_short_line_without_secrets(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    patch_main(monkeypatch, store)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "0123456789abcdef")
    patch_training(monkeypatch, OSError(28, "No space left\non 0123456789abcdef" + 2000 * "x"))
    with pytest.raises(OSError, match="No space left"):
        main(tmp_path, "--last-words", str(tmp_path / "last-words"))
    last_words = (tmp_path / "last-words").read_text()
    assert last_words.startswith(f"OSError: [Errno 28] No space left on {logs.HIDDEN}xxx")
    assert len(last_words) == automonai.worker.LAST_WORDS_CHARACTERS
    patch_training(monkeypatch, OSError("No space left"))
    with pytest.raises(OSError, match="No space left"):
        main(tmp_path, "--last-words", str(tmp_path / "nowhere" / "last-words"))


def test_a_run_at_hand_is_shown_to_prometheus_with_its_labels(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: int
) -> None:
    import automonai.learning.training

    seen = []

    def train_run(request: TrainRequest, data: object, *, meter: Meter, **options: object) -> Result:
        meter.stepped(Tally(steps=5, patches=10, seconds=4.0), epoch=1, loss=0.5)
        seen.append(urllib.request.urlopen(f"http://localhost:{port}/metrics").read().decode())
        return train(request)

    patch_main(monkeypatch, store)
    monkeypatch.setattr(automonai.learning.training, "train_run", train_run)
    assert main(tmp_path, "--metrics-port", str(port)) == 0
    assert 'automonai_train_steps_total{rung="1",study="brain",trial="1"} 5.0' in seen[0]
    assert 'automonai_storage_requests_total{code="2xx",operation="put",rung="1",study="brain",trial="1"}' in seen[0]
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://localhost:{port}/metrics")


def test_a_port_in_use_is_a_warning_and_the_run_is_done(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    patch_main(monkeypatch, store)
    patch_training(monkeypatch, None)
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        assert main(tmp_path, "--metrics-port", str(port)) == 0
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"no metrics by HTTP: metrics cannot be shown at port {port}: another program uses it; name another one"
    ]
    assert store.exists(keys.result(REQUEST.run_id))


def test_the_metrics_file_is_gone_before_the_result_is_there(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import automonai.learning.training

    file, found = tmp_path / "worker-0.prom", {}

    def train_run(request: TrainRequest, data: object, **options: object) -> Result:
        deadline = time.monotonic() + 10
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        found["training"] = file.exists()
        return train(request)

    def put(key: str, content: bytes) -> None:
        found[key] = file.exists()

    patch_main(monkeypatch, store)
    monkeypatch.setattr(automonai.learning.training, "train_run", train_run)
    monkeypatch.setattr(store, "put", put)
    assert main(tmp_path, "--metrics-file", str(file)) == 0
    assert (found["training"], found[keys.result(REQUEST.run_id)]) == (True, False)


def test_the_controller_needs_no_torch() -> None:
    code = "import sys, automonai.controller, automonai.api; assert not {'torch', 'monai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
