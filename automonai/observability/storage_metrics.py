"""Counts of a process's requests to the store."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.registry import Collector

from automonai.observability.definitions import Definition

if TYPE_CHECKING:
    from automonai.storage.observing import Request

REQUESTS = Definition(
    "automonai_storage_requests_total",
    "counter",
    "Requests to an S3 store by this process, each try counted. Code: 2xx, the answer's HTTP status, unanswered,"
    " no_identity, corrupt or error; 404 says that an object is not there, which is often just the question.",
    labels=("operation", "code"),
)
REQUEST_SECONDS = Definition(
    "automonai_storage_request_duration_seconds",
    "histogram",
    "How long requests to an S3 store took, each try counted, the failed ones included.",
    labels=("operation",),
    buckets=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0),
)
TRANSFERRED_BYTES = Definition(
    "automonai_storage_transferred_bytes_total",
    "counter",
    "Content of objects that were sent to or received from an S3 store, without that of tries that failed.",
    labels=("direction",),
)
STORAGE_METRICS = (REQUESTS, REQUEST_SECONDS, TRANSFERRED_BYTES)
OPERATIONS = ("get", "put", "head", "list", "delete")


class StorageMetrics(Collector):
    """An observer of requests that counts them; told and read by any thread."""

    def __init__(self) -> None:
        """Make the counters of every operation and direction, so that their first request is an increase from 0."""
        self._requests = REQUESTS.counter()
        self._seconds = REQUEST_SECONDS.histogram()
        self._bytes = TRANSFERRED_BYTES.counter()
        for operation in OPERATIONS:
            self._requests.labels(operation, "2xx")
        for direction in ("sent", "received"):
            self._bytes.labels(direction)

    def on_request(self, request: Request) -> None:
        """Count a request that has ended."""
        self._requests.labels(request.operation, request.code).inc()
        self._seconds.labels(request.operation).observe(request.seconds)
        self._bytes.labels("sent").inc(request.sent_bytes)
        self._bytes.labels("received").inc(request.received_bytes)

    def collect(self) -> Iterable[Metric]:
        """Return the counters as they stand."""
        return chain(self._requests.collect(), self._seconds.collect(), self._bytes.collect())
