from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import SlidingWindowInferer

from automonai.domain.configuration import Configuration, Convolution, Normalisation
from automonai.domain.fingerprint import ChannelFacts
from automonai.domain.plan import NetworkPlan, Plan
from automonai.errors import StopRequestedError
from automonai.learning import inference
from automonai.learning.inference import (
    BACKGROUND_LOGIT,
    LogitSlab,
    WindowSettings,
    even_slabs,
    logit_slabs,
    prediction_memory_bytes,
    scratch_array,
    whole_logits,
)

CPU = torch.device("cpu")
FACTS = ChannelFacts(minimum=0, maximum=900, mean=300, std=150, percentile_00_5=1, percentile_99_5=800)


def plan(
    patch: tuple[int, int, int] = (8, 6, 4),
    *,
    normalisation: Normalisation = Normalisation.ZSCORE,
    convolution: Convolution = Convolution.THREE_D,
    slice_axis: int = 2,
) -> Plan:
    configuration = Configuration(normalisation=normalisation, convolution=convolution)
    return Plan(
        configuration=configuration,
        channels=("a", "b"),
        labels={0: "background", 1: "x", 2: "y"},
        spacing_mm=None,
        patch_voxels=patch,
        batch_size=2,
        network=NetworkPlan(
            spatial_dims=2 if convolution is Convolution.TWO_D else 3,
            in_channels=2,
            out_channels=3,
            channels=(4, 8),
            strides=(1,),
            residual_units=1,
        ),
        slice_axis=slice_axis,
        flip_axes=(),
        parameters=1,
    )


