from __future__ import annotations

import pytest
import torch

from automonai.learning.faults import is_gpu_fault, is_out_of_memory


@pytest.mark.parametrize(
    ("error", "lacks_memory", "is_fault"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True, False),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True, False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True, False),
        (MemoryError(), True, False),
        (RuntimeError("CUDA error: unspecified launch failure"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED"), False, True),
        (RuntimeError("the size of tensor a must match the size of tensor b"), False, False),
        (ValueError("a patch is out of memory of its volume"), False, False),
    ],
)
def test_a_lack_of_memory_is_told_from_a_fault_of_the_gpu(error: Exception, lacks_memory: bool, is_fault: bool) -> None:
    assert (is_out_of_memory(error), is_gpu_fault(error)) == (lacks_memory, is_fault)
