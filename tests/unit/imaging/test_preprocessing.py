from __future__ import annotations

import dataclasses
import multiprocessing
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automonai.domain.configuration import Crop, Normalisation
from automonai.domain.fingerprint import ChannelFacts, Triple
from automonai.errors import DatasetError
from automonai.imaging import preprocessing
from automonai.imaging.layouts import find_dataset
from automonai.imaging.measuring import measure
from automonai.imaging.patches import patch_start
from automonai.imaging.preprocessing import (
    FOREGROUND_SAMPLE,
    Placement,
    normalise,
    prepare_case,
    prepare_image,
    restore_probabilities,
)
from automonai.imaging.reading import Geometry, Volume, read_image, read_label

GRID = Geometry(np.eye(4), (1, 1, 1), ".nii.gz")


def volume(voxels: np.ndarray, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Volume:
    return Volume(voxels, spacing_mm, GRID)


def test_a_case_is_read_once_and_then_comes_from_the_cache(
    small_dataset: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = find_dataset(small_dataset(channels=2).root)
    arguments = {"spacing_mm": None, "crop": Crop.NONZERO, "cache_folder": tmp_path / "cache"}
    first = prepare_case(dataset, dataset.cases[0], **arguments)
    monkeypatch.setattr(preprocessing, "read_image", None)
    again = prepare_case(dataset, dataset.cases[0], **arguments)
    expected = read_image(dataset.image_paths(dataset.cases[0]))
    assert isinstance(again.image, np.memmap)
    assert again.image.dtype == np.float32
    assert np.array_equal(again.image, expected.voxels)
    assert np.array_equal(again.label, first.label)
    assert again.statistics == first.statistics == measure(expected.voxels).channels
    assert again.placement == first.placement


def test_a_cached_cases_foreground_is_as_it_was_drawn_and_stays_in_its_file(
    small_dataset: Callable, tmp_path: Path
) -> None:
    dataset = find_dataset(small_dataset().root)
    prepared = prepare_case(dataset, dataset.cases[0], spacing_mm=None, crop=Crop.NONE, cache_folder=tmp_path)
    drawn = preprocessing._foreground(np.asarray(prepared.label))
    assert list(prepared.foreground) == list(drawn) == [1, 2]
    read = [dict(prepared.foreground.items()), {index: prepared.foreground[index] for index in prepared.foreground}]
    for found in read:
        assert all(np.array_equal(found[index], places) for index, places in drawn.items())
        assert all(places.dtype == np.int32 for places in found.values())
    del found, read
    assert "foreground.npy" not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_a_cached_case_without_foreground_has_no_classes(tmp_path: Path) -> None:
    preprocessing._save(tmp_path / "foreground.npy", np.empty((0, 4), np.int32))
    found = preprocessing._StoredForeground.of(tmp_path / "foreground.npy")
    assert (len(found), dict(found), list(found.items())) == (0, {}, [])


def test_patches_of_a_cached_case_lie_where_those_of_its_coordinates_in_memory_do(
    small_dataset: Callable, tmp_path: Path
) -> None:
    dataset = find_dataset(small_dataset().root)
    cached = prepare_case(dataset, dataset.cases[0], spacing_mm=None, crop=Crop.NONE, cache_folder=tmp_path)
    in_memory = dataclasses.replace(cached, foreground={index: np.array(cached.foreground[index]) for index in (1, 2)})
    starts = [
        [patch_start(case, (4, 4, 4), np.random.default_rng(seed), 0.5) for seed in range(40)]
        for case in (cached, in_memory)
    ]
    assert starts[0] == starts[1]


def test_other_choices_or_changed_files_make_another_cache_entry(small_dataset: Callable, tmp_path: Path) -> None:
    data = small_dataset()
    dataset = find_dataset(data.root)

    def entries(**changes: object) -> int:
        arguments = {"spacing_mm": None, "crop": Crop.NONE, "cache_folder": tmp_path} | changes
        prepare_case(dataset, dataset.cases[0], **arguments)  # type: ignore[arg-type]
        return len(list(tmp_path.glob("*/case.json")))

    assert (entries(), entries()) == (1, 1)
    assert entries(crop=Crop.NONZERO) == 2
    assert entries(spacing_mm=(1.0, 1.0, 1.0)) == 3
    data.write_image(0, np.random.default_rng(5).normal(size=(9, 8, 7)).astype(np.float32))
    assert entries() == 4


def test_integers_stay_unless_resampled(small_dataset: Callable, tmp_path: Path) -> None:
    data = small_dataset()
    data.write_image(0, np.random.default_rng(5).integers(0, 99, (9, 8, 7)).astype(np.int16))
    dataset = find_dataset(data.root)
    for spacing, dtype, shape in [(None, np.int16, (9, 8, 7)), ((2.0, 1.5, 1.0), np.float32, (4, 8, 14))]:
        prepared = prepare_case(dataset, dataset.cases[0], spacing_mm=spacing, crop=Crop.NONZERO, cache_folder=tmp_path)
        assert prepared.image.dtype == dtype
        assert prepared.image.shape[1:] == prepared.label.shape == shape


def test_the_original_label_is_kept_only_beside_one_on_another_grid(small_dataset: Callable, tmp_path: Path) -> None:
    dataset = find_dataset(small_dataset().root)

    def original(spacing_mm: Triple | None) -> np.ndarray | None:
        prepared = prepare_case(
            dataset, dataset.cases[0], spacing_mm=spacing_mm, crop=Crop.NONE, cache_folder=tmp_path / "cache"
        )
        return None if prepared.original_label is None else prepared.original_label()

    expected = read_label(dataset.label_path(dataset.cases[0]), [0, 1, 3])
    kept = original((2.0, 1.5, 1.0))
    assert isinstance(kept, np.memmap)
    assert np.array_equal(kept, expected)
    assert original(None) is None
    assert original((1.0, 1.5, 2.0)) is None


def test_a_case_is_cached_with_its_label_along_the_images_axes(small_dataset: Callable, tmp_path: Path) -> None:
    data = small_dataset()
    for write, apart in ((data.write_image, 1e-6), (data.write_label, -1e-6)):  # from x and y at 45 degrees
        cos, sin = np.cos(np.pi / 4 + apart), np.sin(np.pi / 4 + apart)
        affine = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        write(0, np.random.default_rng(0).choice([0, 1, 3], (9, 8, 7)).astype(np.int16), affine)
    dataset = find_dataset(data.root)
    prepared = prepare_case(dataset, dataset.cases[0], spacing_mm=None, crop=Crop.NONE, cache_folder=tmp_path / "cache")
    assert np.array_equal(np.array([0, 1, 3])[prepared.label], prepared.image[0])


def test_a_cached_case_of_an_earlier_form_is_not_taken(
    small_dataset: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = find_dataset(small_dataset().root)
    arguments = {"spacing_mm": (2.0, 2.0, 2.0), "crop": Crop.NONE, "cache_folder": tmp_path / "cache"}
    for entries, form in enumerate((1, preprocessing._FORMAT), start=1):
        with monkeypatch.context() as patched:
            patched.setattr(preprocessing, "_FORMAT", form)
            prepare_case(dataset, dataset.cases[0], **arguments)
        assert len(list((tmp_path / "cache").glob("*/case.json"))) == entries


def test_a_write_that_fails_leaves_nothing(
    small_dataset: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = find_dataset(small_dataset().root)
    arguments = {"spacing_mm": None, "crop": Crop.NONZERO, "cache_folder": tmp_path / "cache"}

    def die(path: Path, array: np.ndarray) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(preprocessing, "_save", die)
        pytest.raises(KeyboardInterrupt, prepare_case, dataset, dataset.cases[0], **arguments)
    assert not list((tmp_path / "cache").glob("*/*.npy"))
    assert prepare_case(dataset, dataset.cases[0], **arguments).image.shape == (1, 9, 8, 7)


def test_what_a_killed_process_left_behind_does_no_harm(
    small_dataset: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = find_dataset(small_dataset().root)
    monkeypatch.setattr(preprocessing, "_cache_key", lambda *_: "key")
    left = tmp_path / "cache" / ".writing-key"
    left.mkdir(parents=True)
    (left / "image.npy").write_bytes(b"half")
    prepared = prepare_case(
        dataset, dataset.cases[0], spacing_mm=None, crop=Crop.NONZERO, cache_folder=tmp_path / "cache"
    )
    assert prepared.image.shape == (1, 9, 8, 7)
    assert not list((tmp_path / "cache").glob(".writing-*"))


def test_a_case_that_another_process_made_again_right_after_its_eviction_is_used(
    small_dataset: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = find_dataset(small_dataset().root)
    noted, note_use = [], preprocessing.note_use

    def evicted_at_first(entry: Path) -> None:
        noted.append(entry)
        if len(noted) == 1:
            raise FileNotFoundError(entry)
        note_use(entry)

    monkeypatch.setattr(preprocessing, "note_use", evicted_at_first)
    prepared = prepare_case(dataset, dataset.cases[0], spacing_mm=None, crop=Crop.NONE, cache_folder=tmp_path)
    assert (prepared.id, len(noted)) == (dataset.cases[0].id, 2)


def _count_and_prepare(root: str, cache: Path, counter: Path) -> None:
    original = preprocessing._prepare

    def counted(*positional: object, **named: object) -> object:
        with counter.open("a") as stream:
            stream.write("x")
        return original(*positional, **named)  # type: ignore[arg-type]

    preprocessing._prepare = counted  # type: ignore[assignment]
    dataset = find_dataset(root)
    for case in dataset.cases:
        prepare_case(dataset, case, spacing_mm=None, crop=Crop.NONE, cache_folder=cache)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_that_share_a_cache_never_do_the_same_work(small_dataset: Callable, tmp_path: Path) -> None:
    root, counter = str(small_dataset().root), tmp_path / "count"
    context = multiprocessing.get_context("fork")
    arguments = (root, tmp_path / "cache", counter)
    workers = [context.Process(target=_count_and_prepare, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert counter.read_text() == "xxx"


def test_large_structures_are_sampled_and_small_ones_are_complete() -> None:
    label = np.zeros((30, 30, 30), np.uint8)
    label[:20] = 1
    label[25, 25, 20:23] = 4
    found = preprocessing._foreground(label)
    assert {index: len(places) for index, places in found.items()} == {1: FOREGROUND_SAMPLE, 4: 3}
    assert len(np.unique(found[1], axis=0)) == FOREGROUND_SAMPLE
    assert np.array_equal(found[1], preprocessing._foreground(label)[1])


def test_a_large_label_is_sampled_with_little_memory_as_one_that_is_looked_at_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preprocessing, "_PIECE_VOXELS", 1 << 14)
    label = np.random.default_rng(0).choice(4, (96, 80, 64), p=[0.1, 0.8, 0.0999, 0.0001]).astype(np.uint8)
    tracemalloc.start()
    found = preprocessing._foreground(label)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * label.nbytes  # where 64-bit positions of class 1 alone took six times as much
    generator = np.random.default_rng(preprocessing._FOREGROUND_SEED)
    for index in (1, 2, 3):
        positions = np.flatnonzero(label.ravel() == index)
        if len(positions) > FOREGROUND_SAMPLE:
            positions = np.sort(generator.choice(positions, FOREGROUND_SAMPLE, replace=False))
        assert np.array_equal(found[index], np.stack(np.unravel_index(positions, label.shape), axis=1))


def test_an_image_to_predict_is_cropped_to_its_content() -> None:
    voxels = np.full((1, 20, 20, 20), 7, np.int16)
    voxels[0, 4:9, 5:11, 6:13] = np.random.default_rng(0).integers(50, 99, (5, 6, 7))
    prepared = prepare_image("head", volume(voxels), spacing_mm=None, crop=Crop.NONZERO)
    assert prepared.image.shape == (1, 5, 6, 7)
    assert prepared.placement.box_start == (4, 5, 6)
    assert prepared.background == (7.0,)
    assert prepare_image("head", volume(voxels), spacing_mm=None, crop=Crop.NONE).image.shape == voxels.shape


def test_an_image_to_predict_must_be_finite() -> None:
    with pytest.raises(DatasetError, match="head: has voxels that are NaN or infinite"):
        prepare_image("head", volume(np.full((1, 4, 4, 4), np.nan, np.float32)), spacing_mm=None, crop=Crop.NONE)


def test_an_image_that_would_become_too_large_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "MAX_VOXELS", 100)
    with pytest.raises(DatasetError, match="head: resampling"):
        prepare_image("head", volume(np.zeros((1, 4, 4, 4), np.float32)), spacing_mm=(0.5, 1, 1), crop=Crop.NONE)


def facts(values: np.ndarray) -> ChannelFacts:
    return measure(values).channels[0]


@pytest.mark.parametrize("kind", Normalisation)
def test_normalising_a_patch_gives_what_normalising_the_volume_gives(kind: Normalisation) -> None:
    values = np.random.default_rng(0).integers(-500, 900, (1, 8, 8, 8)).astype(np.int16)
    statistics = [facts(values)]
    whole = normalise(values, normalisation=kind, statistics=statistics)
    patch = normalise(values[:, 2:5, 1:4, 3:], normalisation=kind, statistics=statistics)
    assert patch.dtype == np.float32
    assert np.array_equal(patch, whole[:, 2:5, 1:4, 3:])
    assert values.dtype == np.int16


def test_each_normalisation_gives_its_scale() -> None:
    values = np.random.default_rng(0).normal(300, 20, (1, 20, 20, 20)).astype(np.float32)
    values[0, 0, 0, :3] = 5000
    statistics = [facts(values)]
    results = {kind: normalise(values, normalisation=kind, statistics=statistics) for kind in Normalisation}
    assert np.array_equal(results[Normalisation.NONE], values)
    for kind in (Normalisation.ZSCORE, Normalisation.PERCENTILE_ZSCORE):
        assert results[kind].mean() == pytest.approx(0, abs=1e-4)
        assert results[kind].std() == pytest.approx(1, rel=1e-3)
    assert results[Normalisation.PERCENTILE_ZSCORE].max() < 4 < results[Normalisation.ZSCORE].max()
    assert (results[Normalisation.MINMAX].min(), results[Normalisation.MINMAX].max()) == (0, 1)


@pytest.mark.parametrize("kind", Normalisation)
def test_a_constant_channel_stays_finite(kind: Normalisation) -> None:
    values = np.full((1, 4, 4, 4), 1e6, np.float32)
    assert np.isfinite(normalise(values, normalisation=kind, statistics=[facts(values)])).all()


def test_resampling_keeps_a_ramp_and_both_grids_cover_the_same_extent() -> None:
    ramp = np.broadcast_to(np.arange(12, dtype=np.float32)[:, None, None], (12, 6, 6))[None]
    prepared = prepare_image("head", volume(ramp, (1, 1, 2)), spacing_mm=(2, 1, 1), crop=Crop.NONE)
    assert prepared.image.shape == (1, 6, 6, 12)
    assert prepared.image[0, :, 0, 0] == pytest.approx(np.arange(6) * 2 + 0.5)


def test_a_label_is_resampled_to_its_most_likely_class() -> None:
    label = np.zeros((8, 8, 8), np.uint8)
    label[4:] = 2
    resampled = preprocessing._resample_label(label, (16, 8, 4))
    assert np.array_equal(resampled[:, 0, 0], [0] * 8 + [2] * 8)
    assert set(np.unique(preprocessing._resample_label(label, (5, 3, 3)))) == {0, 2}


@pytest.mark.parametrize("factor", [(1, 1, 2), (2, 2, 2), (1, 1, 4)])
def test_no_structure_shrinks_on_a_grid_that_is_coarser_by_an_even_factor(factor: tuple[int, int, int]) -> None:
    grid = np.indices((32, 32, 32))
    label = (((grid - 15.3) ** 2).sum(axis=0) <= 8**2).astype(np.uint8)
    label[10:13, 10:13, 10:12] = 2
    shape = tuple(32 // f for f in factor)
    coarse = preprocessing._resample_label(label, shape)
    ratio = (coarse > 0).sum() * np.prod(factor) / (label > 0).sum()
    assert 0.98 < ratio < 1.3
    assert (coarse == 2).sum() * np.prod(factor) >= (label == 2).sum()


sides = st.tuples(*[st.integers(1, 9)] * 3)


@settings(max_examples=50)
@given(full=sides, prepared=sides, data=st.data(), slab=st.integers(1, 5))
def test_restored_probabilities_are_torchs_interpolation_inside_the_box_and_background_outside(
    full: tuple[int, int, int], prepared: tuple[int, int, int], data: st.DataObject, slab: int
) -> None:
    import torch

    start = tuple(data.draw(st.integers(0, side - 1)) for side in full)
    box = tuple(data.draw(st.integers(1, side - first)) for side, first in zip(full, start, strict=True))
    placement = Placement(shape_voxels=full, box_start=start, box_shape=box, prepared_shape=prepared)  # type: ignore[arg-type]
    probabilities = np.random.default_rng(0).random((3, *prepared)).astype(np.float16)
    pieces = list(restore_probabilities(probabilities, placement, slab))
    whole = np.concatenate([piece for _, piece in pieces], axis=1)
    assert [first for first, _ in pieces] == list(range(0, full[0], slab))
    expected = np.zeros((3, *full), np.float32)
    expected[0] = 1
    inside = (slice(None), *(slice(a, a + n) for a, n in zip(start, box, strict=True)))
    tensor = torch.from_numpy(probabilities.astype(np.float32))[None]
    expected[inside] = torch.nn.functional.interpolate(tensor, box, mode="trilinear")[0].numpy()
    assert whole == pytest.approx(expected, abs=1e-5)


def test_a_label_that_went_there_comes_back() -> None:
    label = np.zeros((12, 10, 8), np.uint8)
    label[3:9, 2:8, 2:6], label[5:7, 4:6, 3:5] = 1, 2
    placement = Placement(
        shape_voxels=(14, 12, 9), box_start=(1, 2, 0), box_shape=(12, 10, 8), prepared_shape=(24, 10, 16)
    )
    resampled = preprocessing._resample_label(label, placement.prepared_shape)
    memberships = np.stack([resampled == index for index in range(3)])
    restored = np.concatenate([piece.argmax(axis=0) for _, piece in restore_probabilities(memberships, placement)])
    assert np.array_equal(restored[1:13, 2:12, :8], label)
    assert restored.sum() == label.sum()
