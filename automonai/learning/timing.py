"""How long one training step of a plan takes on this machine."""

from __future__ import annotations

import time
from statistics import median

import torch

from automonai.domain.plan import Plan
from automonai.learning.checkpoint import Progress
from automonai.learning.forward import choose_forward
from automonai.learning.loop import Trainer
from automonai.learning.losses import make_loss
from automonai.learning.network import build_network, place
from automonai.learning.precision import Precision, choose_device, choose_precision
from automonai.spec import ExecutionSpec

WARM_UP_STEPS = 2
LONGEST_SECONDS = 6.0
MOST_STEPS = 8


def seconds_per_step(plan: Plan, *, execution: ExecutionSpec, threads: int) -> float:
    """Return the median time of a training step on random data, warm-up excluded.

    Args:
        plan: Its network, patch, batch and loss are used.
        execution: Its device and precision are used.
        threads: CPU threads of the step; the process keeps this number afterwards.
    """
    torch.set_num_threads(threads)
    device = choose_device(execution)
    precision = Precision(device, choose_precision(execution, device))
    trainer = Trainer(
        plan,
        place(build_network(plan.network, slice_axis=plan.slice_axis), device),
        loss_of=make_loss(plan.configuration.loss),
        precision=precision,
        progress=Progress(seed=0, steps_per_epoch=1),
    )
    trainer.forward = choose_forward(
        trainer.network,
        plan,
        precision=precision,
        devices=[device],
        compile=execution.compile,
        batch_sizes=[plan.batch_size],
    )
    shape = (plan.batch_size, plan.network.in_channels, *plan.patch_voxels)
    image_BCXYZ = torch.randn(shape, device=device)
    label_BXYZ = torch.randint(plan.network.out_channels, (shape[0], *plan.patch_voxels), device=device)

    def step() -> float:
        start = time.perf_counter()
        trainer.update(image_BCXYZ, label_BXYZ, learning_rate=plan.configuration.learning_rate)
        return time.perf_counter() - start

    began = time.perf_counter()
    seconds: list[float] = []
    while len(seconds) < WARM_UP_STEPS + 1 or (
        len(seconds) < WARM_UP_STEPS + MOST_STEPS and time.perf_counter() - began < LONGEST_SECONDS
    ):
        seconds.append(step())
    return median(seconds[WARM_UP_STEPS:])
