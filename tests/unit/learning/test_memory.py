from __future__ import annotations

import resource
from types import SimpleNamespace

import pytest
import torch

from automonai.learning.memory import allow_many_files, gpu_memory, release_gpu_memory, reset_peak_memory
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


@pytest.mark.usefixtures("a_gpu")
def test_a_process_that_leaves_the_gpu_alone_does_not_start_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("CUDA was started")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", refuse)
    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    reset_peak_memory()
    release_gpu_memory()


def test_a_process_may_open_as_many_files_as_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] - 1, before[1]))
        allow_many_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_system_that_does_not_grant_its_own_limit_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    allow_many_files()
