from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from automonai.domain.configuration import Configuration, Crop, Normalisation
from automonai.domain.fingerprint import ChannelFacts, IntTriple
from automonai.domain.plan import NetworkPlan, Plan
from automonai.imaging.patches import PatchReader, patch_start
from automonai.imaging.preprocessing import Placement, PreparedCase

FACTS = ChannelFacts(minimum=0, maximum=100, mean=10, std=2, percentile_00_5=0, percentile_99_5=100)


def case(shape: IntTriple, *, name: str = "a", value: int = 14) -> PreparedCase:
    label = np.zeros(shape, np.uint8)
    centre = tuple(side // 2 for side in shape)
    label[centre] = 1
    return PreparedCase(
        id=name,
        image=np.full((1, *shape), value, np.int16),
        label=label,
        statistics=(FACTS,),
        foreground={1: np.array([centre], np.int32)},
        spacing_mm=(1.0, 1.0, 2.0),
        placement=Placement(shape_voxels=shape, box_start=(0, 0, 0), box_shape=shape, prepared_shape=shape),
        background=None,
    )


def plan(patch: IntTriple, *, batch: int = 2, oversampling: float = 0.0) -> Plan:
    return Plan(
        configuration=Configuration(
            normalisation=Normalisation.ZSCORE, foreground_oversampling=oversampling, crop=Crop.NONE
        ),
        channels=("MR",),
        labels={0: "background", 1: "organ"},
        spacing_mm=None,
        patch_voxels=patch,
        batch_size=batch,
        network=NetworkPlan(
            spatial_dims=3, in_channels=1, out_channels=2, channels=(2, 2), strides=(2,), residual_units=0
        ),
        slice_axis=2,
        flip_axes=(),
        parameters=0,
    )


def test_an_epoch_reads_every_case_once_in_another_order_each_time() -> None:
    cases = [case((8, 8, 8), name=str(value), value=10 + 2 * value) for value in range(7)]
    reader = PatchReader(cases, plan((8, 8, 8), batch=3), seed=1)
    assert reader.steps_per_epoch == 3
    orders = []
    for epoch in range(2):
        batches = [reader.read(epoch * 3 + place).image_BCXYZ for place in range(3)]
        assert [len(images) for images in batches] == [3, 3, 1]
        orders.append([round(float(image.mean())) for images in batches for image in images])
    assert [sorted(order) for order in orders] == [list(range(7))] * 2
    assert orders[0] != orders[1]


def test_a_step_gives_the_same_batch_however_it_is_reached() -> None:
    cases = [case((20, 18, 16), name=str(value), value=value) for value in range(5)]
    one, two = (PatchReader(cases, plan((8, 8, 8)), seed=3) for _ in range(2))
    for step in range(6):
        one.read(step)
    assert np.array_equal(one.read(4).image_BCXYZ, two.read(4).image_BCXYZ)
    assert np.array_equal(one.read(4).label_BXYZ, two.read(4).label_BXYZ)


def test_a_small_volume_is_padded_with_zero_after_normalising() -> None:
    reader = PatchReader([case((4, 4, 4))], plan((8, 8, 8)), seed=0)
    batch = reader.read(0)
    assert sorted(batch.image_BCXYZ.unique().tolist()) == [0.0, 2.0]
    assert int((batch.image_BCXYZ == 2).sum()) == 64
    assert int(batch.label_BXYZ.sum()) == 1
    assert batch.spacing_B3.tolist() == [[1.0, 1.0, 2.0]]


def test_the_margin_shows_real_voxels_around_the_patch() -> None:
    reader = PatchReader([case((16, 16, 16))], plan((8, 8, 8)), seed=0, margin_voxels=(2, 2, 0))
    image = reader.read(0).image_BCXYZ
    assert image.shape == (1, 1, 12, 12, 8)
    assert float(image[0, 0, 4:8, 4:8].min()) == 2.0


def test_an_oversampled_patch_is_centred_on_the_foreground() -> None:
    big = case((64, 64, 64))
    reader = PatchReader([big], plan((8, 8, 8), oversampling=1.0), seed=0)
    assert all(int(reader.read(step).label_BXYZ[0, 4, 4, 4]) == 1 for step in range(5))


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    patch=st.tuples(*[st.integers(1, 24)] * 3),
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.0, 1.0]),
)
def test_a_patch_lies_inside_a_larger_volume_and_around_a_smaller_one(
    shape: IntTriple, patch: IntTriple, seed: int, share: float
) -> None:
    start = patch_start(case(shape), patch, np.random.default_rng(seed), share)
    for at, side, length in zip(start, patch, shape, strict=True):
        assert min(0, length - side) <= at <= max(0, length - side)
