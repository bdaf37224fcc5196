from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import pynvml
import pytest

from automonai.observability import gpu
from automonai.observability.gpu import GPU_METRICS, GpuMetrics, Handle, find_card

GIB = 2**30


class NvmlError(Exception):
    pass


@dataclass(frozen=True)
class Part:
    """A card, or a MIG part of one."""

    uuid: str
    index: int
    parent: Part | None = None
    parts: tuple[str, ...] | None = None
    """UUIDs of the MIG parts by their number, an empty one for a gap; None for a card that cannot be divided."""


@dataclass
class FakeNvml:
    """The functions of pynvml that are used, with its habits: cards sorted by bus, and an error for what is unknown."""

    known: tuple[Part, ...]
    NVMLError: type[Exception] = NvmlError
    broken: set[str] = field(default_factory=set)

    def nvmlInit(self) -> None:
        self._refuse("nvmlInit")

    def nvmlDeviceGetHandleByUUID(self, uuid: str, /) -> Handle:
        for part in self.known:
            if part.uuid == uuid:
                return part
        raise NvmlError("Not Found")

    def nvmlDeviceGetIndex(self, handle: Handle, /) -> int:
        return _part(handle).index

    def nvmlDeviceGetMigMode(self, handle: Handle, /) -> Sequence[int]:
        if _part(handle).parts is None:
            raise NvmlError("Not Supported")
        return [1 if _part(handle).parts else 0] * 2

    def nvmlDeviceIsMigDeviceHandle(self, handle: Handle, /) -> int:
        return int(_part(handle).parent is not None)

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Handle, /) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Handle, index: int, /) -> Handle:
        parts = _part(handle).parts or ()
        return self.nvmlDeviceGetHandleByUUID(parts[index] if index < len(parts) else "")

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: Handle, /) -> Handle:
        parent = _part(handle).parent
        assert parent is not None
        return parent

    def nvmlDeviceGetMemoryInfo(self, handle: Handle, /) -> SimpleNamespace:
        self._refuse("nvmlDeviceGetMemoryInfo")
        return SimpleNamespace(total=(20 if _part(handle).parent else 80) * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: Handle, /) -> SimpleNamespace:
        return SimpleNamespace(gpu=self._of_whole_card(handle, 37))

    def nvmlDeviceGetPowerUsage(self, handle: Handle, /) -> int:
        return self._of_whole_card(handle, 350_500)

    def _of_whole_card(self, handle: Handle, value: int) -> int:
        if _part(handle).parent is not None:
            raise NvmlError("Not Supported")
        return value

    def _refuse(self, name: str) -> None:
        if name in self.broken:
            raise NvmlError("Unknown Error")


def _part(handle: Handle) -> Part:
    assert isinstance(handle, Part)
    return handle


SLOW = Part("GPU-aaaa", 0)
FAST = Part("GPU-bbbb", 1, parts=())
DIVIDED = Part("GPU-cccc", 2, parts=("", "MIG-1111", "MIG-2222"))
FIRST = Part("MIG-1111", 1, parent=DIVIDED)
SECOND = Part("MIG-2222", 2, parent=DIVIDED)
NVML = FakeNvml((SLOW, FAST, DIVIDED, FIRST, SECOND))


@dataclass(frozen=True)
class Allocator:
    uuid: str = "aaaa"
    number: int = 0

    def allocated_bytes(self) -> int:
        return 1 * GIB

    def reserved_bytes(self) -> int:
        return 3 * GIB

    def peak_bytes(self) -> int:
        return 2 * GIB


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    gpu._report.cache_clear()
    gpu.load_nvml.cache_clear()


