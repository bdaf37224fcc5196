"""How a training puts its batches through the network: as it is, compiled, on several GPUs, or as a CUDA graph.

Axes: image_BCXYZ, logits_BKXYZ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from automonai.domain.plan import Plan
from automonai.learning.memory import recording, release_gpu_memory
from automonai.learning.precision import Precision
from automonai.learning.shared_batch import SharedForward

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor], Tensor]
"""From image_BCXYZ to logits_BKXYZ; gradients arrive at the network's weights."""

_LARGEST_RECORDED_BYTES = 2 * 2**30
"""Planned memory of a step up to which a GPU waits for computations to be started; measured on an NVIDIA H200.

Those of a larger step take longer than starting the next one, and a graph would only keep their memory.
"""


def choose_forward(
    network: nn.Module,
    plan: Plan,
    *,
    precision: Precision,
    devices: Sequence[torch.device],
    compile: bool,
    batch_sizes: Collection[int],
) -> Forward:
    """Return the fastest way through a network that is trained in place.

    Args:
        network: On the precision's device, with the weights that the training starts from.
        plan: Of the network.
        precision: In whose autocast the forward pass will run.
        devices: Several share every batch; the first is the precision's.
        compile: Compile the network with torch.compile; several devices do without.
        batch_sizes: All that will come.
    """
    if len(devices) > 1:
        _tell_of_sharing(len(devices), plan.batch_size)
        return SharedForward(network, devices)
    if compile:
        torch.compiler.reset()  # a process has room for a few networks; the next ones would not be compiled
        return torch.compile(network)
    step_bytes = plan.step_bytes(bytes_per_activation=precision.bytes_per_activation)
    if precision.device.type != "cuda" or step_bytes > _LARGEST_RECORDED_BYTES:
        return network
    try:
        return RecordedForward(network, plan, precision=precision, batch_sizes=batch_sizes)
    except RuntimeError as error:  # too little memory for it is one of them
        logger.warning("no CUDA graph of the network, its computations are started one by one: %s", error)
    release_gpu_memory()  # once the error is gone, which holds what was recorded before it
    return network


def _tell_of_sharing(gpus: int, batch_size: int) -> None:
    logger.info("%d GPUs share the %d patches of every batch, and the validations", gpus, batch_size)
    if gpus > batch_size:
        logger.warning("%d of the GPUs only validate: a batch has %d patches", gpus - batch_size, batch_size)


class RecordedForward:
    """A network's forward and backward pass, recorded once for each batch size and then started as one CUDA graph.

    Of a small network a GPU computes most layers faster than they are started, and a step takes as long as starting
    all of them. The graph holds the addresses of the weights: they may change in place only, as an optimiser and
    `load_state_dict` change them. Its gradients lie in memory that the next backward pass overwrites: they must not be
    gathered over several steps. `release_gpu_memory` gives the memory of one that nobody needs back.
    """

    def __init__(self, network: nn.Module, plan: Plan, *, precision: Precision, batch_sizes: Collection[int]) -> None:
        """Record the network, which lies on a GPU; no other thread of this process may use that meanwhile.

        Raises:
            RuntimeError: If CUDA cannot record it, or lacks the memory.
        """
        # Recording takes place in a stream of its own, where torch then also gathers the gradients, and says so.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        sides = (plan.network.in_channels, *plan.patch_voxels)
        with recording(precision.device):
            self._of_size = {size: _recorded(network, (size, *sides), precision) for size in sorted(set(batch_sizes))}

    def __call__(self, image_BCXYZ: Tensor) -> Tensor:
        """Return logits_BKXYZ of a batch of one of the sizes; the next call overwrites them."""
        return self._of_size[len(image_BCXYZ)](image_BCXYZ)


def _recorded(network: nn.Module, shape: tuple[int, ...], precision: Precision) -> Forward:
    holder = _Holder(network)
    image_BCXYZ = torch.zeros(shape, device=precision.device)
    here = torch.cuda.stream(torch.cuda.current_stream(precision.device))  # where a recording that fails leads back to
    with here, precision.autocast(keeps_casts=False):  # a cast that was kept would be of today's weights for ever
        torch.cuda.make_graphed_callables(holder, (image_BCXYZ,))
    return holder


class _Holder(nn.Module):
    """What torch may give another `forward`; the network itself stays as it is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image_BCXYZ: Tensor) -> Tensor:
        logits_BKXYZ: Tensor = self.network(image_BCXYZ)
        return logits_BKXYZ
