from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tinytraining import tiny_plan, tiny_trainer
from torch import Tensor, nn

from automonai.learning.network import build_network
from automonai.learning.shared_batch import SharedForward

CPU = torch.device("cpu")


def network(spatial_dims: int) -> nn.Module:
    torch.manual_seed(0)
    plan = tiny_plan().network.model_copy(update={"spatial_dims": spatial_dims})
    return build_network(plan, slice_axis=2)


def gradients(trained: nn.Module, forward: Callable[[Tensor], Tensor], image_BCXYZ: Tensor) -> list[Tensor]:
    trained.zero_grad()
    forward(image_BCXYZ).square().mean().backward()
    return [parameter.grad for parameter in trained.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("patches", "devices"), [(4, 2), (4, 3), (2, 4), (1, 2)])
def test_logits_and_gradients_are_those_of_one_device(spatial_dims: int, patches: int, devices: int) -> None:
    alone = network(spatial_dims)
    shared = SharedForward(alone, [CPU] * devices)
    image_BCXYZ = torch.randn(patches, 1, 8, 8, 8)
    torch.testing.assert_close(shared(image_BCXYZ), alone(image_BCXYZ))
    expected, found = gradients(alone, alone, image_BCXYZ), gradients(alone, shared, image_BCXYZ)
    assert len(found) == len(list(alone.parameters()))
    torch.testing.assert_close(found, expected)


def test_every_device_gets_its_share_of_the_patches_and_weights_of_its_own() -> None:
    trained = network(3)
    seen: list[tuple[int, int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append((len(inputs[0]), next(module.parameters()).data_ptr()))

    trained.register_forward_pre_hook(note)
    SharedForward(trained, [CPU] * 3)(torch.zeros(5, 1, 8, 8, 8))
    assert sorted(patches for patches, _ in seen) == [1, 2, 2]
    assert len({weights for _, weights in seen}) == 3


def test_a_training_takes_the_same_course_on_several_devices() -> None:
    def losses(devices: int) -> list[float]:
        trainer = tiny_trainer()
        if devices > 1:
            trainer.forward = SharedForward(trainer.network, [CPU] * devices)
        generator = torch.Generator().manual_seed(1)
        image_BCXYZ = torch.randn(4, 1, 8, 8, 8, generator=generator)
        label_BXYZ = (image_BCXYZ[:, 0] > 0).long()
        return [trainer.update(image_BCXYZ, label_BXYZ, learning_rate=1e-2) for _ in range(5)]

    alone = losses(1)
    assert alone[-1] < alone[0]
    assert losses(2) == pytest.approx(alone, rel=1e-4)
