"""Each alert is made to fire by the fault that it is for: a real Prometheus tells it to a real Alertmanager.

The rules are the chart's own, but sixty times as fast: where they say an hour or a minute, these say a minute or a
second. The faults happen to studies on the cluster, whose timings are their own. Played are the two alerts about
GPUs: their training is our exposition of a card that does not exist.

The tests share four studies and follow one another; the last fault takes the store away from all of them.
"""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from faults import evict, scale_minio, signal_step
from prometheus_server import ROOT, RULES, Alertmanager, Prometheus, running, running_alertmanager
from real_cluster import DATASET, argo, eventually, kubectl, kubectl_json, submit
from scraping import free_port

from automonai.observability.exposition import Labelled, serve
from automonai.observability.gpu import GpuMetrics

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

FASTER = {"h": "m", "m": "s"}
SHOWN_SECONDS = 240.0
"""An alert is waited for so long: the slowest takes two and a half minutes on an idle machine."""
EVICTED, FAILING, ORPHANED, QUEUED, PLAYED = "evicted", "failing", "orphaned", "queued", "played"
LONG = """
split: {test: 0.25, folds: 2}
search:
  sampler: random
  space: {depth: 2, channels: 4, learning_rate: {type: real, low: 0.001, high: 0.01, log: true}}
  standard: {depth: 2, channels: 4, learning_rate: 0.003}
budget: {iterations: 40, min_epochs: 5000, max_epochs: 5000}
training: {max_patch_voxels: 4096, validation_every_epochs: 1}
execution: {device: cpu, threads: 1}
"""
"""No training of it ends within the test; each commits a checkpoint every second or so."""
TOO_SLOW = LONG.replace("max_epochs: 5000}", "max_epochs: 5000, max_seconds_per_epoch: 0.001}").replace("40", "10")
EVICTED_RUNS = 3
MORE_GPUS_THAN_THE_NODE_HAS = "8"
GIB = 2**30
CARD = SimpleNamespace(
    NVMLError=RuntimeError,
    nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
    nvmlDeviceGetMigMode=lambda _: (0, 0),
    nvmlDeviceIsMigDeviceHandle=lambda _: 0,
    nvmlDeviceGetIndex=lambda _: 0,
    nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=80 * GIB),
    nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=5),
    nvmlDeviceGetPowerUsage=lambda _: 90_000,
)
"""NVML of a machine whose only card is hardly used."""
ALLOCATOR = SimpleNamespace(
    number=0,
    uuid="played",
    allocated_bytes=lambda: 70 * GIB,
    reserved_bytes=lambda: 78 * GIB,
    peak_bytes=lambda: 78 * GIB,
)
"""PyTorch's, of a training that nearly fills it."""


@dataclass(frozen=True)
class Watched:
    """The studies' namespace, and who watches it."""

    namespace: str
    prometheus: Prometheus
    alertmanager: Alertmanager
    workflows: dict[str, str]
    """By study."""

    def alert(self, name: str, severity: str, study: str) -> dict[str, Any] | None:
        """Return an alert as Alertmanager has it; None while it does not fire."""
        wanted = {"alertname": name, "severity": severity, "study": study}
        found = [alert for alert in self.alertmanager.alerts() if wanted.items() <= alert["labels"].items()]
        return found[0] if found else None

    def pods(self, study: str, component: str) -> list[str]:
        """Return the names of a study's pods that run and stay: of its `trial`s, or of its `step` search."""
        selector = f"automonai/study={study},app.kubernetes.io/component={component}"
        return [
            pod["metadata"]["name"]
            for pod in kubectl_json("get", "pods", "-n", self.namespace, "-l", selector)["items"]
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]

    def sees(self, expression: str, *, seconds: float = 180.0) -> None:
        """Wait until Prometheus has series of an expression."""
        eventually(lambda: self.prometheus.query(expression), expression, seconds=seconds)


