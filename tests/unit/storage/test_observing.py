from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from automonai.storage.observing import Request, observed, observed_by


@dataclass
class Noting:
    requests: list[Request] = field(default_factory=list)

    def on_request(self, request: Request) -> None:
        self.requests.append(request)


def fail() -> bytes:
    raise TimeoutError("no answer")


def test_what_was_done_is_told_with_its_size() -> None:
    noting = Noting()
    with observed_by(noting):
        answer = observed(lambda: b"abc", operation="get", code_of=str, received_bytes=len)
    (request,) = noting.requests
    assert answer == b"abc"
    assert (request.operation, request.code, request.received_bytes, request.sent_bytes) == ("get", "2xx", 3, 0)
    assert request.seconds >= 0


def test_what_failed_is_told_by_its_code_without_a_size_and_raises_as_before() -> None:
    noting = Noting()
    with observed_by(noting), pytest.raises(TimeoutError, match="no answer"):
        observed(fail, operation="put", code_of=lambda error: type(error).__name__, sent_bytes=3)
    (request,) = noting.requests
    assert (request.code, request.sent_bytes) == ("TimeoutError", 0)


def test_an_observer_hears_only_of_what_happens_meanwhile() -> None:
    inner, outer = Noting(), Noting()
    with observed_by(outer):
        with observed_by(inner):
            observed(lambda: None, operation="delete", code_of=str)
        observed(lambda: None, operation="head", code_of=str)
    observed(lambda: None, operation="list", code_of=str)
    assert [request.operation for request in outer.requests] == ["delete", "head"]
    assert [request.operation for request in inner.requests] == ["delete"]
