"""Studies in a bucket of a real MinIO: read, written, worked on, and through an outage of the server."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("minio", reason="needs the extra automonai[cluster]")

import studies
from minio_server import MinioServer

import automonai.learning.training
import automonai.worker
from automonai import api
from automonai.domain.configuration import Configuration
from automonai.domain.request import StudyData, TrainRequest
from automonai.domain.run import Result, Run, RunState
from automonai.errors import (
    CorruptObjectError,
    DatasetError,
    SpecError,
    StorageError,
    StoreAccessError,
    StudyLockedError,
    StudyNotFoundError,
)
from automonai.execution.local import LocalExecutor
from automonai.execution.lock import locked
from automonai.preparing import prepare_data
from automonai.spec import SplitSpec, TrainingSpec
from automonai.storage import keys
from automonai.storage.datasets import pinned, push_dataset
from automonai.storage.journal import Journal
from automonai.storage.local import LocalStore
from automonai.storage.opening import open_store, place_on_this_machine
from automonai.storage.s3 import PART_BYTES
from automonai.storage.store import Store

LOCATION = "s3://automonai/studies/test"
OUTAGE_SECONDS = 3.0
REQUEST = TrainRequest(run=Run(trial=1, budget_epochs=1), configuration=Configuration(), seed=1)


def run_small_study(store: Store) -> None:
    spec = studies.make_spec(iterations=1)
    store.put(keys.DATA, studies.make_data(spec).model_dump_json().encode())
    studies.Bench(spec, store=store).run()


def through_an_outage(minio: MinioServer, work: Callable[[], None], *, once_there_is: str) -> None:
    """Do the work while the server is killed and, after a while, started again on the same data.

    It is killed as soon as a path of that pattern is in its folder: the work has begun then, and has not ended.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told to the test's own thread
            errors.append(error)

    worker = threading.Thread(target=run)
    worker.start()
    deadline = time.monotonic() + 20
    while not is_there(minio.folder, once_there_is) and time.monotonic() < deadline:
        time.sleep(0.002)
    minio.stop()
    time.sleep(OUTAGE_SECONDS)
    assert worker.is_alive()
    minio.start()
    worker.join(timeout=90)
    assert not worker.is_alive()
    assert not errors, errors


def is_there(folder: Path, pattern: str) -> bool:
    """Whether a path of that pattern is in a folder, from which the server removes others meanwhile."""
    try:
        return any(folder.glob(pattern))
    except FileNotFoundError:
        return False


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Take back what a worker's main does to SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_study_in_a_bucket_is_read_as_one_in_a_folder(minio: MinioServer, tmp_path: Path) -> None:
    run_small_study(open_store(LOCATION))
    run_small_study(LocalStore(tmp_path / "test"))
    assert api.runs(LOCATION) == api.runs(tmp_path / "test")
    assert api.summary(LOCATION) == api.summary(tmp_path / "test")
    assert api.report(LOCATION) == f"{LOCATION}/report.html"
    assert open_store(LOCATION).get(keys.REPORT_HTML).startswith(b"<!")


def test_a_study_moves_from_a_folder_to_a_bucket_and_goes_on(minio: MinioServer, tmp_path: Path) -> None:
    folder, bucket = LocalStore(tmp_path / "test"), open_store(LOCATION)
    Journal(folder).append(*Journal(folder).read())
    run_small_study(folder)
    for key in folder.list():
        bucket.upload(folder.path(key), key)
    assert Journal(bucket).read() == Journal(folder).read()


def test_what_is_no_study_is_told_with_its_location(minio: MinioServer) -> None:
    with pytest.raises(StudyNotFoundError, match="s3://automonai/studies/none"):
        api.summary("s3://automonai/studies/none")
    with pytest.raises(StudyNotFoundError, match="there is no study and no training"):
        api.predict("s3://automonai/studies/none", [], output="out")
    with pytest.raises(StoreAccessError, match="'no-such-bucket'"):
        api.summary("s3://no-such-bucket/studies/test")


def test_a_second_controller_of_this_machine_is_refused(minio: MinioServer) -> None:
    spec = studies.make_spec(iterations=1).model_copy(update={"store": "s3://automonai/studies"})
    with locked(place_on_this_machine(LOCATION)), pytest.raises(StudyLockedError, match=LOCATION):
        api.search(spec)


