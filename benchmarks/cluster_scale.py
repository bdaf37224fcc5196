"""A study of thousands of runs on a real API server: are the slots used, what does the controller cost?

The trainings' pods land on nodes without machines, whose kubelets a program plays: it sets pods running, lets each last
a while, and then hands the pod as JSON to a command, here `ghost_answer.py`, which puts the run's result into the
store. Scheduling, Jobs, pods, watches, Workflow, controller and store are real. On a cluster with Argo:

    python benchmarks/cluster_scale.py --player 'PLAYER 8 8 --seconds 40 --run' --node ghost=true --set image.tag=T

PLAYER gets the answering command as its last word and is ended by SIGINT. Run it where the cluster's service addresses
can be reached, for example on its node. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from automonai import api
from automonai.domain.events import RunFinished, RunQueued, SearchEnded, TrialProposed
from automonai.errors import UserError
from automonai.storage.journal import Journal
from automonai.storage.opening import open_store

ROOT = Path(__file__).parents[1]
ANSWER = Path(__file__).with_name("ghost_answer.py")
STUDY = "scale"
LOCATION = f"s3://automonai/studies/{STUDY}"
RUNS_OF_A_CYCLE, BRACKETS_OF_A_CYCLE = 69, 4  # of HyperBand's brackets on the ladder 1, 3, 9, 27
SPEC = """
split: {{test: 0.25, folds: 2}}
search: {{sampler: {sampler}}}
budget: {{{limit}, min_epochs: 1, max_epochs: 27, eta: 3, max_seconds_per_epoch: null}}
"""
_LOOK = """
import json, pathlib
found = []
for folder in pathlib.Path('/proc').glob('[0-9]*'):
    words = dict(line.split(None, 1) for line in (folder / 'status').read_text().splitlines() if len(line.split()) > 1)
    ticks = sum(map(int, (folder / 'stat').read_text().rsplit(')')[-1].split()[11:13]))
    found.append({'ticks': ticks, **{key: int(words[key + ':'].split()[0]) for key in ('VmRSS', 'VmHWM')}})
print(json.dumps(max(found, key=lambda process: process['VmRSS'])))
"""


def main() -> None:
    """Install, play, measure, print."""
    options = _options()
    with ExitStack() as stack:
        stack.callback(_run, "kubectl", "delete", "namespace", options.namespace, "--wait=false")
        _run("kubectl", "create", "namespace", options.namespace)
        _install(options)
        os.environ |= _store_environment(options.namespace)
        with tempfile.TemporaryDirectory() as folder:
            dataset = api.phantom(Path(folder) / "phantom", cases=8, shape=(24, 24, 20))
            api.push_data(dataset, "s3://automonai/datasets/phantom")
        command = [*shlex.split(options.player), f"{sys.executable} -S {ANSWER}"]
        player = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        stack.callback(player.send_signal, signal.SIGINT)
        workflow = _submit(options)
        with _Evictions(options) as evictions:
            usage = _follow(options.namespace, workflow)
        requests = _requests(workflow, set(usage.cpu_seconds))
        player.send_signal(signal.SIGINT)
        played = json.loads(player.communicate()[0].splitlines()[-1])
        print(_table(options, usage, requests=requests, evicted=evictions.count, played=played))


class _Usage:
    """What the controllers' pods and the Workflow object came to."""

    cpu_seconds: dict[str, float]
    """By pod, of the search and of the refit."""
    memory_bytes: list[int]
    """Of the search's, over time."""
    peak_bytes = 0
    workflow_bytes = 0
    seconds = 0.0
    phase = ""

    def __init__(self) -> None:
        self.memory_bytes, self.cpu_seconds = [], {}


