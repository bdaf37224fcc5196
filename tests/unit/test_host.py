"""A container's own limits count, whichever version its control group is of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from automonai import host
from automonai.host import usable_cores, usable_memory_bytes

MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
UNLIMITED = "9223372036854771712"


@pytest.fixture
def control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a container's settings on a machine of eight cores."""
    monkeypatch.setattr(host, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), (None, 8)])
def test_a_quota_of_cpu_time_counts_as_so_many_cores(quota: str | None, cores: int, control_group: Path) -> None:
    if quota is not None:
        (control_group / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("250000", 2)])
def test_so_does_one_of_the_first_version(quota: str, cores: int, control_group: Path) -> None:
    (control_group / "cpu").mkdir()
    (control_group / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
    (control_group / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores() == cores


@pytest.mark.parametrize("limit", ["memory.max", "memory/memory.limit_in_bytes"])
@pytest.mark.parametrize(
    ("value", "expected"), [("1048576", 2**20), ("max", MEMORY), (UNLIMITED, MEMORY), (None, MEMORY)]
)
def test_memory_is_the_containers_limit(limit: str, value: str | None, expected: int, control_group: Path) -> None:
    (control_group / "memory").mkdir()
    if value is not None:
        (control_group / limit).write_text(f"{value}\n")
    assert usable_memory_bytes() == expected
