"""The GPUs of a run: what NVML says of the card, and PyTorch's allocator of this process; read when somebody looks.

Without NVML, or where it cannot tell (utilisation and power of a part of a card, MIG), its families are absent.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol

import pynvml
from prometheus_client import Metric
from prometheus_client.registry import Collector

from automonai.observability.definitions import Definition

logger = logging.getLogger(__name__)

VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"

_LABELS = ("device",)
ALLOCATED = Definition("automonai_gpu_memory_allocated_bytes", "gauge", "Memory of the run's tensors now.", _LABELS)
RESERVED = Definition(
    "automonai_gpu_memory_reserved_bytes", "gauge", "Memory that PyTorch holds for the run's tensors.", _LABELS
)
PEAK = Definition(
    "automonai_gpu_memory_peak_bytes", "gauge", "Most memory of the run's tensors since it began.", _LABELS
)
TOTAL = Definition(
    "automonai_gpu_memory_total_bytes", "gauge", "Memory of the card, or of the MIG part of it.", _LABELS
)
UTILIZATION = Definition(
    "automonai_gpu_utilization_ratio",
    "gauge",
    "Share of the last second or less in which the card computed anything, for whatever process.",
    _LABELS,
)
POWER = Definition("automonai_gpu_power_watts", "gauge", "Power that the whole card draws.", _LABELS)
GPU_METRICS = (ALLOCATED, RESERVED, PEAK, TOTAL, UTILIZATION, POWER)
"""Device: the number that nvidia-smi shows, of a MIG part `card:part`."""

Handle = object
"""What NVML calls a card, or a MIG part of one, by."""


class Allocator(Protocol):
    """The memory of one of the run's GPUs as PyTorch counts it for this process."""

    @property
    def number(self) -> int:
        """CUDA's in this process."""
        ...

    @property
    def uuid(self) -> str:
        """As CUDA reports it, without the prefix `GPU-` or `MIG-`."""
        ...

    def allocated_bytes(self) -> int:
        """Return what tensors take now."""
        ...

    def reserved_bytes(self) -> int:
        """Return what the allocator holds for tensors, those that come included."""
        ...

    def peak_bytes(self) -> int:
        """Return the most that tensors took since the run began."""
        ...


class MemoryInfo(Protocol):
    """Of a card, in bytes."""

    total: int


class Utilization(Protocol):
    """Of a card, in per cent of the last second or less."""

    gpu: int


class Nvml(Protocol):
    """What is used of the module pynvml, under its names."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...
    def nvmlDeviceGetHandleByUUID(self, uuid: str, /) -> Handle: ...
    def nvmlDeviceGetIndex(self, handle: Handle, /) -> int: ...
    def nvmlDeviceGetMigMode(self, handle: Handle, /) -> Sequence[int]: ...
    def nvmlDeviceIsMigDeviceHandle(self, handle: Handle, /) -> int: ...
    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Handle, /) -> int: ...
    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Handle, index: int, /) -> Handle: ...
    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: Handle, /) -> Handle: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Handle, /) -> MemoryInfo: ...
    def nvmlDeviceGetUtilizationRates(self, handle: Handle, /) -> Utilization: ...
    def nvmlDeviceGetPowerUsage(self, handle: Handle, /) -> int: ...


@dataclass(frozen=True)
class Card:
    """A card as NVML knows it, or the MIG part of one that CUDA computes on."""

    nvml: Nvml
    handle: Handle
    name: str
    """The number that nvidia-smi shows; of a MIG part `card:part`."""

    def total_bytes(self) -> int:
        """Return the memory that there is."""
        return self.nvml.nvmlDeviceGetMemoryInfo(self.handle).total

    def utilization_ratio(self) -> float:
        """Return the share of the last second or less in which any kernel ran, of whatever process."""
        return self.nvml.nvmlDeviceGetUtilizationRates(self.handle).gpu / 100

    def watts(self) -> float:
        """Return the power that the card draws."""
        return self.nvml.nvmlDeviceGetPowerUsage(self.handle) / 1000


class GpuMetrics(Collector):
    """The families of one run's GPUs."""

    def __init__(self, *allocators: Allocator, load: Callable[[], Nvml | None] | None = None) -> None:
        """Remember where to read.

        Args:
            allocators: One for each GPU, of the process that trains.
            load: Returns NVML, or None where there is none; the machine's if left out.
        """
        self._allocators = allocators
        self._load = load or load_nvml

    def collect(self) -> Iterator[Metric]:
        """Yield the allocators' families, and NVML's where it answers."""
        families = {definition: definition.gauge_family() for definition in GPU_METRICS}
        for allocator, card in zip(self._allocators, self._cards, strict=True):
            device = card.name if card else str(allocator.number)
            for definition, value in _values(allocator, card):
                families[definition].add_metric((device,), value)
        yield from (family for family in families.values() if family.samples)

    @cached_property
    def _cards(self) -> tuple[Card | None, ...]:
        nvml = self._load()
        return tuple(None if nvml is None else _card(nvml, allocator) for allocator in self._allocators)


