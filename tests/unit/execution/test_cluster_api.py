"""Answers that are none of the Kubernetes API's, and watches that do not last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("urllib3", reason="needs the extra automonai[cluster]")
from fake_cluster import FakeCluster
from urllib3.exceptions import ProtocolError

from automonai.errors import ClusterError
from automonai.execution.cluster_api import ClusterApi, Listing
from automonai.execution.watcher import Watcher

NO_LIST = b'{"items": [1], "metadata": {"resourceVersion": "1"}}'


@pytest.mark.parametrize(
    ("ask", "page"),
    [
        (lambda api: api.find_lease("a"), b"<html>welcome</html>"),
        (lambda api: api.find_job("a"), b"{}"),
        (lambda api: api.create_job({}), b"<html>welcome</html>"),
        (lambda api: api.list("pods", "a=b"), b"{}"),
        (lambda api: api.list("pods", "a=b"), NO_LIST),
        (lambda api: api.living_workflows(), b"<html>welcome</html>"),
        (lambda api: api.living_workflows(), NO_LIST),
    ],
)
def test_a_page_of_something_between_counts_as_no_answer(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[ClusterApi], object], page: bytes
) -> None:
    api = FakeCluster().api()
    monkeypatch.setattr(api, "_call", lambda *arguments, **options: page)
    with pytest.raises(ClusterError, match="the answer is none of the Kubernetes API") as caught:
        ask(api)
    assert caught.value.is_passing


class Broken:
    """A refusal whose body never comes."""

    status, reason = 429, "Too Many Requests"

    def read(self) -> bytes:
        raise ProtocolError("the connection broke")

    def release_conn(self) -> None: ...


def test_a_refusal_counts_although_its_words_do_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeCluster().api()
    monkeypatch.setattr(api._pool, "request", lambda *arguments, **options: Broken())
    with pytest.raises(ClusterError, match="429 Too Many Requests") as caught:
        api.find_job("a")
    assert caught.value.is_passing


class Hasty:
    """An API whose watches end at once, without an error."""

    def __init__(self) -> None:
        self.watches = 0

    def list(self, kind: str, selector: str) -> Listing:
        return Listing((), "1")

    def watch(self, kind: str, selector: str, version: str) -> Hasty:
        self.watches += 1
        return self

    def __iter__(self) -> Iterator[object]:
        return iter(())

    def end(self) -> None: ...


def test_watches_that_end_at_once_are_opened_again_with_growing_pauses() -> None:
    api = Hasty()
    watcher = Watcher(api, "pods", "a=b", lambda news: None)  # type: ignore[arg-type]
    watcher.start()
    time.sleep(1.0)
    watcher.stop()
    assert 1 <= api.watches <= 4
