"""What `automonai init` proposes: the timing of the machine is made up, everything else is real."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml

from automonai import api
from automonai.domain.configuration import Configuration
from automonai.errors import SpecError
from automonai.execution.machine import Gpu, Machine
from automonai.imaging.checking import CheckedDataset
from automonai.initial_spec import initial_spec
from automonai.learning import timing
from automonai.spec import StudySpec, parse_spec

MACHINE = Machine(cores=2, memory_bytes=16 * 2**30, gpus=())
LARGE = (240, 240, 155)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> CheckedDataset:
    return api.check(api.phantom(tmp_path_factory.mktemp("data") / "phantom", cases=8, shape=(24, 24, 20)))


def of_shape(checked: CheckedDataset, shape: tuple[int, int, int], *, cases: int = 8) -> CheckedDataset:
    """Return a dataset of so many cases of one shape."""
    (first, facts), *_ = zip(checked.dataset.cases, checked.facts.values(), strict=True)
    many = tuple(first.model_copy(update={"id": f"case_{number}"}) for number in range(cases))
    sized = facts.model_copy(update={"shape_voxels": shape, "box_shape": shape})
    dataset = checked.dataset.model_copy(update={"cases": many})
    facts = {case.id: sized.model_copy(update={"id": case.id}) for case in many}
    return CheckedDataset(dataset=dataset, facts=facts, digests={})


@pytest.fixture(autouse=True)
def step_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "seconds_per_step", lambda plan, execution, threads: 0.3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def proposed(checked: CheckedDataset, budget: str | None, *, machine: Machine = MACHINE) -> StudySpec:
    text = initial_spec(checked, path="data", machine=machine, budget=budget, name=None)
    return parse_spec(yaml.safe_load(text), where="init")


@pytest.mark.parametrize(
    ("budget", "field", "value"), [("1h", "time", 3600.0), ("500 epochs", "epochs", 500), (None, "iterations", 5)]
)
def test_the_budget_stands_in_the_spec(checked: CheckedDataset, budget: str | None, field: str, value: float) -> None:
    assert getattr(proposed(checked, budget).budget, field) == value


@pytest.mark.parametrize(("budget", "is_told"), [("1h", True), ("500 epochs", True), (None, False)])
def test_how_many_iterations_fit_is_told_where_the_budget_is_none(
    checked: CheckedDataset, budget: str | None, is_told: bool
) -> None:
    text = initial_spec(checked, path="data", machine=MACHINE, budget=budget, name=None)
    found = re.search(r"# at the standard configuration's cost some (\d+) iterations fit it", text)
    assert (found is not None) is is_told
    assert found is None or int(found[1]) > 5


def test_a_budget_that_means_nothing_is_refused(checked: CheckedDataset) -> None:
    with pytest.raises(SpecError, match="soon"):
        proposed(checked, "soon")


def test_the_standard_configuration_lies_in_the_space(checked: CheckedDataset) -> None:
    spec = proposed(of_shape(checked, LARGE), "20m")
    assert spec.search.standard["first_stride"] == 2
    assert spec.search.space["foreground_oversampling"] == spec.search.standard["foreground_oversampling"]


def test_small_volumes_are_validated_as_often_as_usual(checked: CheckedDataset) -> None:
    assert proposed(of_shape(checked, (36, 50, 35), cases=200), "1h").training.validation_every_epochs == 5


def test_a_few_large_volumes_are_validated_seldom_and_their_validations_are_reckoned_with(
    checked: CheckedDataset,
) -> None:
    spec = proposed(of_shape(checked, LARGE), "20m")
    assert 20 < spec.training.validation_every_epochs <= 30  # epochs of two steps, and 60 steps are the least
    steps_alone = 4.0 * 2 * 0.3  # the cap, with the steps of an epoch alone
    assert spec.budget.max_seconds_per_epoch > 1.5 * steps_alone


def test_a_validation_is_reckoned_with_the_cases_that_it_scores_however_many_are_held_out(
    checked: CheckedDataset,
) -> None:
    few, many = (proposed(of_shape(checked, LARGE, cases=cases), "20h") for cases in (400, 4000))
    assert few.training.validation_every_epochs == many.training.validation_every_epochs == 5
    caps = few.budget.max_seconds_per_epoch, many.budget.max_seconds_per_epoch
    assert caps[0] < caps[1] < 5 * caps[0]  # the steps alone take ten times as long


def with_gpu(gib: float) -> Machine:
    return MACHINE.model_copy(update={"gpus": (Gpu(id="0", name="A card", memory_bytes=int(gib * 2**30)),)})


@pytest.mark.parametrize(("cases", "folds"), [(3, 2), (4, 3), (5, 4), (8, 4)])
def test_few_cases_make_fewer_folds(checked: CheckedDataset, cases: int, folds: int) -> None:
    assert proposed(of_shape(checked, (24, 24, 20), cases=cases), "1h").split.folds == folds


@pytest.mark.parametrize("memory_gib", [3.0, 0.1])
def test_a_machine_of_little_memory_gets_the_smallest_patches_or_is_told_what_is_missing(
    checked: CheckedDataset, memory_gib: float
) -> None:
    labels = {number: f"structure {number}" for number in range(118)}
    many = replace(
        of_shape(checked, LARGE), dataset=of_shape(checked, LARGE).dataset.model_copy(update={"labels": labels})
    )
    machine = Machine(cores=1, memory_bytes=int(memory_gib * 2**30))
    if memory_gib > 1:
        spec = proposed(many, "1h", machine=machine)
        assert spec.training.max_patch_voxels < 64**3
    else:
        with pytest.raises(SpecError, match="GiB for 118 classes, and a run may have 0.1 GiB here"):
            proposed(many, "1h", machine=machine)


@pytest.mark.parametrize(
    ("gib", "max_patch_voxels", "channels"),
    [(80, 128**3, 32), (24, 128**3, 32), (6, 128**3 // 2, 32), (3, 128**3 // 4, 32), (1, 64**3, 16), (0.5, 64**3, 8)],
)
def test_a_gpu_of_little_memory_gets_smaller_patches_then_fewer_channels(
    checked: CheckedDataset, gib: float, max_patch_voxels: int, channels: int
) -> None:
    spec = proposed(of_shape(checked, LARGE), "1h", machine=with_gpu(gib))
    standard = Configuration.model_validate(spec.search.standard)
    assert (spec.training.max_patch_voxels, standard.channels) == (max_patch_voxels, channels)
    assert standard.depth == 5


def test_a_gpu_that_others_have_filled_is_told(checked: CheckedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(timing, "seconds_per_step", fail)
    with pytest.raises(SpecError, match="less memory free"):
        proposed(checked, "1h", machine=with_gpu(24))


def test_a_gpu_that_torch_alone_sees_is_used(checked: CheckedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    slice_of_gpu = SimpleNamespace(name="NVIDIA H100 MIG 1g.10gb", total_memory=10 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: slice_of_gpu)
    text = initial_spec(checked, path="data", machine=MACHINE, budget="1h", name=None)
    assert "on NVIDIA H100 MIG 1g.10gb." in text
    assert parse_spec(yaml.safe_load(text)).execution.max_parallel_runs == 1
