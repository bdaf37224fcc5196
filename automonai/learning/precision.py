"""Where a network is computed, and in which floating-point type."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from automonai.errors import BadRequestError
from automonai.host import THREADS_ALONE, usable_cores
from automonai.spec import ExecutionSpec

_HARDWARE_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # Intel and AMD; the last is Arm's name

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Precision:
    """A device and the type of its convolutions; sums, normalisation statistics and the loss stay float32."""

    device: torch.device
    dtype: torch.dtype

    @property
    def bytes_per_activation(self) -> int:
        """Return the size of one stored activation."""
        return self.dtype.itemsize

    def autocast(self, *, keeps_casts: bool = True) -> AbstractContextManager[None]:
        """Return the context in which the network's forward pass runs.

        Args:
            keeps_casts: Of the weights to `dtype`, until the context is left.
        """
        is_lower = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=is_lower, cache_enabled=keeps_casts)

    def scaler(self) -> torch.amp.GradScaler:
        """Return what scales the loss so that float16 gradients do not vanish; it does nothing for other types."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def choose_device(execution: ExecutionSpec) -> torch.device:
    """Return the GPU if there is one and the spec allows it, else the CPU.

    Raises:
        BadRequestError: If the spec demands a GPU and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if execution.device == "cuda" and not has_gpu:
        raise BadRequestError("execution.device is cuda, but torch finds no GPU here; write auto or cpu")
    return torch.device("cuda" if has_gpu and execution.device != "cpu" else "cpu")


def choose_devices(execution: ExecutionSpec, *, most_gpus: int = 1) -> tuple[torch.device, ...]:
    """Return where a training computes: on so many of the GPUs that this process sees, or on the CPU.

    Raises:
        BadRequestError: If the spec demands a GPU and there is none.
    """
    device = choose_device(execution)
    if device.type == "cpu" or most_gpus == 1:
        return (device,)
    return tuple(torch.device("cuda", number) for number in range(min(most_gpus, torch.cuda.device_count())))


def choose_precision(execution: ExecutionSpec, device: torch.device) -> torch.dtype:
    """Return the type that the device computes fastest without losing quality, or the one the spec demands.

    Raises:
        BadRequestError: If the spec demands float16 on a CPU, which has no fast convolutions in it.
    """
    match execution.precision:
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "float16" if device.type == "cpu":
            raise BadRequestError("execution.precision is float16, but the device is a CPU; write auto or bfloat16")
        case "float16":
            return torch.float16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if _has_bfloat16() else torch.float32


def refusal(execution: ExecutionSpec) -> str | None:
    """Return why this machine cannot compute as the spec demands; None if it can."""
    try:
        choose_precision(execution, choose_device(execution))
    except BadRequestError as error:
        return str(error)
    return None


def limit_threads(*, is_alone: bool = False) -> None:
    """Let torch compute on the threads that OMP_NUM_THREADS sets aside for this process, or on no more than its cores.

    By itself it takes as many as the machine has, whatever a container's quota, and is throttled for it.

    Args:
        is_alone: Whether no other worker of the study computes now: then it has their threads as well.
    """
    stated = (os.environ.get(THREADS_ALONE) if is_alone else None) or os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(int(stated) if stated else min(torch.get_num_threads(), usable_cores()))


def keep_freed_memory() -> None:
    """Let this process keep what it frees instead of returning it to the system page by page.

    A training step frees and takes the same hundreds of megabytes over and over; asking the system for fresh pages each
    time costs a tenth of a step on a CPU. Does nothing where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20)):
        mallopt(option, value)


@cache
def _has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; emulation would be slower than float32."""
    try:
        description = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return not _HARDWARE_BFLOAT16.isdisjoint(description.split())


if __name__ == "__main__":  # asked by `execution.machine`, in whose process torch is not loaded
    sys.exit(refusal(ExecutionSpec.model_validate_json(sys.argv[1])))
