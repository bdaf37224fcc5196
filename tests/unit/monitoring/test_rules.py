from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from exposition import exposed_names
from prometheus_server import configuration, pod_targets
from promql import metric_names

from scripts.monitoring.__main__ import FILES
from scripts.monitoring.rules import ALERTS, RECORDINGS

RULES = FILES / "rules.yaml"
SCENES = Path(__file__).parent / "alerts"
RUNBOOKS = Path(__file__).parents[3] / "docs" / "runbooks"
NAMES = sorted({alert.name for alert in ALERTS})
POD = {
    "metadata": {"name": "p", "namespace": "n", "labels": {"automonai/study": "s"}},
    "spec": {"containers": [{"ports": [{"name": "metrics", "containerPort": 9109}]}]},
    "status": {"phase": "Running", "podIP": "10.0.0.1"},
}
ASKED_FOR = {
    "AutomonaiStudyStalled",
    "AutomonaiControllerDown",
    "AutomonaiRunsFailing",
    "AutomonaiQueuedTooLong",
    "AutomonaiGpuIdle",
    "AutomonaiStorageErrors",
    "AutomonaiDisruptionsPilingUp",
    "AutomonaiGpuMemoryNearLimit",
}


def run(*command: str) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def scene(name: str) -> list[dict[str, Any]]:
    loaded: dict[str, Any] = yaml.safe_load((SCENES / f"{name}.yaml").read_text())
    return [check for test in loaded["tests"] for check in test["alert_rule_test"]]


def test_promtool_finds_no_fault_in_the_rules(promtool: str) -> None:
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", str(RULES))


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_fires_when_it_should_and_is_silent_when_not(name: str, promtool: str) -> None:
    run(promtool, "test", "rules", str(SCENES / f"{name}.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_an_alerts_scenes_have_one_that_fires_and_one_that_does_not(name: str) -> None:
    checks = scene(name)
    assert {check["alertname"] for check in checks} == {name}
    assert {bool(check["exp_alerts"]) for check in checks} == {True, False}


def test_the_alerts_are_those_that_were_asked_for() -> None:
    assert set(NAMES) >= ASKED_FOR


@pytest.mark.parametrize("name", NAMES)
def test_an_alerts_page_says_what_it_means_how_to_see_it_and_what_to_do(name: str) -> None:
    page = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE)[:3] == ["What it means", "How to see it", "What to do"]


def test_no_page_is_for_an_alert_that_is_gone() -> None:
    assert {path.stem for path in RUNBOOKS.glob("Automonai*.md")} == set(NAMES)


def test_every_recorded_series_that_is_read_is_there_and_every_one_that_is_there_is_read() -> None:
    read = {name for rule in (*ALERTS, *RECORDINGS) for name in re.findall(r"\b\w+:\w+:\w+", rule.expr)}
    assert read == {recording.name for recording in RECORDINGS}


def test_a_prometheus_without_the_operator_takes_the_documented_settings(promtool: str, tmp_path: Path) -> None:
    targets, config = tmp_path / "targets.json", tmp_path / "prometheus.yaml"
    targets.write_text(json.dumps(pod_targets([POD])))
    config.write_text(yaml.safe_dump(configuration(targets)))
    run(promtool, "check", "config", str(config))


def test_every_metric_of_a_rule_is_one_that_the_code_exposes() -> None:
    rules = [*RECORDINGS, *ALERTS]
    assert {name for rule in rules for name in metric_names(rule.expr)} - exposed_names() == set()
