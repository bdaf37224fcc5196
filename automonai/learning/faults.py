"""What an error says about the device that computed: a lack of memory, or a fault of the GPU's own."""

from __future__ import annotations

import torch

_LACKS_MEMORY = ("out of memory", "ALLOC_FAILED", "allocate memory")
"""In messages of CUDA itself, of its libraries (CUBLAS_STATUS_ALLOC_FAILED), and of torch's allocator on a CPU."""

_GPU_FAULTS = ("CUDA error", "cuDNN error", "CUBLAS")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the machine, has too little memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LACKS_MEMORY)


def is_gpu_fault(error: BaseException) -> bool:
    """Whether an error is the GPU's or its driver's, not for want of memory.

    The same computation may succeed elsewhere or later, but not in this process: CUDA gives it nothing but errors now.
    """
    return not is_out_of_memory(error) and any(words in str(error) for words in _GPU_FAULTS)
