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

    uuid: str
    """As CUDA reports it, without the prefix `GPU-` or `MIG-`."""

    def allocated_bytes(self) -> int:
        """Return what tensors take now."""
        return torch.cuda.memory_allocated(0)

    def reserved_bytes(self) -> int:
        """Return what the allocator holds for tensors, those that come included."""
        return torch.cuda.memory_reserved(0)

    def peak_bytes(self) -> int:
        """Return the most that tensors took since the run began."""
        return torch.cuda.max_memory_allocated(0)


def gpu_memory(execution: ExecutionSpec) -> GpuMemory | None:
    """Return the memory of the GPU that a run trains on, the first that CUDA shows this process; None on a CPU.

    None as well where CUDA does not start: what that means for the run, its training will find out and say.
    """
    if execution.device == "cpu" or not torch.cuda.is_available():
        return None
    try:
        return GpuMemory(uuid=str(torch.cuda.get_device_properties(0).uuid))
    except RuntimeError as error:
        logger.warning("no metrics of the GPU: %s", error)
        return None


def peak_memory_bytes() -> int:
    """Return the peak of the GPU's memory since the run began, or of the process's resident memory without a GPU."""
    if torch.cuda.is_initialized() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak_memory() -> None:
    """Forget the peaks of earlier runs of this process; one that has not touched a GPU has none there."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return  # elsewhere than on Linux the peak is the process's


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
