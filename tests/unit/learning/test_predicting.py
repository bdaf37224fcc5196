from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from automonai.domain.configuration import Configuration, Crop, Normalisation
from automonai.domain.dataset import Case, Dataset, Layout, Split
from automonai.domain.fingerprint import CaseFacts, ChannelFacts, Fingerprint, Triple
from automonai.domain.plan import NetworkPlan, Plan
from automonai.domain.request import EnsembleMember, EnsembleResult, StudyData
from automonai.errors import DatasetError
from automonai.imaging.reading import read_image
from automonai.learning import inference, predicting
from automonai.learning.inference import LogitSlab, WindowSettings, logit_slabs, prediction_memory_bytes, scratch_array
from automonai.learning.precision import Precision
from automonai.learning.predicting import (
    LoadedMember,
    keep_largest_components,
    predict_cases,
    predict_label,
    probability_slabs,
)
from automonai.spec import ExecutionSpec, TrainingSpec
from automonai.storage.memory import MemoryStore

FLOAT32 = Precision(torch.device("cpu"), torch.float32)
LABELS = {0: "background", 1: "body", 5: "core"}


class Threshold(torch.nn.Module):
    """Class 1 above a value of the first channel, class 2 above another: a network whose answer is known."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, image_BCXYZ: torch.Tensor) -> torch.Tensor:
        value = image_BCXYZ[:, 0]
        return torch.stack([torch.zeros_like(value), value - self.low, 2 * value - self.low - self.high], 1)


def plan(spacing_mm: Triple | None = None, crop: Crop = Crop.NONE) -> Plan:
    return Plan(
        configuration=Configuration(normalisation=Normalisation.NONE, crop=crop),
        channels=("t1",),
        labels=LABELS,
        spacing_mm=spacing_mm,
        patch_voxels=(8, 8, 8),
        batch_size=1,
        network=NetworkPlan(
            spatial_dims=3, in_channels=1, out_channels=3, channels=(2, 4), strides=(1,), residual_units=1
        ),
        slice_axis=2,
        flip_axes=(),
        parameters=1,
    )


def study_data() -> StudyData:
    facts = ChannelFacts(minimum=0, maximum=9, mean=1, std=1, percentile_00_5=0, percentile_99_5=9)
    case = CaseFacts(
        id="a",
        shape_voxels=(8, 8, 8),
        spacing_mm=(1, 1, 1),
        box_start=(0, 0, 0),
        box_shape=(8, 8, 8),
        channels=(facts,),
        class_voxels={0: 1},
    )
    return StudyData(
        dataset=Dataset(name="d", root=".", layout=Layout.MSD, channels=("t1",), labels=LABELS, cases=()),
        split=Split(seed=0, test=(), folds=(("a",),)),
        fingerprint=Fingerprint(cases=(case,)),
        training=TrainingSpec(),
        execution=ExecutionSpec(precision="float32"),
    )


def ensemble(largest_component: tuple[int, ...] = ()) -> EnsembleResult:
    member = EnsembleMember(run_id="refit-0000-fold-0", trial=0, fold=0, weight=1.0, checkpoint="key")
    return EnsembleResult(members=(member,), largest_component=largest_component)


LPS = np.array([[-1.0, 0, 0, 20], [0, -1, 0, 30], [0, 0, 2, -5], [0, 0, 0, 1]])


def write(path: Path, values: np.ndarray, affine: np.ndarray = LPS) -> Case:
    nib.Nifti1Image(values, affine).to_filename(path)
    return Case(id=path.name.split(".")[0], images=(str(path),))


def ball() -> np.ndarray:
    x, y, z = np.indices((20, 14, 11))
    values = 10 - np.sqrt((x - 9) ** 2 + (y - 6) ** 2 + (z - 5) ** 2)
    return np.clip(values, 0, None).astype(np.float32)


@pytest.mark.parametrize(("dims", "axes"), [(2, (0, 1)), (3, (0, 1, 2))])
def test_a_network_that_sees_each_slice_alone_is_asked_for_no_flip_of_their_order(
    dims: int, axes: tuple[int, ...]
) -> None:
    flipped = plan().model_copy(update={"flip_axes": (0, 1, 2)})
    network = flipped.network.model_copy(update={"spatial_dims": dims})
    assert predicting._seen_flips(flipped.model_copy(update={"network": network})) == axes


@pytest.fixture(autouse=True)
def stored_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "read_member", lambda _store, _key, _folder: (plan(), Threshold(4.5, 7.5)))


def predict(
    images: list[Case],
    output: Path,
    largest_component: tuple[int, ...] = (),
    on_case: Callable[[str, Path], None] | None = None,
) -> list[Path]:
    return predict_cases(
        ensemble(largest_component),
        store=MemoryStore(),
        data=study_data(),
        images=images,
        output=output,
        scratch_folder=output / "scratch",
        device=FLOAT32.device,
        dtype=FLOAT32.dtype,
        on_case=on_case,
    )


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_a_label_map_has_the_images_name_ending_grid_and_the_datasets_label_values(tmp_path: Path, ending: str) -> None:
    case = write(tmp_path / f"head{ending}", ball())
    [path] = predict([case], tmp_path / "out")
    assert path == tmp_path / "out" / f"head{ending}"
    written = nib.load(path)
    np.testing.assert_array_equal(written.affine, LPS)
    expected = np.where(ball() > 7.5, 5, np.where(ball() > 4.5, 1, 0))
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected)
    assert written.get_data_dtype() == np.uint8


def test_an_existing_label_map_is_replaced(tmp_path: Path) -> None:
    case = write(tmp_path / "head.nii.gz", ball())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "head.nii.gz").write_bytes(b"half a file")
    [path] = predict([case], tmp_path / "out")
    assert np.asarray(nib.load(path).dataobj).max() == 5


def test_bad_images_are_all_named_after_the_good_ones_are_written(tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    two_channels = write(tmp_path / "two.nii.gz", np.stack([ball(), ball()], axis=-1))
    endless = write(tmp_path / "endless.nii.gz", np.where(ball() > 9, np.inf, ball()).astype(np.float32))
    good = write(tmp_path / "zgood.nii.gz", ball())
    with pytest.raises(DatasetError) as caught:
        predict([Case(id="broken", images=(str(broken),)), two_channels, endless, good], tmp_path / "out")
    assert len(caught.value.problems) == 3
    assert "broken.nii.gz" in caught.value.problems[0]
    assert "two: has 2 channels" in caught.value.problems[1]
    assert caught.value.problems[2] == "endless: has voxels that are NaN or infinite"
    assert [path.name for path in (tmp_path / "out").glob("*.nii*")] == ["zgood.nii.gz"]


def test_an_image_too_large_for_the_memory_is_named_and_the_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnSmallGpu(Threshold):
        def forward(self, image_BCXYZ: torch.Tensor) -> torch.Tensor:
            if image_BCXYZ.max() > 50:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(image_BCXYZ)

    monkeypatch.setattr(predicting, "read_member", lambda _store, _key, _folder: (plan(), OnSmallGpu(4.5, 7.5)))
    images = [write(tmp_path / "large.nii.gz", 100 * ball()), write(tmp_path / "small.nii.gz", ball())]
    with pytest.raises(DatasetError) as caught:
        predict(images, tmp_path / "out")
    assert caught.value.problems == ("large: needs more memory than there is here: CUDA out of memory",)
    assert [path.name for path in (tmp_path / "out").glob("*.nii*")] == ["small.nii.gz"]


def test_another_fault_of_the_network_is_no_problem_of_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Threshold):
        def forward(self, image_BCXYZ: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(predicting, "read_member", lambda _store, _key, _folder: (plan(), Broken(4.5, 7.5)))
    with pytest.raises(RuntimeError, match="launch failure"):
        predict([write(tmp_path / "head.nii.gz", ball())], tmp_path / "out")


def test_two_images_of_one_name_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    case = write(tmp_path / "head.nii.gz", ball())
    with pytest.raises(DatasetError, match="several images"):
        predict([case, case], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_is_never_replaced_by_its_label_map(tmp_path: Path) -> None:
    case = write(tmp_path / "head.nii.gz", ball())
    before = (tmp_path / "head.nii.gz").read_bytes()
    with pytest.raises(DatasetError, match="its image"):
        predict([case], tmp_path)
    assert (tmp_path / "head.nii.gz").read_bytes() == before


def test_only_the_largest_component_stays_where_the_ensemble_says_so(tmp_path: Path) -> None:
    values = ball()
    values[0, 0, 0] = 5
    case = write(tmp_path / "head.nii.gz", values)
    found = [
        np.asarray(nib.load(predict([case], tmp_path / "out", largest_component=kept)[0]).dataobj)[0, 0, 0]
        for kept in ((), (5,), (1,))
    ]
    assert found == [1, 1, 0]


def test_members_of_different_spacing_and_crop_are_mixed_on_the_images_grid(tmp_path: Path) -> None:
    volume = read_image([Path(write(tmp_path / "head.nii.gz", ball()).images[0])])
    members = [
        LoadedMember(plan(), Threshold(4.5, 7.5)),
        LoadedMember(plan(crop=Crop.NONZERO), Threshold(4.5, 7.5)),
        LoadedMember(plan(spacing_mm=(1.0, 1.0, 1.0)), Threshold(4.5, 7.5)),
    ]
    mixtures = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.25, 0.25, 0.5]])
    slabs = list(probability_slabs(members, volume, case_id="head", mixtures=mixtures, precision=FLOAT32))
    whole = np.concatenate([probabilities for _, probabilities in slabs], axis=2)
    assert whole.shape == (4, 3, 20, 14, 11)
    np.testing.assert_allclose(whole.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(whole[3], 0.25 * whole[0] + 0.25 * whole[1] + 0.5 * whole[2], atol=1e-5)
    inside = volume.voxels[0] > 0
    np.testing.assert_allclose(whole[0][:, inside], whole[1][:, inside], atol=1e-5)
    assert (whole[0].argmax(0) == whole[2].argmax(0)).mean() > 0.95


@pytest.mark.parametrize("crop", list(Crop))
@pytest.mark.parametrize("planes", [3, 16, 100])
def test_members_of_one_configuration_give_their_slabs_as_they_are_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crop: Crop, planes: int
) -> None:
    volume = read_image([Path(write(tmp_path / "head.nii.gz", ball()).images[0])])
    members = [LoadedMember(plan(crop=crop), Threshold(low, 7.5)) for low in (4.5, 2.5)]
    mixtures = np.array([[1, 0], [0.25, 0.75]])

    def whole() -> np.ndarray:
        slabs = list(probability_slabs(members, volume, case_id="head", mixtures=mixtures, precision=FLOAT32))
        assert [start for start, _ in slabs] == [0, *np.cumsum([slab.shape[2] for _, slab in slabs])[:-1].tolist()]
        return np.concatenate([slab for _, slab in slabs], axis=2)

    with monkeypatch.context() as held:
        held.setattr(predicting._Mixing, "can_stream", False)
        expected = whole()
    monkeypatch.setattr(predicting, "scratch_array", None)  # whoever called it would fail
    monkeypatch.setattr(predicting, "_PLANES", planes)
    np.testing.assert_allclose(whole(), expected, atol=1e-6)


@pytest.mark.parametrize(("room_for", "at_once"), [(3, [3]), (2, [2, 1]), (1, [1, 1, 1])])
def test_networks_that_do_not_fit_into_memory_together_predict_in_pieces_what_they_predict_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_for: int, at_once: list[int]
) -> None:
    volume = read_image([Path(write(tmp_path / "head.nii.gz", ball()).images[0])])
    members = [LoadedMember(plan(), Threshold(low, 7.5)) for low in (4.5, 2.5, 3.5)]
    weights, asked = np.array([[0.5, 0.25, 0.25]]), list[int]()

    def counted(networks: list[torch.nn.Module], *arguments: Any, **options: Any) -> Iterator[LogitSlab]:
        asked.append(len(networks))
        return logit_slabs(networks, *arguments, **options)

    expected = predict_label(members, volume, case_id="head", weights=weights, precision=FLOAT32)
    there = prediction_memory_bytes(ball().shape, plan(), WindowSettings(FLOAT32.device), networks=room_for)
    monkeypatch.setattr(inference, "usable_memory_bytes", lambda: 1000 + there)
    monkeypatch.setattr(inference, "resident_bytes", lambda: 1000)
    monkeypatch.setattr(predicting, "logit_slabs", counted)
    found = predict_label(members, volume, case_id="head", weights=weights, precision=FLOAT32)
    assert asked == at_once
    assert len(np.unique(expected)) == 3
    np.testing.assert_array_equal(found, expected)


def test_a_preparation_holds_only_the_mixtures_that_it_has_a_part_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = read_image([Path(write(tmp_path / "head.nii.gz", ball()).images[0])])
    members = [
        LoadedMember(plan(crop=Crop.NONE), Threshold(4.5, 7.5)),
        LoadedMember(plan(crop=Crop.NONZERO), Threshold(4.5, 7.5)),
        LoadedMember(plan(spacing_mm=(1.0, 1.0, 1.0)), Threshold(4.5, 7.5)),
    ]
    held = list[int]()

    def counted(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
        held.append(shape[0])
        return scratch_array(shape, dtype)

    monkeypatch.setattr(predicting, "scratch_array", counted)
    mixtures = np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0]])
    slabs = list(probability_slabs(members, volume, case_id="head", mixtures=mixtures, precision=FLOAT32))
    assert held == [2, 2]
    whole = np.concatenate([probabilities for _, probabilities in slabs], axis=2)
    np.testing.assert_allclose(whole.sum(axis=1), 1, atol=1e-5)


def test_weights_decide_between_members(tmp_path: Path) -> None:
    volume = read_image([Path(write(tmp_path / "head.nii.gz", ball()).images[0])])
    members = [LoadedMember(plan(), Threshold(4.5, 7.5)), LoadedMember(plan(), Threshold(50, 50))]
    found = [
        predict_label(members, volume, case_id="head", weights=np.array([weights]), precision=FLOAT32).any()
        for weights in ((1.0, 0.0), (0.0, 1.0))
    ]
    assert found == [True, False]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_of_each_class_one_component_stays_and_nothing_is_added(seed: int) -> None:
    label = np.random.default_rng(seed).choice(3, (6, 5, 4), p=[0.7, 0.2, 0.1]).astype(np.uint8)
    kept = keep_largest_components(label, (1, 2))
    assert ((kept == label) | (kept == 0)).all()
    for index in (1, 2):
        components, count = ndimage.label(label == index, structure=np.ones((3, 3, 3)))
        assert ndimage.label(kept == index, structure=np.ones((3, 3, 3)))[1] == min(count, 1)
        if count:
            assert (kept == index).sum() == np.bincount(components.ravel())[1:].max()


def test_the_largest_component_is_found_in_a_few_bytes_a_voxel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "_COUNTED_VOXELS", 64)
    label = np.zeros((64, 64, 64), np.uint8)
    label[::9, ::9, ::9] = label[:, :20] = 1
    tracemalloc.start()
    kept = keep_largest_components(label, (1,))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept.sum() == 64 * 20 * 64
    assert peak < 9 * label.nbytes  # the result, and what the docstring tells


def test_an_image_that_the_machine_has_no_memory_for_is_named_with_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "usable_memory_bytes", lambda: 2**30)
    monkeypatch.setattr(inference, "resident_bytes", lambda: 2**30 - 2**26)
    with pytest.raises(DatasetError) as caught:
        predict([write(tmp_path / "head.nii.gz", ball())], tmp_path / "out")
    [problem] = caught.value.problems
    needed = prediction_memory_bytes((20, 14, 11), plan(), WindowSettings(FLOAT32.device))
    assert problem.startswith("head: needs more memory than there is here: predicting 20 x 14 x 11 voxels takes up to")
    assert f"{needed} bytes" in problem
    assert "the machine has 1.00 GiB" in problem


def test_cases_are_announced_as_their_label_maps_are_there(tmp_path: Path) -> None:
    images = [write(tmp_path / f"{name}.nii.gz", ball()) for name in ("a", "b")]
    seen: list[str] = []

    def on_case(name: str, path: Path) -> None:
        assert path.is_file()
        seen.append(name)

    predict(images, tmp_path / "out", on_case=on_case)
    assert seen == ["a", "b"]