def network(seed: int = 0, kernel: tuple[int, int, int] = (3, 3, 3)) -> torch.nn.Module:
    torch.manual_seed(seed)
    padding = tuple(side // 2 for side in kernel)
    return torch.nn.Sequential(torch.nn.Conv3d(2, 3, kernel, padding=padding), torch.nn.Tanh()).eval()


def image(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, (2, *shape)).astype(np.int16)


def normalised(raw: np.ndarray) -> np.ndarray:
    return ((raw.astype(np.float32) - FACTS.mean) / FACTS.std).astype(np.float32)


def sliding_window_logits(
    model: torch.nn.Module,
    raw: np.ndarray,
    *,
    plan: Plan,
    statistics: list[ChannelFacts],
    device: torch.device,
    **options: object,
) -> np.ndarray:
    settings = WindowSettings(device, **options)  # type: ignore[arg-type]
    slabs = logit_slabs([model], raw, plan=plan, statistics=statistics, settings=settings)
    return whole_logits(slabs, (plan.network.out_channels, *raw.shape[1:]))


@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 19), st.integers(1, 15), st.integers(1, 11)),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    batch_windows=st.sampled_from([1, 3]),
)
def test_logits_equal_those_of_monais_inferer(shape: tuple[int, int, int], overlap: float, batch_windows: int) -> None:
    raw, model = image(shape), network()
    inferer = SlidingWindowInferer(
        roi_size=(8, 6, 4), sw_batch_size=2, overlap=overlap, mode="gaussian", sigma_scale=0.125
    )
    with torch.inference_mode():
        expected = inferer(torch.from_numpy(normalised(raw))[None], model)[0].numpy()
    found = sliding_window_logits(
        model,
        raw,
        plan=plan(),
        statistics=[FACTS, FACTS],
        device=CPU,
        overlap=overlap,
        batch_windows=batch_windows,
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_flips_are_averaged_over_all_combinations_of_the_axes() -> None:
    raw, model = image((8, 6, 4)), network()
    whole = torch.from_numpy(normalised(raw))[None]
    with torch.inference_mode():
        combinations = [(), (2,), (4,), (2, 4)]
        expected = sum(model(whole.flip(axes)).flip(axes) for axes in combinations) / 4
    found = sliding_window_logits(model, raw, plan=plan(), statistics=[FACTS, FACTS], device=CPU, flip_axes=(0, 2))
    np.testing.assert_allclose(found, expected[0].numpy(), atol=2e-5)


def test_several_networks_share_the_windows_and_differ_in_nothing_from_one_alone() -> None:
    raw, models = image((17, 9, 7)), [network(0), network(1)]
    shared = np.concatenate(
        [
            slab.logits
            for slab in logit_slabs(models, raw, plan=plan(), statistics=[FACTS, FACTS], settings=WindowSettings(CPU))
        ],
        axis=2,
    )
    for model, logits in zip(models, shared, strict=True):
        alone = sliding_window_logits(model, raw, plan=plan(), statistics=[FACTS, FACTS], device=CPU)
        np.testing.assert_array_equal(logits, alone)


@settings(max_examples=25)
@given(length=st.integers(1, 40))
def test_slabs_follow_each_other_without_gap_or_repeat(length: int) -> None:
    slabs = list(
        logit_slabs(
            [network()],
            image((length, 6, 4)),
            plan=plan(),
            statistics=[FACTS, FACTS],
            settings=WindowSettings(CPU),
        )
    )
    assert [slab.start for slab in slabs] == [0, *(slab.stop for slab in slabs[:-1])]
    assert slabs[-1].stop == length
    assert all(slab.logits.shape[2] == slab.stop - slab.start for slab in slabs)


@settings(max_examples=50)
@given(thickness=st.lists(st.integers(1, 9), min_size=1, max_size=8), planes=st.integers(1, 12))
def test_even_slabs_are_the_same_planes_in_slabs_of_one_thickness(thickness: list[int], planes: int) -> None:
    whole = np.random.default_rng(0).normal(size=(2, 3, sum(thickness), 2, 2)).astype(np.float32)
    stops = np.cumsum(thickness).tolist()
    uneven = [
        LogitSlab(stop - side, stop, whole[:, :, stop - side : stop])
        for side, stop in zip(thickness, stops, strict=True)
    ]
    even = list(even_slabs(uneven, planes))
    assert [slab.start for slab in even] == list(range(0, stops[-1], planes))
    assert [slab.stop - slab.start for slab in even[:-1]] == [planes] * (len(even) - 1)
    assert even[-1].stop == stops[-1]
    np.testing.assert_array_equal(np.concatenate([slab.logits for slab in even], axis=2), whole)


def test_windows_of_background_alone_are_not_predicted_and_are_background() -> None:
    raw = np.full((2, 40, 6, 4), -7, np.int16)
    raw[:, :10] = image((10, 6, 4))
    seen: list[int] = []
    model = network()
    model.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    found = sliding_window_logits(
        model, raw, plan=plan(), statistics=[FACTS, FACTS], device=CPU, background=(-7.0, -7.0)
    )
    everything = sliding_window_logits(model, raw, plan=plan(), statistics=[FACTS, FACTS], device=CPU)
    assert sum(seen[:3]) == 3  # windows that start at 0, 4 and 8 hold something of the first ten planes
    np.testing.assert_allclose(found[:, :12], everything[:, :12], atol=2e-5)
    assert (found[0, 16:] == BACKGROUND_LOGIT).all()
    assert (found[1:, 16:] == 0).all()


def test_slices_of_a_two_dimensional_network_are_predicted_once_and_as_by_monais_inferer() -> None:
    raw, model = image((12, 9, 7)), network(kernel=(3, 3, 1))
    inferer = SlidingWindowInferer((8, 6, 1), overlap=(0.5, 0.5, 0), mode="gaussian")
    with torch.inference_mode():
        expected = inferer(torch.from_numpy(normalised(raw))[None], model)[0].numpy()
    seen: list[int] = []
    model.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    found = sliding_window_logits(
        model,
        raw,
        plan=plan(convolution=Convolution.TWO_D),
        statistics=[FACTS, FACTS],
        device=CPU,
        batch_windows=1,
    )
    assert len(seen) == 2 * 2 * 2
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_memory_mapped_file_is_predicted_as_the_array_in_memory(tmp_path) -> None:  # type: ignore[no-untyped-def]
    raw = image((12, 9, 8))
    np.save(tmp_path / "image.npy", raw)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    arrays = [
        sliding_window_logits(network(), array, plan=plan(), statistics=[FACTS, FACTS], device=CPU)
        for array in (raw, mapped)
    ]
    np.testing.assert_array_equal(*arrays)


def test_bfloat16_convolutions_give_float32_logits_near_the_exact_ones() -> None:
    raw, model = image((12, 9, 8)), network()
    exact, rounded = (
        sliding_window_logits(model, raw, plan=plan(), statistics=[FACTS, FACTS], device=CPU, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, exact, atol=0.05)


class OnSmallGpu(torch.nn.Module):
    """A network whose GPU has room for so many windows at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.network = network()
        self.seen: list[int] = []

    def forward(self, image_BCXYZ: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(image_BCXYZ))
        if len(image_BCXYZ) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits_BKXYZ: torch.Tensor = self.network(image_BCXYZ)
        return logits_BKXYZ


def test_a_gpu_that_is_too_small_for_a_batch_gets_half_of_it_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    raw, small = image((8, 15, 11)), OnSmallGpu(2)
    found, expected = (
        sliding_window_logits(
            model, raw, plan=plan(), statistics=[FACTS, FACTS], device=CPU, batch_windows=batch_windows
        )
        for model, batch_windows in ((small, 8), (network(), 2))
    )
    np.testing.assert_array_equal(found, expected)
    assert small.seen == [8, 4] + [2] * 10  # 4 times 5 windows
    assert emptied == [True, True]


def test_a_gpu_that_is_too_small_for_one_window_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        sliding_window_logits(
            OnSmallGpu(0), image((8, 15, 11)), plan=plan(), statistics=[FACTS, FACTS], device=CPU, batch_windows=8
        )


def test_a_stop_is_asked_for_before_every_pass_through_a_network_and_ends_the_prediction() -> None:
    passes: list[int] = []
    model = network()
    model.register_forward_hook(lambda _module, inputs, _output: passes.append(len(inputs[0])))

    def stop_after_three() -> None:
        if len(passes) == 3:
            raise StopRequestedError("asked to leave")

    settings = WindowSettings(CPU, flip_axes=(0,), batch_windows=1, check_stop=stop_after_three)
    with pytest.raises(StopRequestedError):
        list(logit_slabs([model], image((8, 6, 8)), plan=plan(), statistics=[FACTS, FACTS], settings=settings))
    assert len(passes) == 3  # of three windows, each in two directions


@pytest.mark.parametrize(("size_bytes", "device"), [(35, "cuda"), (36, "cpu")])
def test_sums_above_a_quarter_of_a_gpus_free_memory_are_held_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch, size_bytes: int, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 60)  # of which 40 wait for a tensor
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 20)
    assert inference.device_with_room(size_bytes, torch.device("cuda"), what="x").type == device


def test_prediction_leaves_gradients_switched_on_between_the_slabs() -> None:
    slabs = logit_slabs(
        [network()],
        image((20, 6, 4)),
        plan=plan(),
        statistics=[FACTS, FACTS],
        settings=WindowSettings(CPU),
    )
    next(slabs)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_memory_grows_with_the_cross_section_and_not_with_the_length() -> None:
    settings = WindowSettings(CPU, batch_windows=2)
    small = prediction_memory_bytes((100, 50, 50), plan(), settings)
    assert prediction_memory_bytes((1000, 50, 50), plan(), settings) == small
    assert prediction_memory_bytes((100, 100, 50), plan(), settings) > small
    # 3 classes and the weights over 8 planes of 50 x 50 float32, three times; the rest are activations of two windows.
    assert small - 4 * 8 * 50 * 50 * 4 * 3 == 2 * 6 * 4 * (2 + 3 + 4 + 8) * 8 * 6 * 4 + 64 * 2**20


def test_no_more_windows_count_than_there_are() -> None:
    one, many = (WindowSettings(CPU, batch_windows=count) for count in (1, 1000))
    assert prediction_memory_bytes((100, 6, 4), plan(), one) == prediction_memory_bytes((100, 6, 4), plan(), many)


@pytest.mark.parametrize("networks", [1, 4])
def test_the_sums_of_all_networks_share_their_weights(networks: int) -> None:
    shape, settings = (30, 9, 11), WindowSettings(CPU)
    sums = inference._Sums(networks, 3, inference._Grid.over(shape, plan(), 0.5), CPU)
    held = sum(tensor.nbytes for tensor in (sums._logits, sums._weights))
    of_weights = 8 * 9 * 11 * 4 * 3
    others = prediction_memory_bytes(shape, plan(), settings, networks=0) - of_weights
    assert held * 3 == prediction_memory_bytes(shape, plan(), settings, networks=networks) - others


@pytest.mark.parametrize(("free_gpu_bytes", "at_once"), [(2**40, 3), (0, 2)])
def test_sums_that_a_gpu_leaves_to_the_cpu_take_the_machines_memory(
    monkeypatch: pytest.MonkeyPatch, free_gpu_bytes: int, at_once: int
) -> None:
    shape, settings = (20, 6, 4), WindowSettings(torch.device("cuda"))
    sums_of_two = inference._Grid.over(shape, plan(), 0.5).sum_bytes(2, 3) * 3
    monkeypatch.setattr(inference, "free_gpu_bytes", lambda _: free_gpu_bytes)
    monkeypatch.setattr(inference, "usable_memory_bytes", lambda: 1000 + sums_of_two)
    monkeypatch.setattr(inference, "resident_bytes", lambda: 1000)
    assert inference.networks_at_once(shape, plan(), settings, networks=3) == at_once


def test_what_the_machine_has_no_memory_for_is_refused_before_it_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, passes, refused = image((20, 6, 4)), list[bool](), list[str]()
    needed = prediction_memory_bytes(raw.shape[1:], plan(), WindowSettings(CPU), networks=2)
    monkeypatch.setattr(inference, "resident_bytes", lambda: 1000)
    model = network()
    model.register_forward_hook(lambda *_: passes.append(True))
    for there in (needed + 1000, needed + 999):
        monkeypatch.setattr(inference, "usable_memory_bytes", lambda there=there: there)
        slabs = logit_slabs(
            [model, model],
            raw,
            plan=plan(),
            statistics=[FACTS, FACTS],
            settings=WindowSettings(CPU),
        )
        try:
            next(slabs)
        except MemoryError as error:
            refused.append(str(error))
    assert len(passes) == 2
    assert refused == [
        f"predicting 20 x 6 x 4 voxels takes up to {needed} bytes ({needed / 2**30:.2f} GiB) beside the 0.00 GiB of"
        f" this process, and the machine has {there / 2**30:.2f} GiB"
    ]


def test_a_file_that_the_disk_has_no_room_for_is_an_error_that_names_its_folder_and_size(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(inference, "IN_MEMORY_BYTES", 100)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match=r"No space left on device: .* 120 bytes .*TMPDIR") as caught:
        scratch_array((5, 6), np.float32)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))


def test_large_arrays_are_backed_by_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "IN_MEMORY_BYTES", 100)
    array = scratch_array((5, 6), np.float32)
    assert isinstance(array, np.memmap)
    assert array.shape == (5, 6)
    assert not array.any()
    array[:] = 1
    assert not isinstance(scratch_array((5, 5), np.float32), np.memmap)
