"""Build MONAI's UNet from a plan, in the memory layout that its device computes fastest.

Axes: B batch, C channel, K class, X Y Z the patient's axes.
"""

from __future__ import annotations

from typing import cast

import torch
from monai.networks.blocks import ADN
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from automonai.domain.plan import NetworkPlan

_SLOPE = 0.01
_AXES_OF_A_VOLUME = 5
_LARGE_SAMPLE = 2**22
"""Features of a sample from which on leaving the layout costs a GPU more than it saves; measured on an NVIDIA H200."""

BACKGROUND_BIAS = 4.0
"""Initial bias of the background's logit: a new network expects some 2 % of each structure at every voxel.

The prior of Lin et al. 2017 (focal loss, section 4.1). MONAI's UNet normalises just before its last convolution, so
that without it every class starts as likely as the background, and hundreds of steps go by until the biases have moved:
on the hippocampus data 0.75 training Dice is reached after 40 steps instead of some 200.
"""


def build_network(plan_network: NetworkPlan, *, slice_axis: int) -> nn.Module:
    """Return a network from image_BCXYZ to logits_BKXYZ with fresh weights from torch's global generator.

    Instance normalisation has a learned scale and shift, as nnU-Net's. Weights and buffers are float32 on the CPU.

    Args:
        plan_network: The network in numbers.
        slice_axis: For a 2D network: the axis (0, 1, 2) whose slices are folded into the batch; ignored for 3D.
    """
    unet = UNet(
        spatial_dims=plan_network.spatial_dims,
        in_channels=plan_network.in_channels,
        out_channels=plan_network.out_channels,
        channels=plan_network.channels,
        strides=plan_network.strides,
        num_res_units=plan_network.residual_units,
        act=("LEAKYRELU", {"negative_slope": _SLOPE}),
        norm=("INSTANCE", {"affine": True}),
    )
    _replace_activations(unet)
    _replace_convolutions(unet)
    _expect_background(unet)
    if plan_network.spatial_dims == 2:
        return SliceNetwork(unet.to(memory_format=torch.channels_last), slice_axis=slice_axis)
    return VolumeNetwork(unet.to(memory_format=torch.channels_last_3d))


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a new network of `build_network` to a device, its weights in the layout that is fastest there; return it."""
    if device.type == "cuda" and isinstance(network, SliceNetwork):
        for parameter in network.parameters():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)  # 1 x 1 kernels, too
    return network.to(device)


class VolumeNetwork(nn.Module):
    """A 3D network that takes its images in channels-last layout."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap a network from image_BCXYZ to logits_BKXYZ."""
        super().__init__()
        self.network = network

    def forward(self, image_BCXYZ: Tensor) -> Tensor:
        """Return logits_BKXYZ."""
        return self.network(_channels_last(image_BCXYZ))


class SliceNetwork(nn.Module):
    """A 2D network over volumes: every slice is one element of its batch."""

    def __init__(self, network: nn.Module, *, slice_axis: int) -> None:
        """Wrap a network over slices along `slice_axis` (0, 1 or 2)."""
        super().__init__()
        self.network = network
        self.slice_axis = slice_axis

    def forward(self, image_BCXYZ: Tensor) -> Tensor:
        """Return logits_BKXYZ."""
        by_slice = image_BCXYZ.movedim(2 + self.slice_axis, 1)
        slices = by_slice.flatten(0, 1)
        slices = _channels_last(slices) if image_BCXYZ.device.type == "cpu" else slices.contiguous()
        logits = self.network(slices).unflatten(0, by_slice.shape[:2])
        return logits.movedim(1, 2 + self.slice_axis)


def _channels_last(image: Tensor) -> Tensor:
    """Return an image in channels-last layout, also one of a single channel.

    That one is in both layouts at once, and torch takes it for the other: a convolution's result then is in that one,
    and adding it to one in channels-last is slow.
    """
    layout = torch.channels_last_3d if image.ndim == _AXES_OF_A_VOLUME else torch.channels_last
    return torch.empty_like(image, memory_format=layout).copy_(image)


def _expect_background(unet: nn.Module) -> None:
    convolutions = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    last = [module for module in unet.modules() if isinstance(module, convolutions)][-1]
    assert last.bias is not None
    with torch.no_grad():
        last.bias[0] += BACKGROUND_BIAS


def _replace_activations(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, ADN):
            setattr(module, name, _NormActivation(cast("nn.InstanceNorm3d", child.N)))
        else:
            _replace_activations(child)


