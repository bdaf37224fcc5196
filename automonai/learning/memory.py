"""The memory that a training takes of this machine, and the files that it maps into it."""

from __future__ import annotations

import logging
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from automonai.spec import ExecutionSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuMemory:
    """The memory of one GPU as PyTorch's allocator counts it for this process; reading it never waits for the GPU."""

    number: int
    """CUDA's in this process."""
    uuid: str
    """As CUDA reports it, without the prefix `GPU-` or `MIG-`."""

    def allocated_bytes(self) -> int:
        """Return what tensors take now."""
        return torch.cuda.memory_allocated(self.number)

    def reserved_bytes(self) -> int:
        """Return what the allocator holds for tensors, those that come included."""
        return torch.cuda.memory_reserved(self.number)

    def peak_bytes(self) -> int:
        """Return the most that tensors took since the run began."""
        return torch.cuda.max_memory_allocated(self.number)


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
    of_gpus = [torch.cuda.max_memory_allocated(number) for number in _started_gpus()]
    if any(of_gpus):
        return max(of_gpus)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak_memory() -> None:
    """Forget the peaks of earlier runs of this process; one that has not touched a GPU has none there."""
    for number in _started_gpus():
        torch.cuda.reset_peak_memory_stats(number)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return  # elsewhere than on Linux the peak is the process's


def _started_gpus() -> range:
    """Return CUDA's numbers of the GPUs; none while this process has not touched any."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


def release_gpu_memory() -> None:
    """Give back what the allocator holds but no tensor needs: while this process waits, another may use that GPU."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def allow_many_files() -> None:
    """Let this process have as many files open as the system lets it choose: each memory-mapped array keeps one.

    The usual limit of 1,024 is there for programs that use select(2), and is spent at some 500 cases.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError):
        return  # macOS calls its limit infinite, but does not grant that
