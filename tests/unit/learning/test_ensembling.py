from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from automonai.domain.configuration import Configuration, Crop, Normalisation
from automonai.domain.dataset import Case, Dataset, Layout, Split
from automonai.domain.fingerprint import CaseFacts, ChannelFacts, Fingerprint
from automonai.domain.plan import NetworkPlan, Plan
from automonai.domain.request import EnsembleRequest, EnsembleResult, Member, StudyData
from automonai.errors import DatasetError, StopRequestedError
from automonai.imaging.content import case_digest
from automonai.learning import ensembling, predicting
from automonai.learning.ensembling import (
    Candidates,
    OutOfFoldDice,
    choose,
    choose_ensemble,
    greedy_selection,
    mean_dice,
    weight_vectors,
)
from automonai.learning.memory import peak_memory_bytes
from automonai.learning.predicting import LoadedMember
from automonai.spec import ExecutionSpec, TrainingSpec
from automonai.storage.memory import MemoryStore

LABELS = {0: "background", 3: "body"}


def member(trial: int, fold: int) -> Member:
    return Member(run_id=f"refit-{trial}-{fold}", trial=trial, fold=fold, checkpoint=f"{trial}/{fold}")


class Threshold(torch.nn.Module):
    """Class 1 where the channel exceeds a value: a network whose answer is known."""

    def __init__(self, channel: int, value: float, steepness: float = 1.0) -> None:
        super().__init__()
        self.channel, self.value, self.steepness = channel, value, steepness

    def forward(self, image_BCXYZ: torch.Tensor) -> torch.Tensor:
        logit = (image_BCXYZ[:, self.channel] - self.value) * self.steepness
        return torch.stack([torch.zeros_like(logit), logit], 1)


def plan() -> Plan:
    return Plan(
        configuration=Configuration(normalisation=Normalisation.NONE, crop=Crop.NONE),
        channels=("a", "b"),
        labels=LABELS,
        spacing_mm=None,
        patch_voxels=(8, 8, 8),
        batch_size=1,
        network=NetworkPlan(
            spatial_dims=3, in_channels=2, out_channels=2, channels=(2, 4), strides=(1,), residual_units=1
        ),
        slice_axis=2,
        flip_axes=(),
        parameters=1,
    )


IDS = tuple(f"case{number}" for number in range(8))


@pytest.fixture
def data(tmp_path: Path) -> StudyData:
    """Eight cases of two channels, each the label plus noise of its own, and far away a speck in both."""
    generator = np.random.default_rng(0)
    cases = []
    for case_id in IDS:
        label = np.zeros((12, 10, 9), np.uint8)
        label[2:8, 2:8, 2:7] = 3
        image = (label[..., None] / 3 + generator.normal(0, 0.45, (*label.shape, 2))).astype(np.float32)
        image[-1, -1, -1] = 3
        nib.Nifti1Image(image, np.eye(4)).to_filename(tmp_path / f"{case_id}.nii.gz")
        nib.Nifti1Image(label, np.eye(4)).to_filename(tmp_path / f"{case_id}_label.nii.gz")
        cases.append(Case(id=case_id, images=(f"{case_id}.nii.gz",), label=f"{case_id}_label.nii.gz"))
    facts = ChannelFacts(minimum=0, maximum=1, mean=0, std=1, percentile_00_5=0, percentile_99_5=1)
    case_facts = CaseFacts(
        id="a",
        shape_voxels=(12, 10, 9),
        spacing_mm=(1, 1, 1),
        box_start=(0, 0, 0),
        box_shape=(12, 10, 9),
        channels=(facts, facts),
        class_voxels={0: 1},
    )
    return StudyData(
        dataset=Dataset(
            name="d",
            root=str(tmp_path),
            layout=Layout.MSD,
            channels=("a", "b"),
            labels=LABELS,
            cases=tuple(cases),
        ),
        split=Split(seed=0, test=IDS[:2], folds=(IDS[2:5], IDS[5:])),
        fingerprint=Fingerprint(cases=(case_facts,)),
        training=TrainingSpec(),
        execution=ExecutionSpec(precision="float32"),
    )


