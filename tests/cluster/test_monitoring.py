"""A real Prometheus scrapes a study that runs on the cluster: which panels and rules have data, and are they right?"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from prometheus_server import ROOT, Prometheus, running
from promql import expressions, filled
from real_cluster import DATASET, phase, store_on_this_machine, submit

from automonai.domain.run import Result
from automonai.storage import keys
from automonai.storage.opening import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

logger = logging.getLogger(__name__)

STUDY = "scraped"
SPEC = """
split: {test: 0.25, folds: 2}
search: {space: {depth: 2, channels: {type: ordinal, values: [4, 8]}}, standard: {depth: 2, channels: 4}}
budget: {iterations: 1, min_epochs: 400, max_epochs: 1200, eta: 3}
refit: {epochs: 400}
training: {max_patch_voxels: 4096, validation_every_epochs: 50}
execution: {device: cpu, threads: 1}
"""
ONLY_ON_GPUS = {
    ("runs", "GPU utilisation"),
    ("runs", "GPU memory"),
    ("runs", "GPU memory against the card"),
    ("runs", "GPU power"),
    ("capacity", "GPU utilisation of the study"),
    ("capacity", "GPU utilisation of the namespace's pods"),
    ("capacity", "GPU power of the study"),
}
SERIES_OF_A_TRIAL = 131
"""The budget that docs/monitoring.md states for a training of three classes."""
ENDED = ("Succeeded", "Failed", "Error")


@dataclass
class Seen:
    """What Prometheus said while the study ran."""

    panels: dict[tuple[str, str], int] = field(default_factory=dict)
    """Dashboard and title to the most series that the panel had."""
    faults: set[str] = field(default_factory=set)
    """Of promtool, about an exposition; and of Prometheus, about a rule."""
    rungs: set[str] = field(default_factory=set)
    """Whose expositions promtool has checked; the controller's is empty."""
    series_of_a_trial: int = 0
    runs: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metric of ended runs to rung and value, as last seen."""


@pytest.fixture(scope="module")
def seen(release: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Run a study, watch it with Prometheus until it is over, and give what was seen; its results can still be read."""
    for program in ("prometheus", "promtool"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH")
    if "ARGO_URL" not in os.environ:
        pytest.skip("ARGO_URL is not set: there is no Argo server to submit to")
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        store_on_this_machine(release, monkeypatch),
        running(release, tmp_path_factory.mktemp("monitoring")) as prometheus,
    ):
        yield watched(prometheus, release)


def watched(prometheus: Prometheus, namespace: str) -> Seen:
    form = {
        "dataset": DATASET,
        "name": STUDY,
        "parallel-runs": "2",
        "gpus-per-run": "1",
        "spec": SPEC,
    }
    workflow = submit(namespace, form)
    seen = Seen()
    deadline = time.monotonic() + 900
    while phase(namespace, workflow) not in ENDED:
        assert time.monotonic() < deadline, f"{workflow} did not end"
        look(prometheus, namespace, seen)
        time.sleep(2)
    assert phase(namespace, workflow) == "Succeeded"
    return seen


def look(prometheus: Prometheus, namespace: str, seen: Seen) -> None:
    """Add what Prometheus says now."""
    for path in sorted((ROOT / "charts/automonai/files/dashboards").glob("*.json")):
        for title, expression in expressions(json.loads(path.read_text())):
            asked = filled(expression, namespace=namespace, study=STUDY)
            place = (path.stem, title)
            seen.panels[place] = max(seen.panels.get(place, 0), len(prometheus.query(asked)))
    seen.faults |= {rule["lastError"] for rule in prometheus.rules() if rule.get("lastError")}
    for rung, url in prometheus.scrape_urls().items():
        if rung not in seen.rungs:
            check_exposition(url, seen)
            seen.rungs.add(rung)
    counted = prometheus.query('count by (trial, rung, pod) ({__name__=~"automonai_.+", rung!="", pod!=""})')
    alive = [int(series["value"][1]) for series in counted if series["metric"].get("trial")]
    seen.series_of_a_trial = max([seen.series_of_a_trial, *alive])
    for metric in ("automonai_run_peak_memory_bytes", "automonai_run_throughput_patches_per_second"):
        for series in prometheus.query(f'max by (rung) ({metric}{{study="{STUDY}"}})'):
            seen.runs.setdefault(metric, {})[series["metric"]["rung"]] = float(series["value"][1])


def check_exposition(url: str, seen: Seen) -> None:
    """Let promtool read what a pod shows; a pod that has ended meanwhile is nothing to complain of."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            exposition = answer.read()
    except OSError:
        return
    done = subprocess.run(["promtool", "check", "metrics"], input=exposition, capture_output=True, check=False)
    if done.returncode:
        seen.faults.add(f"{url}: {done.stderr.decode()}{done.stdout.decode()}")


def results() -> list[Result]:
    store = open_store(f"s3://automonai/studies/{STUDY}")
    found = [key for key in store.list(keys.RUNS) if key.endswith("/result.json")]
    return [Result.model_validate_json(store.get(key)) for key in found]


def test_every_panel_has_data_but_those_of_gpus(seen: Seen) -> None:
    for (dashboard, title), count in seen.panels.items():
        logger.info("%s, %s: %d series", dashboard, title, count)
    empty = {place for place, count in seen.panels.items() if not count}
    assert empty - ONLY_ON_GPUS == set()


def test_promtool_and_prometheus_find_no_fault(seen: Seen) -> None:
    assert "" in seen.rungs, "the controller was never scraped"
    assert len(seen.rungs) > 1, "no training was ever scraped"
    assert seen.faults == set()


def test_a_trial_has_few_series(seen: Seen) -> None:
    assert 0 < seen.series_of_a_trial <= SERIES_OF_A_TRIAL


@pytest.mark.parametrize(
    ("metric", "attribute"),
    [
        ("automonai_run_peak_memory_bytes", "peak_memory_bytes"),
        ("automonai_run_throughput_patches_per_second", "patches_per_second"),
    ],
)
def test_what_ended_runs_reported_is_what_prometheus_has(seen: Seen, metric: str, attribute: str) -> None:
    reported = [getattr(result, attribute) for result in results()]
    assert seen.runs[metric]
    for value in seen.runs[metric].values():
        assert any(one == pytest.approx(value) for one in reported if one is not None)
