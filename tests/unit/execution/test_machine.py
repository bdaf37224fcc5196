"""What a machine is found to have: its GPUs, as nvidia-smi and CUDA_VISIBLE_DEVICES tell of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from automonai.errors import SpecError
from automonai.execution import machine
from automonai.execution.machine import Gpu, detect_machine, refuse_unusable
from automonai.spec import ExecutionSpec

TORCH_VERSION = machine._torch_version
ANSWER = """\
0, GPU-aaaa1111-0000, 81559, NVIDIA H100 80GB HBM3
1, GPU-bbbb2222-0000, 24576, NVIDIA A10, of two parts
"""


@pytest.fixture(autouse=True)
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program on the path that answers as nvidia-smi of two cards does."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{ANSWER}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "_torch_version", lambda: "2.13.0")
    return program


def test_every_gpu_is_found_with_what_names_it_for_cuda() -> None:
    assert detect_machine().gpus == (
        Gpu(id="GPU-aaaa1111-0000", name="NVIDIA H100 80GB HBM3", memory_bytes=81559 * 2**20),
        Gpu(id="GPU-bbbb2222-0000", name="NVIDIA A10, of two parts", memory_bytes=24576 * 2**20),
    )


@pytest.mark.parametrize(
    ("visible", "ids"),
    [
        ("1", ["1"]),
        ("1, 0", ["1", "0"]),
        ("GPU-bbbb", ["GPU-bbbb"]),
        ("", []),
        ("-1", []),
        ("7", []),
        ("GPU-cccc,0", ["0"]),
    ],
)
def test_only_the_gpus_that_the_user_named_are_used(
    monkeypatch: pytest.MonkeyPatch, visible: str, ids: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus = detect_machine().gpus
    assert [gpu.id for gpu in gpus] == ids
    if ids and ids[0] == "1":
        assert gpus[0].name.startswith("NVIDIA A10")


def test_without_a_driver_there_is_no_gpu(nvidia_smi: Path) -> None:
    nvidia_smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert detect_machine().gpus == ()


def test_gpus_that_the_installed_torch_cannot_use_are_told_and_not_counted_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine, "_torch_version", lambda: "2.13.0+cpu")
    assert detect_machine().gpus == ()
    assert "torch 2.13.0+cpu, a build for CPUs, does not use" in caplog.text


def test_torchs_version_is_found_without_it() -> None:
    assert TORCH_VERSION() == torch.__version__


def test_a_gpu_whose_memory_is_not_told_shares_the_machines(nvidia_smi: Path) -> None:
    nvidia_smi.write_text("#!/bin/sh\necho '0, GPU-aaaa1111-0000, [N/A], NVIDIA GB10'\n")
    found = detect_machine()
    assert [gpu.memory_bytes for gpu in found.gpus] == [found.memory_bytes]


def test_a_driver_that_does_not_answer_counts_as_none(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PATIENCE_SECONDS", 0.1)
    nvidia_smi.write_text("#!/bin/sh\nexec sleep 30\n")
    assert detect_machine().gpus == ()


@pytest.fixture
def torchless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever asks Python get a warning, then a refusal."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'some warning' >&2\necho 'execution.device is cuda, but' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


@pytest.mark.parametrize("demand", [{"device": "cuda"}, {"precision": "float16"}])
def test_what_torch_refuses_is_told_in_its_words(demand: dict[str, str], torchless: None) -> None:
    with pytest.raises(SpecError, match="^execution.device is cuda, but$"):
        refuse_unusable(ExecutionSpec.model_validate(demand))


@pytest.mark.parametrize("demand", [{}, {"device": "cpu"}, {"precision": "float32"}, {"precision": "bfloat16"}])
def test_what_no_machine_lacks_is_not_asked_about(demand: dict[str, str], torchless: None) -> None:
    refuse_unusable(ExecutionSpec.model_validate(demand))
