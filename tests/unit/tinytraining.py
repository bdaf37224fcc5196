"""A network so small that a training step takes a millisecond."""

from __future__ import annotations

import torch
from torch import Tensor

from automonai.domain.configuration import Configuration
from automonai.domain.plan import NetworkPlan, Plan
from automonai.learning.checkpoint import Progress
from automonai.learning.loop import Trainer
from automonai.learning.losses import Loss, make_loss
from automonai.learning.network import build_network
from automonai.learning.precision import Precision


def tiny_plan() -> Plan:
    return Plan(
        configuration=Configuration(learning_rate=1e-2),
        channels=("MR",),
        labels={0: "background", 1: "organ"},
        spacing_mm=None,
        patch_voxels=(8, 8, 8),
        batch_size=1,
        network=NetworkPlan(
            spatial_dims=3, in_channels=1, out_channels=2, channels=(2, 4), strides=(2,), residual_units=1
        ),
        slice_axis=2,
        flip_axes=(),
        parameters=0,
    )


def tiny_trainer(*, steps_per_epoch: int = 4, loss_of: Loss | None = None) -> Trainer:
    torch.manual_seed(0)
    plan = tiny_plan()
    return Trainer(
        plan,
        build_network(plan.network, slice_axis=2),
        loss_of=loss_of or make_loss(plan.configuration.loss),
        precision=Precision(torch.device("cpu"), torch.float32),
        progress=Progress(seed=0, steps_per_epoch=steps_per_epoch),
    )


def make_batch(step: int) -> tuple[Tensor, Tensor]:
    """Return the same image_BCXYZ and label_BXYZ whenever asked for a step."""
    generator = torch.Generator().manual_seed(step)
    image = torch.randn(1, 1, 8, 8, 8, generator=generator)
    return image, (image[:, 0] > 0.5).to(torch.uint8)