class _Evictions:
    """A thread that evicts a share of the pods while they run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.count = 0
        self._options, self._over, self._random = options, threading.Event(), random.Random(0)
        self._thread = threading.Thread(target=self._evict, daemon=True)

    def __enter__(self) -> _Evictions:
        if self._options.evict > 0:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()

    def _evict(self) -> None:
        from kubernetes import client, config

        config.load_kube_config()
        core, seen = client.CoreV1Api(), set()
        selector, running = "app.kubernetes.io/component=trial", "status.phase=Running"
        while not self._over.wait(5.0):
            pods = core.list_namespaced_pod(self._options.namespace, label_selector=selector, field_selector=running)
            for pod in pods.items:
                if pod.metadata.uid in seen:
                    continue
                seen.add(pod.metadata.uid)
                if self._random.random() < self._options.evict:
                    body = {"metadata": {"name": pod.metadata.name}}
                    core.create_namespaced_pod_eviction(pod.metadata.name, self._options.namespace, body)
                    self.count += 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--player", required=True, help="command that plays the kubelets, without its last word")
    parser.add_argument(
        "--node", required=True, help="label of the played nodes, as key=value; key is their taint's too"
    )
    parser.add_argument("--set", action="append", default=[], help="value of the chart")
    parser.add_argument("--namespace", default="automonai-scale")
    parser.add_argument("--runs", type=int, default=2000, help="of the search, in whole brackets")
    parser.add_argument("--time", help="a time budget instead, such as 25m; all but a twentieth is the search's")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--evict", type=float, default=0.0, help="share of the pods")
    parser.add_argument("--sampler", default="bohb")
    return parser.parse_args()


def _install(options: argparse.Namespace) -> None:
    key, _, value = options.node.partition("=")
    values = {
        "minio": {"enabled": True},
        "trial": {
            "gpu": {"count": 1},
            "nodeSelector": {key: value},
            "tolerations": [{"key": key, "operator": "Exists"}],
            "ttlSeconds": 120,
        },
        "cache": {"type": "pod"},
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        settings = [word for setting in options.set for word in ("--set", setting)]
        chart = str(ROOT / "charts" / "automonai")
        _run("helm", "install", "automonai", chart, "-n", options.namespace, "-f", file.name, *settings, "--wait")


def _store_environment(namespace: str) -> dict[str, str]:
    secret = json.loads(_run("kubectl", "get", "secret", "automonai-minio", "-n", namespace, "-o", "json"))["data"]
    service = json.loads(_run("kubectl", "get", "service", "automonai-minio", "-n", namespace, "-o", "json"))
    keys = {name: base64.b64decode(secret[name]).decode() for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    return {**keys, "AWS_ENDPOINT_URL_S3": f"http://{service['spec']['clusterIP']}:9000"}


def _submit(options: argparse.Namespace) -> str:
    limit = f"iterations: {round(options.runs / RUNS_OF_A_CYCLE * BRACKETS_OF_A_CYCLE)}"
    if options.time:
        limit = f"time: {options.time}, refit_share: 0.05"
    parameters = {
        "name": STUDY,
        "dataset": "s3://automonai/datasets/phantom",
        "parallel-runs": options.slots,
        "gpus-per-run": 1,
        "spec": SPEC.format(limit=limit, sampler=options.sampler),
    }
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": f"{STUDY}-"},
        "spec": {
            "workflowTemplateRef": {"name": "automonai-study"},
            "arguments": {"parameters": [{"name": name, "value": str(value)} for name, value in parameters.items()]},
        },
    }
    answer = _run("kubectl", "create", "-n", options.namespace, "-o", "json", "-f", "-", text=json.dumps(workflow))
    return str(json.loads(answer)["metadata"]["name"])


def _follow(namespace: str, workflow: str) -> _Usage:
    """Look at the controllers' pods now and then until the Workflow ends."""
    usage, began = _Usage(), time.monotonic()
    while usage.phase not in ("Succeeded", "Failed", "Error"):
        time.sleep(10.0)
        text = _run("kubectl", "get", "workflow", workflow, "-n", namespace, "-o", "json")
        usage.workflow_bytes = max(usage.workflow_bytes, len(text))
        usage.phase = json.loads(text).get("status", {}).get("phase", "")
        usage.seconds = time.monotonic() - began
        for node in json.loads(text).get("status", {}).get("nodes", {}).values():
            step = node.get("templateName")
            if step in ("search", "refit") and node["type"] == "Pod" and node.get("phase") == "Running":
                pod = f"{workflow}-{step}-{node['id'].rpartition('-')[2]}"
                _look(namespace, pod, usage, is_search=step == "search")
    return usage


