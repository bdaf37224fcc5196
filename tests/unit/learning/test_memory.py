from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from automonai.learning.memory import gpu_memory
from automonai.spec import ExecutionSpec


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="aaaa"))


@pytest.mark.usefixtures("a_gpu")
def test_a_run_on_a_gpu_has_that_gpus_memory() -> None:
    found = gpu_memory(ExecutionSpec(device="auto"))
    assert found is not None
    assert found.uuid == "aaaa"


@pytest.mark.usefixtures("a_gpu")
def test_a_run_that_leaves_the_gpu_alone_has_no_gpu_memory() -> None:
    assert gpu_memory(ExecutionSpec(device="cpu")) is None


def test_a_gpu_that_does_not_start_is_a_warning_and_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: int) -> None:
        raise RuntimeError("CUDA unknown error")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", refuse)
    assert gpu_memory(ExecutionSpec()) is None
    assert [record.getMessage() for record in caplog.records] == ["no metrics of the GPU: CUDA unknown error"]