@pytest.fixture
def read_keys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Networks by checkpoint key: trial 1 reads the first channel, trial 2 the second; trial 3 sees nothing."""
    keys: list[str] = []

    def read_member(_store: object, key: str, _folder: Path) -> tuple[Plan, torch.nn.Module]:
        keys.append(key)
        trial = int(key.split("/")[0])
        return plan(), Threshold(channel=1 if trial == 2 else 0, value=99.0 if trial == 3 else 0.5)

    monkeypatch.setattr(predicting, "read_member", read_member)
    return keys


def run(
    data: StudyData, candidates: list[Member], store: MemoryStore | None = None, **options: object
) -> EnsembleResult:
    request = EnsembleRequest(candidates=tuple(candidates), deadline_seconds=options.pop("deadline_seconds", None))
    return choose_ensemble(
        request,
        data,
        store=store or MemoryStore(),
        cache_folder=options.pop("cache_folder", Path("unused")),  # type: ignore[arg-type]
        device=torch.device("cpu"),
        dtype=torch.float32,
        stop=options.pop("stop", lambda: False),
        **options,  # type: ignore[arg-type]
    )


BOTH = [member(1, 0), member(1, 1), member(2, 0), member(2, 1)]


@pytest.mark.usefixtures("read_keys")
def test_two_configurations_whose_errors_differ_are_both_chosen_and_beat_either(data: StudyData) -> None:
    result = run(data, BOTH)
    assert {item.trial for item in result.members} == {1, 2}
    assert sum(item.weight for item in result.members) == pytest.approx(1)
    assert result.single_validation_dice is not None
    assert result.validation_dice[3] > result.single_validation_dice + 0.05


@pytest.mark.usefixtures("read_keys")
def test_a_case_whose_files_have_changed_since_the_studys_start_is_refused(data: StudyData, tmp_path: Path) -> None:
    contents = {case.id: case_digest(data.dataset, case) for case in data.dataset.cases}
    data = data.model_copy(update={"contents": contents})
    assert run(data, BOTH[:2], cache_folder=tmp_path).members
    label = data.dataset.label_path(data.dataset.case("case3"))
    label.write_bytes(data.dataset.label_path(data.dataset.case("case4")).read_bytes() + b"more")
    with pytest.raises(DatasetError, match="^case case3: its files are not those with which the study was started"):
        run(data, BOTH[:2], cache_folder=tmp_path)


@pytest.mark.usefixtures("read_keys")
def test_a_configuration_that_is_of_no_use_is_left_out(data: StudyData) -> None:
    result = run(data, [member(1, 0), member(1, 1), member(3, 0), member(3, 1)])
    assert {item.trial: item.weight for item in result.members} == {1: 0.5}


@pytest.mark.usefixtures("read_keys")
def test_the_largest_component_is_kept_where_it_helps(data: StudyData) -> None:
    assert run(data, BOTH).largest_component == (3,)


@pytest.mark.usefixtures("read_keys")
def test_test_cases_are_scored_and_the_worst_ones_drawn(data: StudyData) -> None:
    store = MemoryStore()
    result = run(data, BOTH, store)
    assert [scores.case for scores in result.test] == ["case0", "case1"]
    for scores in result.test:
        assert scores.dice[3] is not None
        assert scores.dice[3] > 0.8
        assert scores.surface_dice[3] is not None
        assert scores.overlay == f"ensemble/overlays/{scores.case}.png"
        assert store.get(scores.overlay).startswith(b"\x89PNG")
    assert result.seconds > 0
    assert result.peak_memory_bytes


@pytest.mark.usefixtures("read_keys")
def test_its_peak_memory_is_not_that_of_an_earlier_run_of_the_process(data: StudyData) -> None:
    of_another_run = np.ones(2**28, np.uint8)
    of_both = peak_memory_bytes()
    del of_another_run
    result = run(data, BOTH)
    assert result.peak_memory_bytes is not None
    assert 0 < result.peak_memory_bytes < of_both - 2**27


@pytest.mark.usefixtures("read_keys")
def test_no_more_than_four_cases_are_drawn_and_those_are_the_worst(data: StudyData) -> None:
    split = Split(seed=0, test=IDS[:6], folds=(IDS[6:7], IDS[7:]))
    result = run(data.model_copy(update={"split": split}), BOTH)
    drawn = [scores.dice[3] or 0 for scores in result.test if scores.overlay]
    others = [scores.dice[3] or 0 for scores in result.test if not scores.overlay]
    assert len(drawn) == 4
    assert max(drawn) <= min(others)


@pytest.mark.usefixtures("read_keys")
def test_without_test_cases_nothing_is_scored(data: StudyData) -> None:
    split = Split(seed=0, test=(), folds=data.split.folds)
    assert run(data.model_copy(update={"split": split}), BOTH).test == ()


def test_each_fold_is_judged_by_its_own_member(data: StudyData, read_keys: list[str]) -> None:
    run(data, [member(1, 1)])
    assert read_keys == ["1/1", "1/1"]  # once for its fold, once for the test


@pytest.mark.usefixtures("read_keys")
def test_a_deadline_ends_the_choice_after_a_case_but_not_the_test(
    data: StudyData, caplog: pytest.LogCaptureFixture
) -> None:
    ticks = iter(range(1000))
    result = run(data, BOTH, deadline_seconds=1.0, clock=lambda: float(next(ticks)))
    assert "ended early: cases=1 planned=6" in caplog.text
    assert (result.scored_cases, result.planned_cases) == (1, 6)
    assert len(result.test) == 2


@pytest.mark.usefixtures("read_keys")
@pytest.mark.parametrize(
    ("reading", "network", "deadline_seconds", "cases"),
    [(10, 0, 80, 6), (10, 0, 79, 5), (0, 10, 200, 6), (0, 10, 199, 5), (10, 10, 280, 6), (10, 10, 279, 5)],
)
def test_a_deadline_counts_the_time_of_reading_once_a_case_and_that_of_a_network_for_each_one(
    data: StudyData, monkeypatch: pytest.MonkeyPatch, reading: int, network: int, deadline_seconds: float, cases: int
) -> None:
    now, predict, read_label = [0.0], ensembling.probability_slabs, ensembling.read_label

    def slow_slabs(members: list[LoadedMember], *arguments: Any, **options: Any) -> Iterator[tuple[int, np.ndarray]]:
        now[0] += network * len(members)
        yield from predict(members, *arguments, **options)

    def slow_label(*arguments: Any, **options: Any) -> np.ndarray:
        now[0] += reading
        return read_label(*arguments, **options)

    monkeypatch.setattr(ensembling, "probability_slabs", slow_slabs)
    monkeypatch.setattr(ensembling, "read_label", slow_label)
    result = run(data, BOTH, deadline_seconds=deadline_seconds, clock=lambda: now[0])
    assert result.scored_cases == cases


@pytest.mark.usefixtures("read_keys")
def test_the_result_tells_by_how_many_cases_it_was_chosen_and_who_was_left_out(data: StudyData) -> None:
    result = run(data, [member(1, 0), member(2, 1)])
    assert (result.scored_cases, result.planned_cases, result.left_out) == (3, 3, (2,))


def test_a_request_to_stop_is_heeded_before_a_case(data: StudyData, read_keys: list[str]) -> None:
    with pytest.raises(StopRequestedError):
        run(data, BOTH, stop=lambda: True)
    assert len(read_keys) == 4


@pytest.mark.usefixtures("read_keys")
@pytest.mark.parametrize("in_test", [False, True])
def test_a_request_to_stop_is_heeded_within_a_case(
    data: StudyData, in_test: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, passes = threading.Event(), list[bool]()
    forward, predict_label = Threshold.forward, ensembling.predict_label
    is_test = threading.Event()

    def counted(network: Threshold, image_BCXYZ: torch.Tensor) -> torch.Tensor:
        if is_test.is_set() == in_test:
            stop.set()
        passes.append(is_test.is_set())
        return forward(network, image_BCXYZ)

    def predict_test_case(*arguments: object, **options: object) -> np.ndarray:
        is_test.set()
        return predict_label(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Threshold, "forward", counted)
    monkeypatch.setattr(ensembling, "predict_label", predict_test_case)
    with pytest.raises(StopRequestedError):
        run(data, BOTH, stop=stop.is_set)
    assert passes.count(in_test) == 1


def test_only_configurations_with_a_common_fold_are_compared_and_at_most_three() -> None:
    candidates = Candidates.of([member(7, 0), member(7, 1), member(4, 2), member(5, 1), member(5, 2)])
    assert candidates.trials == (7, 5)
    assert candidates.folds == (1,)
    assert candidates.left_out == (4,)
    assert Candidates.of([member(trial, 0) for trial in range(5)]).trials == (0, 1, 2)


def test_members_that_are_not_compared_do_not_lower_the_number_of_a_configurations_members() -> None:
    candidates = Candidates.of([member(7, 0), member(7, 1), member(5, 1)])
    assert [item.fold for item in candidates.of_trial(7)] == [0, 1]


@pytest.mark.parametrize(("configurations", "count"), [(1, 1), (2, 7), (3, 22)])
def test_every_ratio_of_up_to_four_selections_is_listed_once(configurations: int, count: int) -> None:
    vectors = weight_vectors(configurations)
    assert len(vectors) == count
    shares = [tuple(np.array(vector) / sum(vector)) for vector in vectors]
    assert len(set(shares)) == count


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        pytest.param({(1, 0): 0.8, (0, 1): 0.7, (1, 1): 0.75}, (1, 0), id="the best alone"),
        pytest.param({(1, 0): 0.8, (0, 1): 0.7, (1, 1): 0.85}, (1, 1), id="half and half"),
        pytest.param({(1, 0): 0.8, (0, 1): 0.7, (2, 1): 0.9}, (2, 1), id="over a repeated best"),
        pytest.param({(1, 0): 0.8, (0, 1): 0.8, (1, 1): 0.8}, (1, 0), id="a tie goes to the better configuration"),
    ],
)
def test_selection_keeps_the_best_of_its_path(scores: dict[tuple[int, ...], float], expected: tuple[int, ...]) -> None:
    table = {counts: scores.get(counts, 0.0) for counts in weight_vectors(2)}
    assert greedy_selection(table) == expected


def test_the_dice_of_a_case_are_counted_in_the_memory_of_a_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensembling, "_COUNTED_VOXELS", 64 * 64)
    prediction, label = np.random.default_rng(0).integers(0, 3, (2, 64, 64, 64)).astype(np.uint8)
    prediction[prediction == 2], label[label == 2] = 0, 1
    tracemalloc.start()
    dice = ensembling._dice_row(prediction, label, range(1, 3))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    expected = 2 * (prediction * label).sum() / (prediction.sum(dtype=int) + label.sum(dtype=int))
    assert dice == pytest.approx([expected, np.nan], nan_ok=True)
    assert peak < label.nbytes


def test_classes_that_a_case_lacks_do_not_count_in_its_mean() -> None:
    dice = np.array([[0.5, np.nan, np.nan], [0.7, 0.2, np.nan]])
    assert mean_dice(dice) == pytest.approx((0.6 + 0.2) / 2)
    assert mean_dice(np.full((2, 1), np.nan)) == 0


def test_components_are_kept_only_for_classes_that_gain_more_than_chance() -> None:
    plain = np.array([[[0.5, 0.5, np.nan]]])
    largest = np.array([[[0.6, 0.50005, np.nan]]])
    choice = choose(OutOfFoldDice(((1,),), plain, largest, planned=1))
    assert choice.largest_component == (1,)
    assert choice.dice[:2] == (0.6, 0.5)
    assert choice.best_single_dice == 0.5


def test_out_of_fold_cases_take_turns_and_are_spread_over_each_fold(
    data: StudyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensembling, "MAX_CASES_PER_FOLD", 2)
    folds = (("a", "b", "c", "d"), ("e",))
    chosen = ensembling._out_of_fold_cases(
        Candidates.of([member(0, 0), member(0, 1)]),
        data.model_copy(update={"split": Split(seed=0, test=(), folds=folds)}),
    )
    assert chosen == [(0, "a"), (1, "e"), (0, "c")]
    assert all(one != other for one, other in pairwise(chosen))
