"""One batch on several GPUs: each takes its share of the patches through the network, the loss is of all of them.

Axes: image_BCXYZ, logits_BKXYZ.

Torch's DistributedDataParallel gives every process a loss of its own patches only. The losses here are of the batch as
a whole (Dice over it, its hardest voxels), and a configuration must score the same on whatever it was trained: so the
logits come together before the loss, and the number of GPUs changes nothing but time and memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


class SharedForward:
    """A network's forward pass, its batch divided among devices; gradients arrive at the network's own weights.

    One thread starts the work of all devices, which compute at the same time: a GPU does not keep its caller waiting,
    and autograd goes back through each GPU in a thread of its own.
    """

    def __init__(self, network: nn.Module, devices: Sequence[torch.device]) -> None:
        """Remember the network, which lies on the first device and has no buffers."""
        self._network = network
        self._devices = tuple(devices)

    def __call__(self, image_BCXYZ: Tensor) -> Tensor:
        """Return logits_BKXYZ, as `image_BCXYZ` on the first device; patches fewer than devices leave some idle."""
        home = self._devices[0]
        shares = image_BCXYZ.tensor_split(min(len(self._devices), len(image_BCXYZ)))
        away = [self._away(share, device) for share, device in zip(shares[1:], self._devices[1:], strict=False)]
        return torch.cat([self._network(shares[0]), *(logits_BKXYZ.to(home) for logits_BKXYZ in away)])

    def _away(self, image_BCXYZ: Tensor, device: torch.device) -> Tensor:
        weights = {
            name: weight.to(device, non_blocking=True, copy=True) for name, weight in self._network.named_parameters()
        }
        logits_BKXYZ: Tensor = functional_call(self._network, weights, image_BCXYZ.to(device, non_blocking=True))
        return logits_BKXYZ
