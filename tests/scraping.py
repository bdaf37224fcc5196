"""Reading an endpoint of metrics as Prometheus does."""

from __future__ import annotations

import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Mapping
from contextlib import closing

import pytest
from prometheus_client.parser import text_string_to_metric_families


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def values(text: str) -> Mapping[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return an exposition's samples by name and labels; none stands there twice."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series = sample.name, frozenset(sample.labels.items())
            assert series not in found
            found[series] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float:
    """Return the one sample of that name that has at least these labels."""
    (found,) = (number for (known, own), number in values(text).items() if known == name and labels.items() <= own)
    return found


def promtool_complaints(text: str) -> str:
    """Return what `promtool check metrics` says; the test is skipped where there is none."""
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool, a part of Prometheus")
    answer = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    return answer.stdout + answer.stderr + ("" if answer.returncode == 0 else f"exit code {answer.returncode}")