def find_card(nvml: Nvml, *, uuid: str, visible: str, number: int = 0) -> Card:
    """Return what CUDA calls by that number in this process.

    CUDA's numbers are not NVML's: CUDA_VISIBLE_DEVICES chooses and orders, and CUDA sorts by speed where NVML sorts by
    bus. So the card is found by the UUID that CUDA reports. For a MIG part this is, by CUDA's version, its own or the
    whole card's: the part is then the one that CUDA_VISIBLE_DEVICES names, else the card's first.

    Args:
        nvml: Initialised.
        uuid: As CUDA reports it, without its prefix.
        visible: CUDA_VISIBLE_DEVICES; empty if it is not set.
        number: CUDA's.
    """
    entries = [entry.strip() for entry in visible.split(",")]
    if number < len(entries) and entries[number].startswith("MIG-"):
        handle = nvml.nvmlDeviceGetHandleByUUID(entries[number])
    else:
        found = _by_uuid(nvml, uuid)
        handle = _first_part(nvml, found) or found
    return Card(nvml, handle, _name(nvml, handle))


@cache
def load_nvml() -> Nvml | None:
    """Return NVML, initialised once for the process's life; None, and a line in the log, where it does not work."""
    nvml: Nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        _report("no figures of the GPU beside PyTorch's", f"{error}")
        return None
    return nvml


def _by_uuid(nvml: Nvml, uuid: str) -> Handle:
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")


def _first_part(nvml: Nvml, card: Handle) -> Handle | None:
    """Return a card's first MIG part; None if it is not divided, or is a part itself."""
    try:
        if not nvml.nvmlDeviceGetMigMode(card)[0]:
            return None
    except nvml.NVMLError:
        return None  # a card that cannot be divided
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        try:
            return nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index)
        except nvml.NVMLError:
            continue  # numbers may have gaps
    return None


def _name(nvml: Nvml, handle: Handle) -> str:
    index = nvml.nvmlDeviceGetIndex(handle)
    if not nvml.nvmlDeviceIsMigDeviceHandle(handle):
        return str(index)
    return f"{nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle))}:{index}"


def _card(nvml: Nvml, allocator: Allocator) -> Card | None:
    visible = os.environ.get(VISIBLE_VARIABLE, "")
    try:
        return find_card(nvml, uuid=allocator.uuid, visible=visible, number=allocator.number)
    except nvml.NVMLError as error:
        _report(f"NVML does not know the GPU {allocator.uuid} of this run", f"{error}")
        return None


def _values(allocator: Allocator, card: Card | None) -> Iterator[tuple[Definition, float]]:
    yield ALLOCATED, allocator.allocated_bytes()
    yield RESERVED, allocator.reserved_bytes()
    yield PEAK, allocator.peak_bytes()
    if card is None:
        return
    for definition, read in ((TOTAL, card.total_bytes), (UTILIZATION, card.utilization_ratio), (POWER, card.watts)):
        try:
            yield definition, read()
        except card.nvml.NVMLError as error:
            _report(f"no {definition.name} of GPU {card.name}", f"{error}")


@cache
def _report(what: str, why: str) -> None:
    """Say it once in a process's life, not with every scrape."""
    logger.warning("%s: %s", what, why)
