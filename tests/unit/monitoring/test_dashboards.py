from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from exposition import exposed_names
from promql import expressions, filled, metric_names

from scripts.monitoring.__main__ import DASHBOARDS, FILES, documents
from scripts.monitoring.grafana import ARGO_URL

UNITS = {"none", "s", "h", "bytes", "Bps", "reqps", "watt", "percentunit", "suffix: patches/s", "suffix: steps/s"}
"""Of Grafana's; what follows `suffix:` stands as it is."""


def dashboard(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FILES / "dashboards" / f"{name}.json").read_text())
    return loaded


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_what_is_written_is_what_the_script_makes(path: Path) -> None:
    assert path.read_text() == documents()[path], "stale: run 'python -m scripts.monitoring'"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_panel_says_what_it_shows_in_which_unit(name: str) -> None:
    for panel in dashboard(name)["panels"]:
        assert panel["description"].endswith((".", "empty.")), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_thresholds_start_with_a_base_and_rise(name: str) -> None:
    for panel in dashboard(name)["panels"]:
        base, *steps = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert base is None
        assert steps == sorted(steps)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_do_not_overlap_and_fit_the_page(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard(name)["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_variable_that_is_used_is_there(name: str) -> None:
    made = dashboard(name)
    variables = {variable["name"] for variable in made["templating"]["list"]}
    assert {"datasource", "namespace", "study"} <= variables
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(made))) - {"__rate_interval", "__all"}
    assert used <= variables


def test_uids_are_fixed_for_links_from_outside() -> None:
    uids = {name: dashboard(name)["uid"] for name in DASHBOARDS}
    assert uids == {"studies": "automonai-studies", "runs": "automonai-runs", "capacity": "automonai-capacity"}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_leads_to_the_studys_workflow_and_to_the_others(name: str) -> None:
    others, workflow = dashboard(name)["links"]
    assert others["type"] == "dashboards"
    assert others["tags"] == dashboard(name)["tags"]
    assert workflow["url"] == f"{ARGO_URL}/workflows/${{namespace}}/${{owner}}"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_promtool_can_parse_every_expression(name: str, promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"panel{number}:x", "expr": filled(expression)}
        for number, (_, expression) in enumerate(expressions(dashboard(name)))
    ]
    assert rules
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    answer = subprocess.run([promtool, "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_metric_of_a_panel_is_one_that_the_code_exposes(name: str) -> None:
    used = {metric for _, expression in expressions(dashboard(name)) for metric in metric_names(expression)}
    assert used - exposed_names() == set()
