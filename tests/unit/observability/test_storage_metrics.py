from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import generate_latest
from scraping import promtool_complaints, value

from automonai.errors import ObjectNotFoundError, StorageError, StoreAccessError
from automonai.observability.exposition import Labelled
from automonai.observability.storage_metrics import OPERATIONS, StorageMetrics
from automonai.storage.observing import Operation, Request, observed_by
from automonai.storage.retrying import Retrying


def shown(metrics: StorageMetrics) -> str:
    return generate_latest(Labelled(metrics, labels={"study": "brain"})).decode()  # type: ignore[arg-type]


def count(metrics: StorageMetrics, operation: str, code: str = "2xx") -> float:
    return value(shown(metrics), "automonai_storage_requests_total", operation=operation, code=code)


def test_requests_times_and_bytes_are_counted() -> None:
    metrics = StorageMetrics()
    metrics.on_request(Request("get", "2xx", 0.2, received_bytes=7))
    metrics.on_request(Request("get", "503", 2.0))
    metrics.on_request(Request("put", "2xx", 0.2, sent_bytes=5))
    text = shown(metrics)
    assert (count(metrics, "get"), count(metrics, "get", "503"), count(metrics, "put")) == (1, 1, 1)
    assert value(text, "automonai_storage_request_duration_seconds_count", operation="get") == 2
    assert value(text, "automonai_storage_request_duration_seconds_bucket", operation="get", le="0.3") == 1
    assert value(text, "automonai_storage_transferred_bytes_total", direction="received") == 7
    assert value(text, "automonai_storage_transferred_bytes_total", direction="sent") == 5


def test_every_operation_is_there_before_its_first_request() -> None:
    assert [count(StorageMetrics(), operation) for operation in OPERATIONS] == [0] * 5


def test_the_operations_are_those_that_the_store_tells() -> None:
    assert set(OPERATIONS) == set(get_args(Operation))


def test_no_count_is_missed_when_threads_count_at_once() -> None:
    metrics = StorageMetrics()

    def tell() -> None:
        for _ in range(1000):
            metrics.on_request(Request("get", "2xx", 0.1, received_bytes=1))

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(metrics, "get") == 4000
    assert value(shown(metrics), "automonai_storage_transferred_bytes_total", direction="received") == 4000


def test_promtool_has_nothing_to_say() -> None:
    metrics = StorageMetrics()
    metrics.on_request(Request("get", "2xx", 0.2, received_bytes=7))
    assert promtool_complaints(shown(metrics)) == ""


# Of a real store


def test_a_real_stores_requests_are_counted_with_their_bytes(minio: object, tmp_path: Path) -> None:
    from minio_server import MinioServer

    assert isinstance(minio, MinioServer)
    store, metrics, content = minio.store("unit/counted"), StorageMetrics(), b"x" * 1000
    file = tmp_path / "file"
    file.write_bytes(content)
    with observed_by(metrics):
        store.put("a", content)
        store.upload(file, "b")
        assert store.get("a") == content
        store.download("b", tmp_path / "copy")
        assert not store.exists("nothing")
        with pytest.raises(ObjectNotFoundError):
            store.get("nothing")
        assert list(store.list()) == ["a", "b"]
        store.delete("a")
    counts = {operation: count(metrics, operation) for operation in OPERATIONS}
    assert counts == {"get": 2, "put": 2, "head": 0, "list": 1, "delete": 1}
    assert count(metrics, "head", "404") == count(metrics, "get", "404") == 1
    assert value(shown(metrics), "automonai_storage_transferred_bytes_total", direction="sent") == 2000
    assert value(shown(metrics), "automonai_storage_transferred_bytes_total", direction="received") == 2000


def test_a_refusal_is_counted_by_its_status(minio: object) -> None:
    from minio_server import MinioServer

    assert isinstance(minio, MinioServer)
    metrics = StorageMetrics()
    with observed_by(metrics), pytest.raises(StoreAccessError):
        minio.store("unit/refused", secret_key="wrong-secret").get("a")
    assert count(metrics, "get", "403") == 1


@contextmanager
def overloaded() -> Iterator[str]:
    """Give the address of a server that answers everything with status 503."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_each_try_is_counted() -> None:
    s3 = pytest.importorskip("automonai.storage.s3", reason="needs the extra automonai[cluster]")
    retrying, metrics = Retrying(patience_seconds=0.0, least_tries=3, sleep=lambda _: None), StorageMetrics()
    with overloaded() as endpoint, observed_by(metrics):
        settings = s3.S3Settings(endpoint=endpoint, access_key="a", secret_key="b")
        store = s3.S3Store(s3.S3Location("bucket"), settings, retrying=retrying)
        with pytest.raises(StorageError):
            store.get("a")
    assert count(metrics, "get", "503") == 3


def test_a_server_that_does_not_answer_is_counted_as_that() -> None:
    s3 = pytest.importorskip("automonai.storage.s3", reason="needs the extra automonai[cluster]")
    retrying, metrics = Retrying(patience_seconds=0.0, least_tries=1), StorageMetrics()
    settings = s3.S3Settings(endpoint="http://127.0.0.1:1", access_key="a", secret_key="b")
    with observed_by(metrics), pytest.raises(StorageError):
        s3.S3Store(s3.S3Location("bucket"), settings, retrying=retrying).get("a")
    assert count(metrics, "get", "unanswered") == 1