@pytest.fixture(scope="module")
def watched(release: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    for program in ("prometheus", "prometheus-alertmanager"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH")
    folder, workflows = tmp_path_factory.mktemp("alerts"), dict[str, str]()
    rules = folder / "rules.yaml"
    rules.write_text(yaml.safe_dump(faster(yaml.safe_load(RULES.read_text()))))
    with ExitStack() as stack:
        alertmanager = stack.enter_context(running_alertmanager(folder))
        training = stack.enter_context(played_training())
        prometheus = stack.enter_context(
            running(release, folder, rules=rules, alertmanager=alertmanager, played=[training])
        )
        stack.callback(scale_minio, release, 1)
        stack.callback(end, release, workflows)
        for name, spec, parallel_runs, gpus in (
            (FAILING, TOO_SLOW, 2, "0"),
            (EVICTED, LONG, EVICTED_RUNS, "0"),
            (ORPHANED, LONG, 1, "0"),
            (QUEUED, LONG, 1, MORE_GPUS_THAN_THE_NODE_HAS),
        ):
            form = {"dataset": DATASET, "name": name, "parallel-runs": str(parallel_runs), "gpus-per-run": gpus}
            workflows[name] = submit(release, {**form, "spec": spec})
        yield Watched(release, prometheus, alertmanager, workflows)


def faster(rules: dict[str, Any]) -> dict[str, Any]:
    """Return rules in which every time is a sixtieth: `for`, ranges, offsets, and how old the controller's loop is."""
    return {"groups": [{**group, "rules": [_faster(rule) for rule in group["rules"]]} for group in rules["groups"]]}


def _faster(rule: dict[str, Any]) -> dict[str, Any]:
    times = re.sub(r"(?<=\[)\w+(?=\])|(?<=offset )\w+", lambda time: _shorter(time[0]), rule["expr"])
    expr = re.sub(r"(?<=_timestamp_seconds\) > )\d+", lambda seconds: f"{int(seconds[0]) / 60:g}", times)
    return {**rule, "expr": expr, **({"for": _shorter(rule["for"])} if "for" in rule else {})}


def _shorter(duration: str) -> str:
    """Return a sixtieth of a duration such as 1h30m."""
    assert re.fullmatch(r"(\d+[hm])+", duration), duration
    return re.sub("[hm]", lambda unit: FASTER[unit[0]], duration)


@contextmanager
def played_training() -> Iterator[dict[str, Any]]:
    """Serve the metrics of a training on a GPU that is not there; give its pod as the Kubernetes API would."""
    port = free_port()
    gpu = GpuMetrics(ALLOCATOR, load=lambda: CARD)
    metadata = {
        "name": "played-training",
        "namespace": "played",
        "labels": {"automonai/study": PLAYED, "automonai/trial": "1", "automonai/rung": "9"},
        "annotations": {"prometheus.io/scrape": "true"},
    }
    with serve(Labelled(gpu, labels={"study": PLAYED, "trial": "1", "rung": "9"}), port=port, address="127.0.0.1"):
        yield {
            "metadata": metadata,
            "spec": {"containers": [{"ports": [{"name": "metrics", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": "127.0.0.1"},
        }


def end(namespace: str, workflows: dict[str, str]) -> None:
    """Delete studies' workflows, and their pods without waiting for what they still want to save."""
    if not workflows:
        return
    selector = f"automonai/study in ({','.join(workflows)})"
    kubectl("delete", "workflows", *workflows.values(), "-n", namespace, "--ignore-not-found", "--wait=false")
    kubectl("delete", "jobs,pods", "-l", selector, "-n", namespace, "--grace-period=1", "--wait=false")
    pods = ("get", "pods", "-l", selector, "-n", namespace)
    eventually(lambda: not kubectl_json(*pods)["items"], "the studies' pods are gone", pause=1.0)


def nothing_more(watched: Watched) -> None:
    """The fault was in the study, or in its exposition, from the beginning."""


def pods_are_evicted(watched: Watched) -> None:
    total = f'study:automonai_run_disruptions:sum{{study="{EVICTED}"}}'
    watched.sees(f"{total} == 0")
    piling_up = f"{total} - min_over_time({total}[1m]) > 5"

    def taken_away() -> bool:
        for pod in watched.pods(EVICTED, "trial"):
            with suppress(AssertionError):  # it may be gone by now
                evict(pod, watched.namespace, grace_seconds=1)
        return bool(watched.prometheus.query(piling_up))

    eventually(taken_away, "six pods are taken away within a minute", pause=1.0)


def controller_is_frozen(watched: Watched) -> None:
    watched.sees(f'automonai_train_epoch{{study="{ORPHANED}"}}')
    eventually(lambda: watched.alert("AutomonaiControllerDown", "critical", ORPHANED) is None, "all is well before")
    (pod,) = watched.pods(ORPHANED, "step")
    signal_step(signal.SIGSTOP, pod, watched.namespace)


def controller_is_gone(watched: Watched) -> None:
    """Terminate the workflow of the frozen controller, which cannot take its training along."""
    (pod,) = watched.pods(ORPHANED, "step")
    argo("PUT", f"{watched.namespace}/{watched.workflows[ORPHANED]}/terminate", {})
    kubectl("delete", "pod", pod, "-n", watched.namespace, "--grace-period=0", "--force", "--ignore-not-found")
    training = f'automonai_train_epoch{{study="{ORPHANED}"}}'
    watched.sees(f'{training} unless on (study) max_over_time(up{{study="{ORPHANED}", rung=""}}[5s])')


def store_goes_away(watched: Watched) -> None:
    """Leave no store; the fault lasts until the fixture ends it."""
    minio = kubectl_json("get", "statefulset", "automonai-minio", "-n", watched.namespace)
    if minio["spec"]["replicas"]:
        # A pod that comes up later would let the controller ask the store too early, and give up before its trainings.
        watched.sees(f'count(rate(automonai_train_steps_total{{study="{EVICTED}"}}[5s]) > 0) == {EVICTED_RUNS}')
        scale_minio(watched.namespace, 0)


@dataclass(frozen=True)
class Fault:
    """What an alert is for, made to happen to a study."""

    alert: str
    severity: str
    study: str
    happens: Callable[[Watched], None]


FAULTS: Sequence[Fault] = (
    Fault("AutomonaiRunsFailing", "warning", FAILING, nothing_more),
    Fault("AutomonaiDisruptionsPilingUp", "warning", EVICTED, pods_are_evicted),
    Fault("AutomonaiControllerDown", "critical", ORPHANED, controller_is_frozen),
    Fault("AutomonaiControllerDown", "critical", ORPHANED, controller_is_gone),
    Fault("AutomonaiQueuedTooLong", "warning", QUEUED, nothing_more),
    Fault("AutomonaiGpuIdle", "warning", PLAYED, nothing_more),
    Fault("AutomonaiGpuMemoryNearLimit", "warning", PLAYED, nothing_more),
    Fault("AutomonaiStorageErrors", "warning", EVICTED, store_goes_away),
    # The trainings wait for the store; when they have given up, the controller waits to write that down.
    Fault("AutomonaiStudyStalled", "warning", EVICTED, store_goes_away),
    Fault("AutomonaiStudyStalled", "critical", EVICTED, store_goes_away),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.alert}-{fault.happens.__name__}")
def test_alertmanager_shows_an_alert_after_the_fault_that_it_is_for(watched: Watched, fault: Fault) -> None:
    fault.happens(watched)

    def shown() -> dict[str, Any] | None:
        return watched.alert(fault.alert, fault.severity, fault.study)

    eventually(shown, f"{fault.alert} ({fault.severity}) fires for {fault.study}", seconds=SHOWN_SECONDS)
    alert = shown()
    assert alert is not None
    assert fault.study in alert["annotations"]["summary"]
    assert alert["annotations"]["description"]
    runbook = ROOT / Path(alert["annotations"]["runbook_url"])
    assert runbook.read_text().startswith(f"# {fault.alert}\n")


def test_every_alert_of_the_chart_has_its_fault_here() -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    alerts = {(rule["alert"], rule["labels"]["severity"]) for rule in rules if "alert" in rule}
    assert {(fault.alert, fault.severity) for fault in FAULTS} == alerts