def test_a_worker_fetches_its_dataset_once_and_leaves_result_and_log_in_the_bucket(
    minio: MinioServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text('{"name": "test"}')
    push_dataset(tmp_path / "data", "s3://automonai/datasets/test")
    seen: list[Path] = []

    def train_run(request: TrainRequest, data: StudyData, **options: object) -> Result:
        seen.append(Path(data.dataset.root))
        return studies.train(request)

    monkeypatch.setattr(automonai.learning.training, "train_run", train_run)
    store, data = open_store(LOCATION), studies.make_data(studies.make_spec())
    dataset = data.dataset.model_copy(update={"root": "s3://automonai/datasets/test"})
    store.put(keys.DATA, data.model_copy(update={"dataset": dataset}).model_dump_json().encode())
    store.put(keys.request(REQUEST.run_id), REQUEST.model_dump_json().encode())
    assert automonai.worker.main([LOCATION, "--cache", str(tmp_path / "cache"), "--run", REQUEST.run_id]) == 0
    assert Result.model_validate_json(store.get(keys.result(REQUEST.run_id))).state is RunState.COMPLETE
    assert store.exists(keys.log(REQUEST.run_id))
    assert json.loads((seen[0] / "dataset.json").read_text()) == {"name": "test"}
    assert seen[0].is_relative_to(tmp_path / "cache")
    assert pinned("s3://automonai/datasets/test", seen[0]).endswith(f"#{seen[0].name}")


def test_a_dataset_in_a_bucket_is_prepared_as_one_in_a_folder(minio: MinioServer, tmp_path: Path) -> None:
    folder = api.phantom(tmp_path / "phantom", cases=5, shape=(20, 20, 20))
    location = "s3://automonai/datasets/phantom"
    assert api.push_data(folder, location).files == 11
    settings = {"split": SplitSpec(test=0, folds=2), "training": TrainingSpec(), "cache_folder": tmp_path / "cache"}
    here, there = prepare_data(folder, **settings), prepare_data(location, **settings)
    assert there.dataset.root.startswith(f"{location}#")
    assert there.model_copy(update={"dataset": here.dataset, "contents": here.contents}) == here
    assert not there.contents  # the root says which version of the dataset is meant
    assert api.check(location).dataset.cases == here.dataset.cases


@pytest.mark.parametrize("where", ["bucket", "folder"])
def test_a_users_split_may_lie_anywhere(minio: MinioServer, tmp_path: Path, where: str) -> None:
    folder = api.phantom(tmp_path / "phantom", cases=5, shape=(20, 20, 20))
    cases = [case.id for case in api.check(folder).dataset.cases]
    location = "s3://automonai/splits/split.json" if where == "bucket" else str(tmp_path / "split.json")
    settings = {"training": TrainingSpec(), "cache_folder": tmp_path / "cache", "split": SplitSpec(file=location)}
    with pytest.raises(SpecError, match=r"split\.json: cannot be read"):
        prepare_data(folder, **settings)
    content = json.dumps({"test": cases[:1], "folds": [cases[1:3], cases[3:]]}).encode()
    open_store(location.rpartition("/")[0]).put("split.json", content)
    division = prepare_data(folder, **settings).split
    assert (division.test, division.folds) == ((cases[0],), (tuple(cases[1:3]), tuple(cases[3:])))


def test_a_faulty_dataset_is_not_pushed(minio: MinioServer, tmp_path: Path) -> None:
    folder = api.phantom(tmp_path / "phantom", cases=5, shape=(20, 20, 20))
    next((folder / "labelsTr").iterdir()).unlink()
    with pytest.raises(DatasetError, match="dataset.json names it"):
        api.push_data(folder, "s3://automonai/datasets/faulty")
    assert list(open_store("s3://automonai/datasets/faulty").list()) == []


def test_what_the_store_does_to_a_run_is_not_the_runs_result(
    minio: MinioServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(LOCATION)
    store.put(keys.DATA, studies.make_data(studies.make_spec()).model_dump_json().encode())
    store.put(keys.request(REQUEST.run_id), REQUEST.model_dump_json().encode())
    for error in (StorageError("gone"), StoreAccessError("keys were changed"), CorruptObjectError("spoilt")):

        def fail(*arguments: object, error: Exception = error, **options: object) -> Result:
            raise error

        monkeypatch.setattr(automonai.learning.training, "train_run", fail)
        with pytest.raises(type(error)):
            automonai.worker.main([LOCATION, "--cache", str(tmp_path), "--run", REQUEST.run_id])
        assert not store.exists(keys.result(REQUEST.run_id))


def test_runs_of_this_machine_work_over_a_bucket(minio: MinioServer, tmp_path: Path) -> None:
    command = (sys.executable, str(Path(__file__).with_name("s3_worker.py")))
    executor = LocalExecutor(LOCATION, slots=2, threads=1, cache_folder=tmp_path, command=command)
    try:
        for trial in (1, 2):
            executor.submit(REQUEST.model_copy(update={"run": Run(trial=trial, budget_epochs=1)}))
        assert executor.free_slots() == 0
        ended: list[str] = []
        deadline = time.monotonic() + 30
        while len(ended) < 2 and time.monotonic() < deadline:
            ended += [report.run_id for report in executor.poll(5.0) if report.lost is None]
        assert len(ended) == 2
    finally:
        executor.close()
    assert all(open_store(LOCATION).exists(keys.result(run_id)) for run_id in ended)
    assert (place_on_this_machine(LOCATION) / "workers" / "worker-0.log").is_file()


@pytest.mark.slow
def test_a_journal_survives_an_outage_of_its_server_without_a_gap(minio: MinioServer) -> None:
    store = open_store(LOCATION)
    spec = studies.make_spec(iterations=3)
    through_an_outage(minio, lambda: studies.Bench(spec, store=store).run() and None, once_there_is="**/00000006.json")
    undisturbed = studies.Bench(spec)
    undisturbed.run()
    assert Journal(store).read()[2:] == Journal(undisturbed.store).read()[2:]  # without start and process


@pytest.mark.slow
def test_a_large_upload_survives_an_outage_and_is_whole(minio: MinioServer, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * (16 * PART_BYTES // 256))
    store = open_store(LOCATION)
    through_an_outage(minio, lambda: store.upload(source, "large"), once_there_is=".minio.sys/multipart/*/*/*")
    store.download("large", tmp_path / "copy")
    assert hashlib.sha256((tmp_path / "copy").read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
