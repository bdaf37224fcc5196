from __future__ import annotations

import pytest
from studies import make_data, make_spec

from automonai.domain.configuration import Configuration
from automonai.domain.fingerprint import Fingerprint, IntTriple, Triple
from automonai.domain.plan import NetworkPlan, make_plan, parameter_count, training_memory_bytes


def plan(
    *,
    dims: int = 3,
    channels: tuple[int, ...] = (4, 8),
    strides: tuple[int, ...] = (2,),
    units: int = 1,
    classes: int = 3,
    inputs: int = 1,
) -> NetworkPlan:
    return NetworkPlan(
        spatial_dims=dims,
        in_channels=inputs,
        out_channels=classes,
        channels=channels,
        strides=strides,
        residual_units=units,
    )


def test_parameters_of_the_smallest_network_are_counted_by_hand() -> None:
    network = NetworkPlan(
        spatial_dims=2, in_channels=1, out_channels=2, channels=(3, 4), strides=(2,), residual_units=0
    )
    down = 9 * 1 * 3 + 3 + 6
    bottom = 9 * 3 * 4 + 4 + 8
    up = 9 * (3 + 4) * 2 + 2
    assert parameter_count(network) == down + bottom + up


def test_memory_grows_with_patches_and_not_only_with_weights() -> None:
    one = training_memory_bytes(plan(), patch_voxels=(16, 16, 16), batch_size=1)
    two = training_memory_bytes(plan(), patch_voxels=(16, 16, 16), batch_size=2)
    weights = training_memory_bytes(plan(), patch_voxels=(0, 0, 0), batch_size=1)
    assert two - one == pytest.approx(one - weights, abs=2)
    assert weights == 24 * parameter_count(plan()) + 80 * 2**20


def test_devices_share_the_patches_and_the_first_has_the_loss_of_all() -> None:
    def planned(batch_size: int, devices: int) -> int:
        return training_memory_bytes(plan(), patch_voxels=(16, 16, 16), batch_size=batch_size, devices=devices)

    assert planned(2, 1) < planned(4, 2) < planned(4, 1)
    assert planned(4, 3) == planned(4, 2)
    assert planned(1, 8) == planned(1, 1)


def test_float32_activations_take_twice_the_memory_of_bfloat16() -> None:
    def kept(size: int) -> int:
        return training_memory_bytes(
            plan(), patch_voxels=(32, 32, 32), batch_size=1, bytes_per_activation=size
        ) - training_memory_bytes(plan(), patch_voxels=(32, 32, 32), batch_size=1, bytes_per_activation=0)

    assert kept(4) == pytest.approx(2 * kept(2), abs=2)


SMALL, LARGE = (40, 56, 40), (128, 128, 128)
WIDTHS = (32, 64, 128, 256, 512)


@pytest.mark.parametrize(
    ("network", "patch", "batch", "size", "measured_mib"),
    [
        (plan(channels=(16, 32, 64, 128), strides=(1, 2, 2)), SMALL, 4, 2, 303),
        (plan(channels=(16, 32, 64, 128), strides=(1, 2, 2)), SMALL, 4, 4, 500),
        (plan(channels=(16, 32, 64, 128), strides=(1, 2, 2), units=0), SMALL, 4, 2, 179),
        (plan(channels=(16, 32, 64, 128), strides=(1, 2, 2), units=3), SMALL, 4, 2, 439),
        (plan(dims=2, channels=(16, 32, 64, 128), strides=(1, 2, 2), units=2), SMALL, 4, 2, 440),
        (plan(channels=(32, 64, 128), strides=(2, 2), classes=2), (64, 64, 64), 2, 2, 150),
        (plan(channels=WIDTHS, strides=(2, 2, 2, 2), units=2), (32, 32, 32), 2, 2, 509),
    ],
)
def test_memory_is_near_the_peaks_measured_on_a_cpu(
    network: NetworkPlan, patch: tuple[int, int, int], batch: int, size: int, measured_mib: int
) -> None:
    planned = training_memory_bytes(network, patch_voxels=patch, batch_size=batch, bytes_per_activation=size)
    assert 0.85 < planned / 2**20 / measured_mib < 1.45


@pytest.mark.parametrize(
    ("network", "patch", "batch", "bfloat16_mib", "float32_mib"),
    [
        (plan(channels=(16, 32, 64, 128), strides=(1, 2, 2), units=0), SMALL, 4, 247, 444),
        (plan(channels=(16, 32, 64, 128), strides=(1, 2, 2), units=1), SMALL, 4, 298, 537),
        (plan(channels=(16, 32, 64, 128), strides=(1, 2, 2), units=2), SMALL, 4, 385, 675),
        (plan(channels=(16, 32, 64, 128), strides=(1, 2, 2), units=3), SMALL, 4, 423, 763),
        (plan(dims=2, channels=(16, 32, 64, 128), strides=(1, 2, 2), units=2), SMALL, 4, 412, 677),
        (plan(channels=(32, 64, 128), strides=(2, 2), units=2, classes=2), (64, 64, 64), 2, 217, 321),
        (plan(channels=WIDTHS, strides=(2, 2, 2, 2), units=2), (32, 32, 32), 2, 553, 450),
        (plan(inputs=2, channels=WIDTHS, strides=(1, 2, 2, 2), units=2), LARGE, 2, 5119, 10402),
        (plan(inputs=4, channels=WIDTHS, strides=(2, 2, 2, 2), units=2, classes=4), LARGE, 2, 1536, 2231),
        (plan(inputs=2, channels=WIDTHS, strides=(1, 2, 2, 2), units=0), LARGE, 1, 2166, 3849),
        (plan(channels=(64, 128, 256, 512), strides=(1, 2, 2), units=2), (96, 96, 96), 2, 4775, 8809),
        (plan(dims=2, inputs=2, channels=WIDTHS, strides=(1, 2, 2, 2), units=2), (192, 192, 16), 2, 2717, 4559),
    ],
)
def test_memory_is_near_the_peaks_measured_on_an_h200(
    network: NetworkPlan, patch: tuple[int, int, int], batch: int, bfloat16_mib: int, float32_mib: int
) -> None:
    for size, measured_mib in ((2, bfloat16_mib), (4, float32_mib)):
        planned = training_memory_bytes(network, patch_voxels=patch, batch_size=batch, bytes_per_activation=size)
        assert 0.8 < planned / 2**20 / measured_mib < 1.4


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "slice_axis"),
    [
        ((48, 40, 1), (2.0, 2.0, 1.0), 2),
        ((1, 48, 40), (1.0, 2.0, 2.0), 0),
        ((48, 40, 20), (1.0, 3.0, 1.0), 1),
        ((48, 40, 20), (1.0, 1.0, 1.0), 2),
        ((48, 1, 1), (2.0, 1.0, 1.0), 0),
    ],
)
def test_slices_are_taken_along_the_axis_of_one_voxel_else_of_the_largest_voxels(
    shape: IntTriple, spacing_mm: Triple, slice_axis: int
) -> None:
    data = make_data(make_spec())
    changes = {"shape_voxels": shape, "box_shape": shape, "spacing_mm": spacing_mm}
    facts = Fingerprint(cases=tuple(case.model_copy(update=changes) for case in data.fingerprint.cases))
    configuration = Configuration.model_validate({"convolution": "2d"})
    made = make_plan(configuration, dataset=data.dataset, fingerprint=facts, training=data.training)
    assert (made.slice_axis, made.patch_voxels[slice_axis] <= shape[slice_axis]) == (slice_axis, True)
