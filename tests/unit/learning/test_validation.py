from __future__ import annotations

import dataclasses
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from tinytraining import tiny_plan

from automonai.domain.configuration import Configuration, Crop, LossName, Normalisation
from automonai.domain.dataset import Case, Dataset, Layout
from automonai.domain.fingerprint import ChannelFacts, Triple
from automonai.domain.plan import Plan
from automonai.errors import StopRequestedError
from automonai.imaging.nifti import write_nifti
from automonai.imaging.preprocessing import Placement, PreparedCase, prepare_case
from automonai.imaging.reading import read_image, read_label
from automonai.learning import inference, scoring, validation
from automonai.learning.inference import LogitSlab, WindowSettings, logit_slabs
from automonai.learning.losses import make_loss
from automonai.learning.precision import Precision
from automonai.learning.predicting import LoadedMember, predict_label
from automonai.learning.validation import Validation, class_dice, score_volume, validate, window_count

SHAPE = (8, 8, 8)
FACTS = ChannelFacts(minimum=0, maximum=1, mean=0, std=1, percentile_00_5=0, percentile_99_5=1)
CASE = PreparedCase(
    id="a",
    image=np.zeros((1, *SHAPE), np.float32),
    label=np.zeros(SHAPE, np.uint8),
    statistics=(),
    foreground={},
    spacing_mm=(1.0, 1.0, 1.0),
    placement=Placement(shape_voxels=SHAPE, box_start=(0, 0, 0), box_shape=SHAPE, prepared_shape=SHAPE),
    background=None,
)

CPU = torch.device("cpu")


def whole(logits_KXYZ: np.ndarray) -> list[LogitSlab]:
    return [LogitSlab(0, logits_KXYZ.shape[1], logits_KXYZ[None])]


@pytest.mark.parametrize(("classes", "step"), [(2, 1), (8, 1), (9, 2), (100, 3)])
def test_a_loss_of_many_classes_is_computed_of_fewer_voxels(classes: int, step: int) -> None:
    assert validation._lattice_step((128, 128, 128), classes=classes) == step


def mean_logit(logits_BKXYZ: torch.Tensor, label_BXYZ: torch.Tensor) -> torch.Tensor:
    return logits_BKXYZ.mean()


def dice(label: list[int], prediction: list[int], classes: int) -> list[float | None]:
    logits_KXYZ = np.eye(classes, dtype=np.float32)[prediction].T.reshape(classes, 1, 1, -1)
    _, counts_KK = score_volume(
        whole(logits_KXYZ), np.array([[label]], np.uint8), mean_logit, classes=classes, device=CPU
    )
    return class_dice(counts_KK)


def test_dice_of_each_class_by_hand_and_none_for_an_absent_one() -> None:
    assert dice([0, 1, 1, 2], [1, 1, 0, 2], 4) == [0.5, 1.0, None]


def test_a_class_that_is_only_predicted_scores_zero() -> None:
    assert dice([0, 0], [1, 1], 2) == [0.0]


def test_every_voxel_of_a_large_volume_is_counted_and_its_loss_is_of_a_lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_SLAB_VOXELS", 2 * 7 * 6)
    generator = np.random.default_rng(0)
    logits_KXYZ = generator.integers(-2, 3, (3, 9, 7, 6)).astype(np.float32)  # few values, so that many are equal
    label_XYZ = generator.integers(0, 3, (9, 7, 6)).astype(np.uint8)
    loss, counts_KK = score_volume(whole(logits_KXYZ), label_XYZ, mean_logit, classes=3, device=CPU)
    expected = np.zeros((3, 3), np.int64)
    np.add.at(expected, (label_XYZ, logits_KXYZ.argmax(axis=0)), 1)
    np.testing.assert_array_equal(counts_KK, expected)
    assert loss == pytest.approx(float(logits_KXYZ[:, ::2, ::2, ::2].mean()))  # 5 x 4 x 3 voxels


