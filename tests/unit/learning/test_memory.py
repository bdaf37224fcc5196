from __future__ import annotations

import resource
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from automonai.learning.memory import (
    allow_many_files,
    free_gpu_bytes,
    gpu_memory,
    peak_memory_bytes,
    recording,
    release_gpu_memory,
    reset_peak_memory,
    resident_bytes,
)
from automonai.spec import ExecutionSpec


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=f"gpu{number}"))


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize(("most_gpus", "uuids"), [(1, ["gpu0"]), (2, ["gpu0", "gpu1"]), (4, ["gpu0", "gpu1"])])
def test_a_run_has_the_memory_of_the_gpus_that_it_computes_on(most_gpus: int, uuids: list[str]) -> None:
    assert [memory.uuid for memory in gpu_memory(ExecutionSpec(device="auto"), most_gpus=most_gpus)] == uuids


@pytest.mark.usefixtures("a_gpu")
def test_the_peak_is_that_of_the_fullest_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda number: [5, 7][number])
    assert peak_memory_bytes() == 7


@pytest.mark.usefixtures("a_gpu")
def test_what_a_recording_holds_is_taken_until_it_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved = [100]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda number: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda number: reserved[0])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda number: 90)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda number: [95, 5][number])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (1000, 2000))
    assert (peak_memory_bytes(), free_gpu_bytes(torch.device("cuda"))) == (95, 1010)
    with recording(torch.device("cuda")):
        reserved[0] = 160  # 60 more, of which torch says that nobody has them
    (gpu,) = gpu_memory(ExecutionSpec())
    assert (peak_memory_bytes(), gpu.peak_bytes(), gpu.allocated_bytes()) == (155, 155, 150)
    assert free_gpu_bytes(torch.device("cuda")) == 1010
    reserved[0] = 100
    release_gpu_memory()
    assert (peak_memory_bytes(), free_gpu_bytes(torch.device("cuda"))) == (95, 1010)


@pytest.mark.usefixtures("a_gpu")
def test_a_run_that_leaves_the_gpu_alone_has_no_gpu_memory() -> None:
    assert gpu_memory(ExecutionSpec(device="cpu")) == ()


def test_a_gpu_that_does_not_start_is_a_warning_and_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: int) -> None:
        raise RuntimeError("CUDA unknown error")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", refuse)
    assert gpu_memory(ExecutionSpec()) == ()
    assert [record.getMessage() for record in caplog.records] == ["no metrics of the GPU: CUDA unknown error"]


@pytest.mark.usefixtures("a_gpu")
def test_a_process_that_leaves_the_gpu_alone_does_not_start_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
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


def test_the_peak_is_of_what_came_after_the_reset() -> None:
    held = np.ones(2**27, np.uint8)
    peak, resident = peak_memory_bytes(), resident_bytes()
    del held
    reset_peak_memory()
    assert resident_bytes() < resident - 2**26
    assert peak_memory_bytes() < peak - 2**26
