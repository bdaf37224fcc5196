"""What this machine has: cores, memory, GPUs."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from automonai.domain.records import Record
from automonai.errors import SpecError
from automonai.host import usable_cores, usable_memory_bytes
from automonai.spec import ExecutionSpec

logger = logging.getLogger(__name__)

HEADROOM = 0.8
"""Share of the memory that runs may plan with; the rest is the interpreter's, the file cache's and the controller's."""
PATIENCE_SECONDS = 20.0
"""For nvidia-smi, which wakes every GPU first."""


class Gpu(Record):
    """One CUDA device."""

    id: str
    """As CUDA_VISIBLE_DEVICES takes it."""
    name: str
    memory_bytes: int


class Machine(Record):
    """What runs may use; cores and memory respect this process's affinity and control group."""

    cores: int
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()

    def threads_per_run(self, parallel_runs: int) -> int:
        """Return each run's share of the cores, at least one."""
        return max(1, self.cores // parallel_runs)

    def memory_per_run(self, parallel_runs: int, *, on_gpu: bool) -> int:
        """Return what each run may plan with, in bytes: its share of the smallest GPU, or of the machine."""
        if on_gpu and self.gpus:
            sharing = -(-parallel_runs // len(self.gpus))
            return int(min(gpu.memory_bytes for gpu in self.gpus) * HEADROOM / sharing)
        return int(self.memory_bytes * HEADROOM / parallel_runs)


def detect_machine() -> Machine:
    """Return this machine's facts.

    GPUs are those that `nvidia-smi` tells of, none where it is missing or torch was built for CPUs only, and of them
    those that CUDA_VISIBLE_DEVICES names, if it is set.
    """
    return Machine(cores=usable_cores(), memory_bytes=usable_memory_bytes(), gpus=_gpus())


def memory_kills() -> int:
    """Return how many processes the kernel has ended for lack of memory since it was started; 0 if it does not say."""
    file = Path("/proc/vmstat")
    counts = dict(line.split() for line in file.read_text().splitlines()) if file.is_file() else {}
    return int(counts.get("oom_kill", 0))


def refuse_unusable(execution: ExecutionSpec) -> None:
    """Refuse a GPU or a precision that a spec demands and this machine does not have; every run would fail for it.

    Only torch knows. It is asked in a process of its own, and only about what can be missing.

    Raises:
        SpecError: Naming the field.
    """
    if execution.device != "cuda" and execution.precision != "float16":
        return
    question = [sys.executable, "-P", "-m", "automonai.learning.precision", execution.model_dump_json()]
    answer = subprocess.run(question, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise SpecError((answer.stderr.splitlines() or [f"torch does not start ({answer.returncode})"])[-1])


def _gpus() -> tuple[Gpu, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total,name", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        logger.warning("nvidia-smi did not answer within %.0f s; no GPU is counted on", PATIENCE_SECONDS)
        return ()
    if answer.returncode != 0:
        return ()
    rows = [line.split(", ", 3) for line in answer.stdout.splitlines() if line.count(", ") >= 3]
    # By UUID: CUDA's own numbers put the fastest card first, nvidia-smi's go by the bus.
    found = {row[0]: Gpu(id=row[1], name=row[3], memory_bytes=_gpu_memory_bytes(row[2])) for row in rows}
    if found and (torch := _torch_version()).endswith("+cpu"):
        known = (
            "there is a GPU that torch %s, a build for CPUs, does not use; install the build with CUDA of that version"
        )
        logger.warning(known, torch)
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(found.values())
    named = [(entry.strip(), number, gpu) for entry in visible.split(",") for number, gpu in found.items()]
    return tuple(gpu.model_copy(update={"id": entry}) for entry, number, gpu in named if _is_named(gpu, number, entry))


def _torch_version() -> str:
    """Return the installed torch's version without importing it, `+cpu` at its end for a build without CUDA."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def _gpu_memory_bytes(mebibytes: str) -> int:
    """Return a GPU's memory; where nvidia-smi says [N/A] it is the machine's, which the two share."""
    return int(mebibytes) * 2**20 if mebibytes.isdecimal() else usable_memory_bytes()


def _is_named(gpu: Gpu, number: str, entry: str) -> bool:
    """Whether an entry of CUDA_VISIBLE_DEVICES means a GPU: by its number, or by the start of its UUID."""
    return entry == number or (entry.startswith("GPU-") and gpu.id.startswith(entry))