def values(metrics: GpuMetrics) -> dict[str, tuple[str, float]]:
    return {
        sample.name.removeprefix("automonai_gpu_"): (sample.labels["device"], sample.value)
        for family in metrics.collect()
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("visible", "uuid", "name"),
    [
        ("", "aaaa", "0"),
        ("1", "bbbb", "1"),
        ("0", "bbbb", "1"),  # CUDA sorts by speed: its 0 is NVML's 1
        ("1,0", "aaaa", "0"),
        ("GPU-bbbb", "bbbb", "1"),
        ("GPU-bb, GPU-aaaa", "bbbb", "1"),  # CUDA takes the beginning of a UUID
        ("MIG-2222", "cccc", "2:2"),
        ("MIG-2222", "2222", "2:2"),
        ("MIG-2222,MIG-1111", "cccc", "2:2"),
        ("2", "cccc", "2:1"),  # CUDA takes the first part, and numbers have gaps
        ("", "1111", "2:1"),
    ],
)
def test_a_card_is_found_whatever_cuda_calls_it(visible: str, uuid: str, name: str) -> None:
    assert find_card(NVML, uuid=uuid, visible=visible).name == name


def test_a_card_shows_its_memory_utilisation_and_power_beside_the_allocators_bytes() -> None:
    assert values(GpuMetrics(Allocator(), load=lambda: NVML)) == {
        "memory_allocated_bytes": ("0", 1 * GIB),
        "memory_reserved_bytes": ("0", 3 * GIB),
        "memory_peak_bytes": ("0", 2 * GIB),
        "memory_total_bytes": ("0", 80 * GIB),
        "utilization_ratio": ("0", 0.37),
        "power_watts": ("0", 350.5),
    }
    assert {definition.name.removeprefix("automonai_gpu_") for definition in GPU_METRICS} == set(
        values(GpuMetrics(Allocator(), load=lambda: NVML))
    )


def test_each_of_a_runs_gpus_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    families = list(GpuMetrics(Allocator("bbbb", 0), Allocator("aaaa", 1), load=lambda: NVML).collect())
    assert [family.name for family in families] == [definition.name for definition in GPU_METRICS]
    assert [[sample.labels["device"] for sample in family.samples] for family in families] == [["1", "0"]] * 6


@pytest.mark.parametrize(("number", "name"), [(0, "2:2"), (1, "2:1")])
def test_parts_are_found_in_the_order_in_which_cuda_was_given_them(number: int, name: str) -> None:
    assert find_card(NVML, uuid="cccc", visible="MIG-2222,MIG-1111", number=number).name == name


def test_a_part_of_a_card_shows_its_own_memory_and_says_once_what_nvml_cannot_tell(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-2222")
    metrics = GpuMetrics(Allocator("cccc"), load=lambda: NVML)
    for _ in range(3):
        shown = values(metrics)
    assert shown["memory_total_bytes"] == ("2:2", 20 * GIB)
    assert shown.keys().isdisjoint({"utilization_ratio", "power_watts"})
    assert [record.getMessage() for record in caplog.records] == [
        "no automonai_gpu_utilization_ratio of GPU 2:2: Not Supported",
        "no automonai_gpu_power_watts of GPU 2:2: Not Supported",
    ]


def test_a_figure_that_fails_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    broken = FakeNvml(NVML.known, broken={"nvmlDeviceGetMemoryInfo"})
    shown = values(GpuMetrics(Allocator(), load=lambda: broken))
    assert "memory_total_bytes" not in shown
    assert shown["power_watts"] == ("0", 350.5)


def test_without_nvml_the_allocator_alone_is_shown() -> None:
    shown = values(GpuMetrics(Allocator(), load=lambda: None))
    assert set(shown) == {"memory_allocated_bytes", "memory_reserved_bytes", "memory_peak_bytes"}


def test_a_card_that_nvml_does_not_know_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    metrics = GpuMetrics(Allocator("eeee"), load=lambda: NVML)
    values(metrics)
    assert "memory_total_bytes" not in values(metrics)
    assert [record.getMessage() for record in caplog.records] == [
        "NVML does not know the GPU eeee of this run: Not Found"
    ]


def test_a_machine_whose_nvml_does_not_start_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:

    def refuse() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert gpu.load_nvml() is None
    assert gpu.load_nvml() is None
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "no figures of the GPU beside PyTorch's: NVML Shared Library Not Found")
    ]


def test_pynvml_has_every_function_that_is_used() -> None:
    used = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    assert len(used) == 11
    assert [name for name in used if not callable(getattr(pynvml, name, None))] == []
