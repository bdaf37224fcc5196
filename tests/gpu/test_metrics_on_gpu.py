"""What NVML and CUDA say of the same card; `pytest tests/gpu` runs it where there is one."""

from __future__ import annotations

import os

import pytest
import torch

from automonai.learning.memory import gpu_memory
from automonai.observability.gpu import GPU_METRICS, GpuMetrics, find_card, load_nvml
from automonai.spec import ExecutionSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]


def test_nvml_finds_the_card_that_cuda_computes_on() -> None:
    (memory,), nvml = gpu_memory(ExecutionSpec()), load_nvml()
    assert nvml is not None
    card = find_card(nvml, uuid=memory.uuid, visible=os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    assert card.total_bytes() == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.05)


def test_a_tensors_bytes_are_shown_at_once() -> None:
    (memory,) = gpu_memory(ExecutionSpec())
    tensor = torch.zeros(2**28, dtype=torch.uint8, device="cuda")
    shown = {sample.name: sample.value for family in GpuMetrics(memory).collect() for sample in family.samples}
    assert shown["automonai_gpu_memory_allocated_bytes"] >= tensor.nbytes
    assert shown["automonai_gpu_memory_peak_bytes"] >= shown["automonai_gpu_memory_allocated_bytes"]
    assert shown["automonai_gpu_memory_total_bytes"] > tensor.nbytes


@pytest.mark.skipif("MIG-" in os.environ.get("CUDA_VISIBLE_DEVICES", ""), reason="NVML cannot tell these of a part")
def test_a_whole_card_shows_every_family() -> None:
    (memory,) = gpu_memory(ExecutionSpec())
    assert {family.name for family in GpuMetrics(memory).collect()} == {definition.name for definition in GPU_METRICS}
