"""Starts a real Prometheus that scrapes a namespace of the cluster as docs/runbooks/README.md says, and asks it.

A real Alertmanager, which it may tell of its alerts, is started likewise.

Debian builds Prometheus without `kubernetes_sd_configs`. So its file discovery is fed here with what the Kubernetes API
says of the pods, under the labels that Prometheus' own discovery (role pod) gives them; the rest is documented.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from real_cluster import kubectl

ROOT = Path(__file__).parents[1]
RULES = ROOT / "charts" / "automonai" / "files" / "rules.yaml"
PORT, ALERTMANAGER_PORT = 19090, 19093


@dataclass(frozen=True)
class Prometheus:
    """A running server, by its HTTP API."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query; a fault of the expression raises HTTPError."""
        data: dict[str, Any] = self._get("query", query=expression)
        found: list[dict[str, Any]] = data["result"]
        return found

    def value(self, expression: str) -> float | None:
        """Return the only series' value, None if there is no series."""
        series = self.query(expression)
        assert len(series) <= 1, f"{expression} has {len(series)} series"
        return float(series[0]["value"][1]) if series else None

    def rules(self) -> list[dict[str, Any]]:
        groups = self._get("rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def scrape_urls(self) -> dict[str, str]:
        """Return the address of each target that answers, by its rung; the controller's is empty."""
        targets = self._get("targets", state="active")["activeTargets"]
        return {target["labels"].get("rung", ""): target["scrapeUrl"] for target in targets if target["health"] == "up"}

    def _get(self, path: str, **parameters: str) -> Any:
        return _fetch(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")["data"]


@dataclass(frozen=True)
class Alertmanager:
    """A running server, by its HTTP API."""

    url: str

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that it holds for unresolved."""
        found: list[dict[str, Any]] = _fetch(f"{self.url}/api/v2/alerts")
        return found


def _fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def pod_targets(pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a target for each port of each pod that has an address, as `kubernetes_sd_configs` makes them."""
    return [
        {"targets": [f"{pod['status']['podIP']}:{port['containerPort']}"], "labels": _meta(pod, port)}
        for pod in pods
        if pod["status"].get("podIP")
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
    ]


def _meta(pod: dict[str, Any], port: dict[str, Any]) -> dict[str, str]:
    metadata = pod["metadata"]
    made = {
        "namespace": metadata["namespace"],
        "pod_name": metadata["name"],
        "pod_phase": pod["status"]["phase"],
        "pod_container_port_name": port.get("name", ""),
    }
    for kind in ("label", "annotation"):
        for name, value in metadata.get(f"{kind}s", {}).items():
            made[f"pod_{kind}_{re.sub('[^a-zA-Z0-9_]', '_', name)}"] = value
    return {f"__meta_kubernetes_{name}": value for name, value in made.items()}


def configuration(targets: Path, *, rules: Path = RULES, alertmanager: Alertmanager | None = None) -> dict[str, Any]:
    """Return what the server is to do; how pods become targets is the documentation's own snippet."""
    snippet = re.search(r"```yaml\n(relabel_configs:.*?)```", (ROOT / "docs/runbooks/README.md").read_text(), re.DOTALL)
    assert snippet is not None
    discovery = {"files": [str(targets)], "refresh_interval": "5s"}
    job = {"job_name": "pods", "honor_labels": True, "file_sd_configs": [discovery], **yaml.safe_load(snippet[1])}
    told = [] if alertmanager is None else [alertmanager.url.removeprefix("http://")]
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [job],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": told}]}]},
    }


@contextmanager
def _discovering(namespace: str, targets: Path, played: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Keep a file of the namespace's targets, each second's."""
    stop = threading.Event()

    def discover() -> None:
        while not stop.wait(1.0):
            pods = json.loads(kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"]
            new = targets.with_suffix(".new")
            new.write_text(json.dumps(pod_targets([*pods, *played])))
            new.replace(targets)

    thread = threading.Thread(target=discover, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def running(
    namespace: str,
    folder: Path,
    *,
    rules: Path = RULES,
    alertmanager: Alertmanager | None = None,
    played: Sequence[dict[str, Any]] = (),
) -> Iterator[Prometheus]:
    """Run a server that keeps its data in a folder.

    Args:
        namespace: Whose pods it scrapes.
        folder: Its own.
        rules: A file of them.
        alertmanager: Is told of alerts; None: nobody.
        played: Pods that it takes to be in the namespace, too, as the API would describe them.
    """
    config, targets = folder / "prometheus.yaml", folder / "targets.json"
    config.write_text(yaml.safe_dump(configuration(targets, rules=rules, alertmanager=alertmanager)))
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with (
        _discovering(namespace, targets, played),
        _serving("prometheus", *options, port=PORT, folder=folder) as url,
    ):
        yield Prometheus(url)


@contextmanager
def running_alertmanager(folder: Path) -> Iterator[Alertmanager]:
    """Run a server that keeps its data in a folder and notifies nobody."""
    config = folder / "alertmanager.yaml"
    config.write_text(yaml.safe_dump({"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]}))
    options = [f"--config.file={config}", f"--storage.path={folder / 'alerts'}", "--cluster.listen-address="]
    with _serving("prometheus-alertmanager", *options, port=ALERTMANAGER_PORT, folder=folder) as url:
        yield Alertmanager(url)


@contextmanager
def _serving(program: str, *options: str, port: int, folder: Path) -> Iterator[str]:
    """Run a server of the Prometheus family, which has a log in a folder; give its address once it is ready."""
    path, url = folder / f"{program}.log", f"http://127.0.0.1:{port}"
    with path.open("w") as log:
        server = subprocess.Popen([program, *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while not _is_ready(url):
                assert server.poll() is None, path.read_text()
                assert time.monotonic() < deadline, f"{program} did not start"
                time.sleep(0.2)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=30)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=5):
            return True
    except OSError:
        return False