def test_the_loss_of_a_large_volume_prefers_a_good_network_to_one_that_is_sure_and_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    label_XYZ = np.zeros((100, 8, 8), np.uint8)
    label_XYZ[40:60] = 1
    half_XYZ = label_XYZ.copy()
    half_XYZ[50:] = 0
    loss_of = make_loss(LossName.DICE)

    def loss(prediction_XYZ: np.ndarray, margin: float) -> float:
        logits_KXYZ = margin * np.stack([prediction_XYZ == 0, prediction_XYZ == 1]).astype(np.float32)
        return score_volume(whole(logits_KXYZ), label_XYZ, loss_of, classes=2, device=CPU)[0]

    at_once = loss(label_XYZ, 8), loss(half_XYZ, 30)
    monkeypatch.setattr(validation, "_SLAB_VOXELS", 5 * 8 * 8)
    of_lattice = loss(label_XYZ, 8), loss(half_XYZ, 30)
    assert of_lattice == pytest.approx(at_once, abs=0.03)
    assert at_once[0] < 0.01 < 0.3 < at_once[1]


@pytest.mark.parametrize("name", LossName)
def test_the_loss_of_a_volume_that_is_no_larger_than_a_slab_is_exactly_that_of_all_of_it(
    monkeypatch: pytest.MonkeyPatch, name: LossName
) -> None:
    monkeypatch.setattr(validation, "_SLAB_VOXELS", 9 * 7 * 6)
    generator = np.random.default_rng(0)
    logits_KXYZ = generator.normal(size=(3, 9, 7, 6)).astype(np.float32)
    label_XYZ = generator.integers(0, 3, (9, 7, 6)).astype(np.uint8)
    expected = make_loss(name)(torch.from_numpy(logits_KXYZ)[None], torch.from_numpy(label_XYZ)[None])
    assert score_volume(whole(logits_KXYZ), label_XYZ, make_loss(name), classes=3, device=CPU)[0] == expected.item()


def test_scoring_a_volume_takes_the_memory_of_a_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_SLAB_VOXELS", 2 * 32 * 32)
    logits_KXYZ, label_XYZ = np.zeros((3, 64, 32, 32), np.float32), np.zeros((64, 32, 32), np.uint8)
    tracemalloc.start()
    score_volume(whole(logits_KXYZ), label_XYZ, mean_logit, classes=3, device=CPU)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < logits_KXYZ.nbytes / 8


