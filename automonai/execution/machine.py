"""What this machine has: cores, memory, GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from automonai.domain.records import Record

HEADROOM = 0.8
"""Share of the memory that runs may plan with; the rest is the interpreter's, the file cache's and the controller's."""


class Gpu(Record):
    """One CUDA device."""

    id: str
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
    """Return this machine's facts; GPUs as `nvidia-smi` tells them, none where it is missing."""
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        gpus=_gpus(),
    )


def _memory_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _gpus() -> tuple[Gpu, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    if answer.returncode != 0:
        return ()
    rows = [line.split(", ") for line in answer.stdout.splitlines() if line.count(", ") >= 2]
    return tuple(Gpu(id=row[0], name=row[1], memory_bytes=int(row[-1]) * 2**20) for row in rows)