def _look(namespace: str, pod: str, usage: _Usage, *, is_search: bool) -> None:
    """Ask a controller's pod for its CPU time and memory; nothing comes of it once the pod has ended."""
    usage.cpu_seconds.setdefault(pod, 0.0)
    command = ["kubectl", "exec", pod, "-n", namespace, "-c", "main", "--", "python", "-S", "-c", _LOOK]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        reading = json.loads(done.stdout)
        usage.cpu_seconds[pod] = reading["ticks"] / os.sysconf("SC_CLK_TCK")
        usage.peak_bytes = max(usage.peak_bytes, reading["VmHWM"] * 1024)
        if is_search:
            usage.memory_bytes.append(reading["VmRSS"] * 1024)


def _requests(workflow: str, pods: set[str]) -> int | None:
    """Return how many requests the controller says that it made of the API, from the logs that Argo keeps."""
    store = open_store(f"s3://automonai/workflows/{workflow}")
    lines = [line for pod in pods for line in store.get(f"{pod}/main.log").decode().splitlines()]
    counts = [int(line.split("Kubernetes API got ")[1].split()[0]) for line in lines if "Kubernetes API got " in line]
    return sum(counts) if counts else None


def _table(options: argparse.Namespace, usage: _Usage, *, requests: int | None, evicted: int, played: dict) -> str:
    events = Journal(open_store(LOCATION)).read()
    search = [event for event in events if isinstance(event, RunQueued) and event.run.purpose == "search"]
    ends = [event for event in events if isinstance(event, RunFinished)]
    began, queued = search[0].at, {event.run.id: event.at for event in search}
    ended = {event.run.id: event.at for event in ends}

    def given_out(until: float) -> float:
        """Return the seconds for which slots were given out; runs that never ended do not count."""
        return sum(max(0.0, min(ended[run_id], until) - at) for run_id, at in queued.items() if run_id in ended)

    proposed = max(event.at for event in events if isinstance(event, TrialProposed))
    over = next(event.at for event in events if isinstance(event, SearchEnded))
    moments = (proposed, search[-1].at, over)
    shares = [f"{given_out(until) / (options.slots * (until - began)):.1%}" for until in moments]
    cpu_seconds = sum(usage.cpu_seconds.values())
    rows = [
        ("workflow", usage.phase),
        ("runs finished", len(ends)),
        ("slots", options.slots),
        ("time", f"{usage.seconds / 60:.1f} min"),
        ("slots given out, of the time until the last configuration was proposed", shares[0]),
        ("the same until the last promoted run was queued: the last brackets cannot fill all slots", shares[1]),
        (f"the same until the search was over ({(over - began) / 60:.1f} min)", shares[2]),
        (
            "GPU seconds with a running pod, of those given out",
            f"{played['gpu_seconds_used'] / max(1.0, given_out(ends[-1].at)):.1%}",
        ),
        ("most pods at once", played["most_at_once"]),
        ("pods evicted", evicted),
        ("controllers' CPU time", f"{cpu_seconds:.0f} s ({cpu_seconds / usage.seconds:.1%} of a core)"),
        (
            "controller's memory: after 10, 25, 50, 75 % of the time, at the end; peak",
            _memory_words(usage),
        ),
        ("requests to the API, per run", "-" if requests is None else f"{requests} ({requests / len(ends):.2f})"),
        ("Workflow object", f"{usage.workflow_bytes / 1000:.0f} kB"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _memory_words(usage: _Usage) -> str:
    readings = usage.memory_bytes or [0]
    figures = [readings[int(len(readings) * share)] for share in (0.1, 0.25, 0.5, 0.75)]
    return ", ".join(f"{figure / 2**20:.0f}" for figure in [*figures, readings[-1], usage.peak_bytes]) + " MiB"


def _run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"{' '.join(command[:4])} ...: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
