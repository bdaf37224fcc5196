"""Starts a real Prometheus that scrapes a namespace of the cluster as docs/runbooks/README.md says, and asks it.

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from real_cluster import kubectl

ROOT = Path(__file__).parents[1]
RULES = ROOT / "charts" / "automonai" / "files" / "rules.yaml"
PORT = 19090


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

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]


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


def configuration(targets: Path) -> dict[str, Any]:
    """Return what the server is to do; how pods become targets is the documentation's own snippet."""
    snippet = re.search(r"```yaml\n(relabel_configs:.*?)```", (ROOT / "docs/runbooks/README.md").read_text(), re.DOTALL)
    assert snippet is not None
    discovery = {"files": [str(targets)], "refresh_interval": "5s"}
    job = {"job_name": "pods", "honor_labels": True, "file_sd_configs": [discovery], **yaml.safe_load(snippet[1])}
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [job],
    }


@contextmanager
def _discovering(namespace: str, targets: Path) -> Iterator[None]:
    """Keep a file of the namespace's targets, each second's."""
    stop = threading.Event()

    def discover() -> None:
        while not stop.wait(1.0):
            pods = json.loads(kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"]
            new = targets.with_suffix(".new")
            new.write_text(json.dumps(pod_targets(pods)))
            new.replace(targets)

    thread = threading.Thread(target=discover, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def running(namespace: str, folder: Path) -> Iterator[Prometheus]:
    """Run a server that keeps its data in a folder."""
    config, targets = folder / "prometheus.yaml", folder / "targets.json"
    config.write_text(yaml.safe_dump(configuration(targets)))
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with _discovering(namespace, targets), (folder / "prometheus.log").open("w") as log:
        server = subprocess.Popen(
            ["prometheus", *options, f"--web.listen-address=127.0.0.1:{PORT}"], stdout=log, stderr=log
        )
        try:
            prometheus = Prometheus(f"http://127.0.0.1:{PORT}")
            deadline = time.monotonic() + 60
            while not prometheus.is_ready():
                assert server.poll() is None, (folder / "prometheus.log").read_text()
                assert time.monotonic() < deadline, "Prometheus did not start"
                time.sleep(0.2)
            yield prometheus
        finally:
            server.terminate()
            server.wait(timeout=30)
