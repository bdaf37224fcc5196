from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import UNet
from torch import Tensor, nn

from automonai.domain.plan import NetworkPlan, _features, parameter_count
from automonai.learning.network import _channels_last, _ChannelsLastNorm, _normed_and_activated, build_network, place


def plan(**changes: object) -> NetworkPlan:
    values: dict[str, object] = {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 3,
        "channels": (4, 6, 8),
        "strides": (1, 2),
        "residual_units": 1,
    }
    return NetworkPlan.model_validate({**values, **changes})


@given(
    dims=st.sampled_from([2, 3]),
    channels=st.lists(st.integers(1, 7), min_size=2, max_size=5),
    strides=st.lists(st.sampled_from([1, 2]), min_size=4, max_size=4),
    units=st.integers(0, 3),
    inside=st.integers(1, 4),
    outside=st.integers(2, 4),
)
@settings(max_examples=25)
def test_the_counted_parameters_are_those_of_the_network(
    dims: int, channels: list[int], strides: list[int], units: int, inside: int, outside: int
) -> None:
    network = plan(
        spatial_dims=dims,
        channels=tuple(channels),
        strides=tuple(strides[: len(channels) - 1]),
        residual_units=units,
        in_channels=inside,
        out_channels=outside,
    )
    built = build_network(network, slice_axis=2)
    assert sum(weight.numel() for weight in built.parameters()) == parameter_count(network)


@pytest.mark.parametrize("units", [0, 1, 2, 3])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("strides", [(1, 2), (2, 2)])
def test_the_counted_features_are_those_that_torch_keeps(dims: int, units: int, strides: tuple[int, ...]) -> None:
    network = plan(spatial_dims=dims, channels=(16, 24, 32), strides=strides, residual_units=units)
    built = build_network(network, slice_axis=2)
    weights = {weight.untyped_storage().data_ptr() for weight in built.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    image_BCXYZ = torch.randn(2, 1, 16, 16, 8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        built(image_BCXYZ)
    kept = sum(tensor.untyped_storage().nbytes() // 4 for key, tensor in saved.items() if key not in weights)
    counted, _ = _features(network, image_BCXYZ.numel())
    assert counted == pytest.approx(kept, rel=0.05)


def test_an_image_of_one_channel_is_in_channels_last_by_its_strides_too() -> None:
    image_BCXYZ = torch.randn(2, 1, 4, 5, 6)
    placed = _channels_last(image_BCXYZ)
    assert placed.stride() == (120, 1, 30, 6, 1)
    assert torch.equal(placed, image_BCXYZ)


def test_on_a_gpu_slices_are_convolved_in_the_plain_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(plan(spatial_dims=2, residual_units=2), slice_axis=2)
    monkeypatch.setattr(network, "to", lambda device: network)
    before = [weight.clone() for weight in network.parameters()]
    place(network, torch.device("cuda"))
    for weight, old in zip(network.parameters(), before, strict=True):
        assert torch.equal(weight, old)
        assert weight.stride() == torch.empty(weight.shape).stride()


@pytest.mark.slow
def test_a_compiled_network_computes_the_same() -> None:
    network = build_network(plan(channels=(4, 6), strides=(2,), residual_units=0), slice_axis=2)
    image_BCXYZ = torch.randn(2, 1, 8, 8, 8)
    wanted = network(image_BCXYZ)
    found = torch.compile(network, backend="eager")(image_BCXYZ)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    found.sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("units", [0, 1, 2])
def test_the_network_is_monais_unet_with_its_gradients(units: int) -> None:
    ours = build_network(plan(residual_units=units), slice_axis=2)
    theirs = UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=3,
        channels=(4, 6, 8),
        strides=(1, 2),
        num_res_units=units,
        act="LEAKYRELU",
        norm=("INSTANCE", {"affine": True}),
    )
    theirs.load_state_dict({key.removeprefix("network."): value for key, value in ours.state_dict().items()})
    image = torch.randn(2, 1, 8, 12, 8)
    mine, monai = ours(image), theirs(image)
    torch.testing.assert_close(mine, monai, rtol=1e-4, atol=1e-5)
    mine.square().mean().backward()
    monai.square().mean().backward()
    for weight, same in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, same.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4, 5, 2)])
def test_the_norms_gradient_agrees_with_finite_differences(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight = torch.rand(3, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: _ChannelsLastNorm.apply(*given, 1e-5), (x, weight, bias))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_2d_network_sees_each_slice_alone(axis: int) -> None:
    network = build_network(plan(spatial_dims=2), slice_axis=axis)
    image = torch.randn(1, 1, 8, 8, 8)
    changed = image.clone()
    changed.select(2 + axis, 3).add_(torch.randn(1, 1, 8, 8))
    before, after = network(image), network(changed)
    assert before.shape == (1, 3, 8, 8, 8)
    same = [torch.allclose(before.select(2 + axis, k), after.select(2 + axis, k), atol=1e-5) for k in range(8)]
    assert same == [k != 3 for k in range(8)]


def test_a_bottom_of_one_voxel_is_no_error() -> None:
    network = build_network(plan(channels=(4, 4, 4, 4), strides=(2, 2, 2)), slice_axis=2)
    assert torch.isfinite(network(torch.randn(1, 1, 8, 8, 8))).all()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("units", [0, 1, 2])
def test_a_new_network_expects_background(dims: int, units: int) -> None:
    torch.manual_seed(0)
    network = build_network(plan(spatial_dims=dims, residual_units=units), slice_axis=2)
    shares = network(torch.randn(1, 1, 16, 16, 16)).softmax(1).mean((0, 2, 3, 4))
    assert shares[0] > 0.8


@pytest.mark.parametrize("shape", [(2, 8, 9, 10, 11), (3, 8, 7, 6), (1, 8, 1, 1, 1)])
def test_the_norm_that_activates_in_place_is_torchs_bit_for_bit(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm3d(8, affine=True)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, gradient = torch.randn(shape), torch.randn(shape)

    def of_torch(x: Tensor, norm: nn.InstanceNorm3d) -> Tensor:
        normal = torch.instance_norm(x, norm.weight, norm.bias, None, None, True, 0.0, norm.eps, True)
        return nn.functional.leaky_relu(normal, 0.01)

    found = []
    for compute in (of_torch, _normed_and_activated):
        norm.zero_grad()
        own = x.clone().requires_grad_()
        out = compute(own, norm)
        out.backward(gradient)
        found.append([out.detach(), own.grad, *(weight.grad for weight in norm.parameters())])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


@pytest.mark.parametrize("planes", [8, 16, 12])
def test_in_bfloat16_every_weight_has_the_gradient_that_it_has_in_float32(planes: int) -> None:
    """Levels of 8, 4, 2 planes and of 16, 8, 4: of two planes oneDNN's own is partly garbage."""
    plan = NetworkPlan(
        spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2), residual_units=1
    )
    torch.manual_seed(0)
    network = build_network(plan, slice_axis=0)
    image, target = torch.randn(2, 1, planes, 16, 16), torch.randn(2, 2, planes, 16, 16)
    gradients = []
    for is_mixed in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            logits = network(image)
        (logits.float() * target).sum().backward()
        gradients.append({name: weight.grad for name, weight in network.named_parameters() if weight.ndim == 5})
    single, mixed = gradients
    for name, exact in single.items():
        assert (mixed[name] - exact).norm() < 0.4 * exact.norm(), name