def test_a_stop_leaves_before_the_next_case(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    predicted: list[np.ndarray] = []

    def predict(_networks: list[torch.nn.Module], image: np.ndarray, **_: object) -> list[LogitSlab]:
        predicted.append(image)
        stop.set()
        return whole(np.zeros((2, *SHAPE), np.float32))

    monkeypatch.setattr(validation, "logit_slabs", predict)
    with pytest.raises(StopRequestedError):
        validate(
            torch.nn.Identity(),
            [CASE, CASE],
            plan=tiny_plan(),
            precision=Precision(torch.device("cpu"), torch.float32),
            loss_of=mean_logit,
            stop=stop,
        )
    assert len(predicted) == 1


class Stopping(torch.nn.Module):
    """A network in whose first pass the process is asked to leave; counts its passes."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self.stop = stop
        self.passes = 0

    def forward(self, image_BCXYZ: torch.Tensor) -> torch.Tensor:
        self.stop.set()
        self.passes += 1
        return torch.cat([image_BCXYZ, image_BCXYZ], 1)


def test_a_stop_leaves_before_the_next_window_of_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_BATCH_VOXELS", 1)
    stop, shape = threading.Event(), (8, 8, 16)
    image, label = np.zeros((1, *shape), np.float32), np.zeros(shape, np.uint8)
    case = dataclasses.replace(CASE, image=image, label=label, statistics=(FACTS,))
    network = Stopping(stop)
    with pytest.raises(StopRequestedError, match="within a validation"):
        validate(
            network,
            [case],
            plan=tiny_plan(),
            precision=Precision(CPU, torch.float32),
            loss_of=mean_logit,
            stop=stop,
        )
    assert network.passes == 1


def test_a_stop_leaves_before_the_next_slab_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_SLAB_VOXELS", 2 * 8 * 8)
    stop, counted, count = threading.Event(), list[torch.Tensor](), validation._counts

    def count_and_stop(scores_KXYZ: torch.Tensor, label_XYZ: torch.Tensor) -> np.ndarray:
        stop.set()
        counted.append(scores_KXYZ)
        return count(scores_KXYZ, label_XYZ)

    def check_stop() -> None:
        if stop.is_set():
            raise StopRequestedError

    monkeypatch.setattr(validation, "_counts", count_and_stop)
    with pytest.raises(StopRequestedError):
        score_volume(
            whole(np.zeros((2, *SHAPE), np.float32)),
            np.zeros(SHAPE, np.uint8),
            mean_logit,
            classes=2,
            device=CPU,
            check_stop=check_stop,
        )
    assert len(counted) == 1


def test_several_devices_give_the_scores_of_one_and_each_has_its_own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    devices, networks = [torch.device("cpu")] * 2, set()
    both_at_work = threading.Barrier(2)

    def predict(own: list[torch.nn.Module], image: np.ndarray, **_: object) -> list[LogitSlab]:
        networks.update(own)
        both_at_work.wait(timeout=10)  # which one device alone would wait for in vain
        logits_KXYZ = np.zeros((2, *SHAPE), np.float32)
        logits_KXYZ[1].flat[: int(image.max())] = 1
        return whole(logits_KXYZ)

    def scores(devices: list[torch.device]) -> Validation:
        return validate(
            torch.nn.Identity(),
            cases,
            plan=tiny_plan(),
            precision=Precision(torch.device("cpu"), torch.float32),
            loss_of=mean_logit,
            stop=threading.Event(),
            devices=devices,
        )

    label = np.ones(SHAPE, np.uint8)
    cases = [
        dataclasses.replace(CASE, image=np.full((1, *SHAPE), size, np.float32), label=label) for size in (64, 8, 32, 16)
    ]
    monkeypatch.setattr(validation, "logit_slabs", predict)
    divided = scores(devices)
    assert len(networks) == 2
    both_at_work = threading.Barrier(1)
    alone = scores([])
    assert (divided.loss, divided.dice) == (alone.loss, alone.dice)
    assert divided.dice[1] == pytest.approx(np.mean([2 * size / (size + 512) for size in (64, 8, 32, 16)]))


class Threshold(torch.nn.Module):
    """Says organ where the image is above 50; a soft edge, so that interpolation moves it."""

    def forward(self, image_BCXYZ: torch.Tensor) -> torch.Tensor:
        return torch.cat([50 - image_BCXYZ, image_BCXYZ - 50], 1) / 5


def anisotropic(folder: Path) -> Dataset:
    """Write a noisy ball of 2 x 1 x 4 mm voxels, in a corner of an empty volume."""
    x, y, z = np.indices((26, 40, 12))
    distance = np.sqrt((2 * x - 20) ** 2 + (y - 17) ** 2 + (4 * z - 18) ** 2)
    noise = np.random.default_rng(0).normal(0, 12, distance.shape)
    image = np.where(distance < 18, 110 - 5 * distance + noise, 0)
    affine = np.diag([2.0, 1.0, 4.0, 1.0])
    write_nifti(folder / "image.nii", image.astype(np.float32), affine)
    write_nifti(folder / "label.nii", (distance < 11.4).astype(np.uint8), affine)
    case = Case(id="ball", images=("image.nii",), label="label.nii")
    labels = {0: "background", 1: "organ"}
    return Dataset(name="d", root=str(folder), layout=Layout.MSD, channels=("MR",), labels=labels, cases=(case,))


def resampling_plan(spacing_mm: Triple | None, crop: Crop) -> Plan:
    configuration = Configuration(normalisation=Normalisation.NONE, crop=crop)
    return tiny_plan().model_copy(update={"configuration": configuration, "spacing_mm": spacing_mm})


@pytest.mark.parametrize("crop", Crop)
@pytest.mark.parametrize("spacing_mm", [None, (3.0, 3.0, 3.0), (1.0, 1.0, 1.0), (4.0, 2.0, 2.0)])
def test_dice_is_that_of_a_prediction_on_the_original_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spacing_mm: Triple | None, crop: Crop
) -> None:
    monkeypatch.setattr(validation, "_SLAB_VOXELS", 2000)
    dataset, plan, network = anisotropic(tmp_path), resampling_plan(spacing_mm, crop), Threshold()
    [case], precision = dataset.cases, Precision(CPU, torch.float32)
    volume, label = read_image(dataset.image_paths(case)), read_label(dataset.label_path(case), [0, 1])
    weights = np.ones((1, 1))
    predicted = predict_label(
        [LoadedMember(plan, network)], volume, case_id="ball", weights=weights, precision=precision
    )
    prepared = prepare_case(dataset, case, spacing_mm=spacing_mm, crop=crop, cache_folder=tmp_path / "cache")
    scores = validate(network, [prepared], plan=plan, precision=precision, loss_of=mean_logit, stop=threading.Event())
    assert scores.dice[1] == pytest.approx(scoring.dice(predicted == 1, label == 1), abs=1e-6)
    assert 0.7 < scores.dice[1] < 0.99


def test_a_case_on_its_own_grid_is_scored_as_from_all_of_its_logits_without_holding_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(validation, "_SLAB_VOXELS", 5 * 10 * 9)
    monkeypatch.setattr(inference, "scratch_array", None)  # whoever called it would fail
    shape, loss_of = (21, 10, 9), make_loss(LossName.DICE_CE)
    image = np.random.default_rng(0).normal(50, 10, (1, *shape)).astype(np.float32)
    label = (image[0] > 55).astype(np.uint8)
    case = dataclasses.replace(CASE, image=image, label=label, statistics=(FACTS,))
    plan, network, settings = resampling_plan(None, Crop.NONE), Threshold(), WindowSettings(CPU)
    slabs = logit_slabs([network], image, plan=plan, statistics=[FACTS], settings=settings)
    logits_KXYZ = np.concatenate([slab.logits[0] for slab in slabs], axis=1)
    precision = Precision(CPU, torch.float32)
    scores = validate(network, [case], plan=plan, precision=precision, loss_of=loss_of, stop=threading.Event())
    loss, counts_KK = score_volume(whole(logits_KXYZ), label, loss_of, classes=2, device=CPU)
    assert (scores.loss, scores.dice) == (loss, {1: class_dice(counts_KK)[0]})
    lattice = torch.from_numpy(logits_KXYZ)[:, ::2, ::2, ::2], torch.from_numpy(label)[::2, ::2, ::2]
    assert loss == loss_of(lattice[0][None], lattice[1][None]).item()


def test_scoring_on_the_original_grid_takes_the_memory_of_a_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_SLAB_VOXELS", 32 * 32)
    box, prepared = (64, 32, 32), (128, 16, 32)
    label = np.zeros(box, np.uint8)
    placement = Placement(shape_voxels=box, box_start=(0, 0, 0), box_shape=box, prepared_shape=prepared)
    case = dataclasses.replace(CASE, placement=placement, original_label=lambda: label)
    logits_KXYZ = np.zeros((3, *prepared), np.float32)
    tracemalloc.start()
    counts_KK = validation._counts_on_original_grid(logits_KXYZ, case, check_stop=lambda: None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts_KK[0, 0] == counts_KK.sum() == label.size
    assert peak < logits_KXYZ.nbytes / 8


def test_windows_overlap_by_half() -> None:
    plan = tiny_plan()
    assert window_count((8, 8, 8), plan) == 1
    assert window_count((5, 8, 12), plan) == 2
    assert window_count((16, 9, 8), plan) == 3 * 2
    flat = plan.model_copy(update={"network": plan.network.model_copy(update={"spatial_dims": 2})})
    assert window_count((16, 8, 16), flat) == 3 * 2
