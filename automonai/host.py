"""What this process may use of the machine that it runs on, by its affinity and its control group."""

from __future__ import annotations

import os
from pathlib import Path

THREADS_ALONE = "AUTOMONAI_THREADS_ALONE"
"""Names the threads that a worker may compute on while no other one works: OMP_NUM_THREADS is one run's share."""
CONTROL_GROUP = Path("/sys/fs/cgroup")
"""This container's: settings of version 2, or folders of version 1."""


def usable_cores() -> int:
    """Return the cores of this process's affinity, or fewer where its control group has a quota (docker's --cpus)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _setting("cpu.max").partition(" ")
    if not quota:
        quota, period = _setting("cpu/cpu.cfs_quota_us"), _setting("cpu/cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit():  # "max" or -1: no quota
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def usable_memory_bytes() -> int:
    """Return the memory of the machine, or of this container if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _setting("memory.max") or _setting("memory/memory.limit_in_bytes")
    return min(total, int(limit)) if limit.isdigit() else total


def _setting(name: str) -> str:
    """Return a setting of the control group; empty where there is none."""
    file = CONTROL_GROUP / name
    return file.read_text().strip() if file.is_file() else ""
