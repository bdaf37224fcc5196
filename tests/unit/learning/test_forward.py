from __future__ import annotations

import logging
from contextlib import nullcontext

import pytest
import torch
from tinytraining import tiny_plan, tiny_trainer
from torch import nn

from automonai.domain.plan import Plan
from automonai.learning import forward
from automonai.learning.forward import Forward, choose_forward
from automonai.learning.precision import Precision
from automonai.learning.shared_batch import SharedForward

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def chosen(network: nn.Module, *, plan: Plan | None = None, devices: tuple[torch.device, ...] = (CPU,)) -> Forward:
    return choose_forward(
        network,
        plan or tiny_plan(),
        precision=Precision(devices[0], torch.bfloat16),
        devices=devices,
        compile=False,
        batch_sizes=[2, 4],
    )


def test_a_cpu_computes_the_network_as_it_is() -> None:
    network = tiny_trainer().network
    assert chosen(network) is network


def test_several_devices_share_every_batch() -> None:
    assert isinstance(chosen(tiny_trainer().network, devices=(CPU, CPU)), SharedForward)


def test_a_gpu_gets_a_recording_of_every_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def record(network: nn.Module, shape: tuple[int, ...], precision: Precision) -> Forward:
        shapes.append(shape)
        return lambda image_BCXYZ: network(image_BCXYZ) + len(image_BCXYZ)

    monkeypatch.setattr(forward, "recording", nullcontext)
    monkeypatch.setattr(forward, "_recorded", record)
    network, plan = tiny_trainer().network, tiny_plan()
    recorded = chosen(network, plan=plan, devices=(CUDA,))
    assert shapes == [(size, plan.network.in_channels, *plan.patch_voxels) for size in (2, 4)]
    image_BCXYZ = torch.randn(shapes[0])
    assert torch.equal(recorded(image_BCXYZ), network(image_BCXYZ) + 2)


def test_a_gpu_computes_a_large_network_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_LARGEST_RECORDED_BYTES", tiny_plan().step_bytes() - 1)
    network = tiny_trainer().network
    assert chosen(network, devices=(CUDA,)) is network


def test_where_recording_fails_the_network_is_computed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(network: nn.Module, shape: tuple[int, ...], precision: Precision) -> Forward:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(forward, "recording", nullcontext)
    monkeypatch.setattr(forward, "_recorded", fail)
    network = tiny_trainer().network
    with caplog.at_level(logging.WARNING):
        assert chosen(network, devices=(CUDA,)) is network
    assert "tried to allocate 2 GiB" in caplog.text
