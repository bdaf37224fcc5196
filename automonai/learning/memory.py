"""The memory that a training takes of this machine, and the files that it maps into it."""

from __future__ import annotations

import gc
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from automonai.spec import ExecutionSpec

logger = logging.getLogger(__name__)

_recorded_bytes: dict[int, int] = {}
"""GPU to what recorded networks hold there between their steps: torch counts it as free, and gives it to nobody."""


@dataclass(frozen=True)
class GpuMemory:
    """The memory of one GPU as PyTorch's allocator counts it for this process; reading it never waits for the GPU."""

    number: int
    """CUDA's in this process."""
    uuid: str
    """As CUDA reports it, without the prefix `GPU-` or `MIG-`."""

    def allocated_bytes(self) -> int:
        """Return what tensors take now, or in the steps of a recorded network."""
        return torch.cuda.memory_allocated(self.number) + _recorded_bytes.get(self.number, 0)

    def reserved_bytes(self) -> int:
        """Return what the allocator holds for tensors, those that come included."""
        return torch.cuda.memory_reserved(self.number)

    def peak_bytes(self) -> int:
        """Return the most that tensors took since the run began."""
        return _peak_bytes(self.number)


def gpu_memory(execution: ExecutionSpec, *, most_gpus: int = 1) -> tuple[GpuMemory, ...]:
    """Return the memory of each GPU that a run computes on, the first ones that CUDA shows this process.

    Empty on a CPU, and where CUDA does not start: what that means for the run, its training will find out and say.
    """
    if execution.device == "cpu" or not torch.cuda.is_available():
        return ()
    try:
        numbers = range(min(most_gpus, torch.cuda.device_count()))
        return tuple(GpuMemory(number, str(torch.cuda.get_device_properties(number).uuid)) for number in numbers)
    except RuntimeError as error:
        logger.warning("no metrics of the GPU: %s", error)
        return ()


def peak_memory_bytes() -> int:
    """Return the peak since the run began: of the fullest GPU's memory, or without a GPU of the resident memory."""
    of_gpus = [_peak_bytes(number) for number in _started_gpus()]
    if any(of_gpus):
        return max(of_gpus)
    return _of_this_process("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """Return what this process has in memory now, mapped files left out: the system takes these back; 0 if unknown."""
    return _of_this_process("RssAnon") or 0


def reset_peak_memory() -> None:
    """Forget the peaks of earlier runs of this process; one that has not touched a GPU has none there."""
    for number in _started_gpus():
        torch.cuda.reset_peak_memory_stats(number)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return  # elsewhere than on Linux the peak is the process's


def _of_this_process(name: str) -> int | None:
    """Return a figure of proc(5)'s status in bytes; None where the system keeps none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _started_gpus() -> range:
    """Return CUDA's numbers of the GPUs; none while this process has not touched any."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


def release_gpu_memory() -> None:
    """Give back what the allocator holds but no tensor needs: while this process waits, another may use that GPU.

    Call it where no recorded network is needed any more.
    """
    if torch.cuda.is_initialized():
        gc.collect()  # torch's recordings of networks refer to themselves
        torch.cuda.empty_cache()
    _recorded_bytes.clear()


@contextmanager
def recording(device: torch.device) -> Iterator[None]:
    """Count what networks that are recorded meanwhile hold between their steps as taken, until it is released.

    The peak counts from here on.
    """
    number = _number(device)
    torch.cuda.empty_cache()
    before = _unused_bytes(number)
    yield
    torch.cuda.empty_cache()
    _recorded_bytes[number] = _recorded_bytes.get(number, 0) + max(0, _unused_bytes(number) - before)
    torch.cuda.reset_peak_memory_stats(number)


def free_gpu_bytes(device: torch.device) -> int:
    """Return what tensors of this process may still take of a GPU."""
    number = _number(device)
    free, _ = torch.cuda.mem_get_info(number)
    return free + _unused_bytes(number) - _recorded_bytes.get(number, 0)


def _number(device: torch.device) -> int:
    """Return CUDA's number of a device; without one it is the first, since none is ever set to be the current one."""
    return device.index or 0


def _unused_bytes(number: int) -> int:
    return torch.cuda.memory_reserved(number) - torch.cuda.memory_allocated(number)


def _peak_bytes(number: int) -> int:
    return torch.cuda.max_memory_allocated(number) + _recorded_bytes.get(number, 0)


def allow_many_files() -> None:
    """Let this process have as many files open as the system lets it choose: each memory-mapped array keeps one.

    The usual limit of 1,024 is there for programs that use select(2), and is spent at some 500 cases.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError):
        return  # macOS calls its limit infinite, but does not grant that