def _replace_convolutions(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Conv3d:
            setattr(module, name, _Convolution.like(child))
        else:
            _replace_convolutions(child)


class _Convolution(nn.Conv3d):
    """A convolution that computes in float32 where its volume has two planes, on a CPU.

    In bfloat16 oneDNN 3.12 (of torch 2.13, with AVX-512) then gives the weights a gradient that is partly memory which
    nobody has written; result and gradient of the input are right. Such a volume is small, so it costs nothing.
    """

    @classmethod
    def like(cls, other: nn.Conv3d) -> _Convolution:
        """Return one with another's weights; no random number is drawn."""
        made = nn.utils.skip_init(
            cls,
            other.in_channels,
            other.out_channels,
            other.kernel_size,
            stride=other.stride,
            padding=other.padding,
            bias=other.bias is not None,
        )
        made.weight, made.bias = other.weight, other.bias
        return cast("_Convolution", made)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the base class's own name
        if input.device.type == "cpu" and input.shape[2] == 2 and torch.is_autocast_enabled("cpu"):  # noqa: PLR2004
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


class _NormActivation(nn.Module):
    """Instance normalisation, then LeakyReLU: MONAI's ADN block under the same state keys.

    torch's instance norm leaves the channels-last layout, and every convolution around it pays for two conversions: on
    a CPU a third of a training step, on a GPU with large patches two fifths. `_ChannelsLastNorm` stays in the layout.
    It goes through the samples one by one: what is small on a GPU, where starting a computation is what takes time, or
    has many samples, the slices of a volume, is left to torch there. torch.compile makes a computation of its own.
    """

    def __init__(self, norm: nn.InstanceNorm3d) -> None:
        super().__init__()
        self.N = norm

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised activations; a single voxel per channel gives the shift alone instead of an error."""
        norm = self.N
        is_volume = x.ndim == _AXES_OF_A_VOLUME
        pays = x.device.type == "cpu" or (is_volume and x[0].numel() >= _LARGE_SAMPLE)
        if pays and not torch.compiler.is_compiling():
            layout = torch.channels_last_3d if is_volume else torch.channels_last
            return cast(
                Tensor,
                _ChannelsLastNorm.apply(x.contiguous(memory_format=layout), norm.weight, norm.bias, norm.eps),
            )
        return _normed_and_activated(x, norm)


def _normed_and_activated(x: Tensor, norm: nn.InstanceNorm3d) -> Tensor:
    """Do as torch's instance norm does, but activate in place before its result becomes a view.

    In place on a view, autograd would copy every gradient twice more.
    """
    samples = x.shape[0]
    of_samples = x.contiguous().view(1, samples * x.shape[1], *x.shape[2:])
    weight, bias = norm.weight.repeat(samples), norm.bias.repeat(samples)
    normal = torch.batch_norm(of_samples, weight, bias, None, None, True, 0.0, norm.eps, True)
    return nn.functional.leaky_relu(normal, _SLOPE, inplace=True).view(x.shape)


class _Saved(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]
    eps: float


class _ChannelsLastNorm(torch.autograd.Function):
    """Instance norm and LeakyReLU, sample by sample through torch's batch norm, which works in channels-last."""

    @staticmethod
    def forward(ctx: _Saved, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        means, deviations = [], []
        for sample in range(x.shape[0]):
            part = slice(sample, sample + 1)
            normal, mean, inverse_std = torch.native_batch_norm(x[part], weight, bias, None, None, True, 0.0, eps)
            torch.ops.aten.leaky_relu.out(normal, _SLOPE, out=out[part])
            means.append(mean)
            deviations.append(inverse_std)
        ctx.save_for_backward(x, weight, out, torch.stack(means), torch.stack(deviations))
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: _Saved, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out, mean, inverse_std = ctx.saved_tensors
        layout = torch.channels_last_3d if x.ndim == _AXES_OF_A_VOLUME else torch.channels_last
        gradient = gradient.contiguous(memory_format=layout)
        of_x = torch.empty_like(x)
        of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        for sample in range(x.shape[0]):
            part = slice(sample, sample + 1)
            before = torch.ops.aten.leaky_relu_backward(gradient[part], out[part], _SLOPE, True)
            of_x[part], scale, shift = torch.ops.aten.native_batch_norm_backward(
                before,
                x[part],
                weight,
                None,
                None,
                mean[sample],
                inverse_std[sample],
                True,
                ctx.eps,
                [True, True, True],
            )
            of_weight += scale
            of_bias += shift
        return of_x, of_weight, of_bias, None
