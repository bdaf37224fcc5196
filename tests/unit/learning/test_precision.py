from __future__ import annotations

import pytest
import torch

from automonai.errors import BadRequestError
from automonai.host import THREADS_ALONE
from automonai.learning import precision
from automonai.learning.precision import (
    Precision,
    choose_device,
    choose_devices,
    choose_precision,
    limit_threads,
    refusal,
)
from automonai.spec import ExecutionSpec

CPU = torch.device("cpu")


def test_the_spec_overrides_the_precision() -> None:
    assert choose_precision(ExecutionSpec(precision="float32"), CPU) == torch.float32
    assert choose_precision(ExecutionSpec(precision="bfloat16"), CPU) == torch.bfloat16


def test_float16_on_a_cpu_is_refused() -> None:
    with pytest.raises(BadRequestError, match="float16"):
        choose_precision(ExecutionSpec(precision="float16"), CPU)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(ExecutionSpec()) == CPU
    with pytest.raises(BadRequestError, match="no GPU"):
        choose_device(ExecutionSpec(device="cuda"))


@pytest.mark.parametrize(("most_gpus", "names"), [(1, ["cuda"]), (2, ["cuda:0", "cuda:1"]), (8, ["cuda:0", "cuda:1"])])
def test_a_training_computes_on_as_many_gpus_as_it_may_and_sees(
    monkeypatch: pytest.MonkeyPatch, most_gpus: int, names: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(device) for device in choose_devices(ExecutionSpec(), most_gpus=most_gpus)] == names
    assert choose_devices(ExecutionSpec(device="cpu"), most_gpus=most_gpus) == (CPU,)


@pytest.mark.parametrize(
    ("stated", "all_stated", "is_alone", "threads"),
    [("3", None, False, 3), (None, None, False, 2), ("3", "6", False, 3), ("3", "6", True, 6), ("3", None, True, 3)],
)
def test_torch_takes_the_threads_that_are_stated_or_no_more_than_the_cores(
    monkeypatch: pytest.MonkeyPatch, stated: str | None, all_stated: str | None, is_alone: bool, threads: int
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(precision, "usable_cores", lambda: 2)
    for name, value in (("OMP_NUM_THREADS", stated), (THREADS_ALONE, all_stated)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    limit_threads(is_alone=is_alone)
    assert taken == [threads]


def test_a_refusal_names_the_field_and_without_one_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(ExecutionSpec(device="cpu", precision="bfloat16")) is None
    assert str(refusal(ExecutionSpec(device="cuda"))).startswith("execution.device is cuda")
    assert str(refusal(ExecutionSpec(precision="float16"))).startswith("execution.precision is float16")


def test_convolutions_run_in_the_chosen_type() -> None:
    convolution = torch.nn.Conv3d(1, 1, 1)
    with Precision(CPU, torch.bfloat16).autocast():
        assert convolution(torch.zeros(1, 1, 2, 2, 2)).dtype == torch.bfloat16
    with Precision(CPU, torch.float32).autocast():
        assert convolution(torch.zeros(1, 1, 2, 2, 2)).dtype == torch.float32
