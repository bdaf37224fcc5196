"""What a run costs on a cluster beside its training: from a free slot to the first step, part by part.

Reads a study that has ended: its journal, its Jobs, and its pods with their logs, which stay for an hour
(`trial.ttlSeconds`). The times are exact if it had one run at a time (`parallel-runs: 1`): then the slot of each run
became free when the pod before it ended. With the store's variables set, as for `automonai status`:

    python benchmarks/cluster_overhead.py s3://automonai/studies/NAME --namespace automonai

Prints a table in Markdown, and which pods downloaded a dataset. Kubernetes tells whole seconds: each of its times is
taken as the middle of that second, so that means are right and single parts may be wrong by half a second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean
from typing import Any

from automonai.domain.events import RunQueued, SessionStarted
from automonai.storage.journal import Journal
from automonai.storage.opening import open_store

JOURNAL_PART = "end seen, result read, next run decided"
PARTS = {
    JOURNAL_PART: "",
    "Job created": "",
    "pod scheduled": "",
    "container started": "",
    "interpreter, store opened": "is asked for",
    "request read, dataset found": "the dataset is in",
    "libraries imported": "the libraries are loaded",
    "cases prepared, network made": "cases and network are ready",
    "first step": "the first of this process is done",
}
"""Each part, and the words of the worker's line that ends it; without, Kubernetes or the journal tells the time."""
IMPORTS = ("interpreter, store opened", "libraries imported")
DOWNLOAD = "fetching s3://"


@dataclass(frozen=True)
class Start:
    """How one run started."""

    run_id: str
    seconds: dict[str, float]
    """Of each part."""

    @property
    def total(self) -> float:
        """Return the seconds from the free slot to the first step."""
        return sum(self.seconds.values())

    @property
    def beyond_imports(self) -> float:
        """Return them without the interpreter and what it imports."""
        return self.total - sum(self.seconds[part] for part in IMPORTS)


def main() -> None:
    """Read and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="s3://bucket/studies/NAME")
    parser.add_argument("--namespace", default="automonai")
    options = parser.parse_args()
    print(table(starts(options.study, options.namespace)))
    print(*(f"downloaded by {pod}: {line}" for pod, line in downloads(options.namespace)), sep="\n")


def starts(study: str, namespace: str) -> list[Start]:
    """Return how each run but a controller's first started, in their order; those whose pods are gone are left out."""
    queued, is_first = dict[str, float](), True
    for event in Journal(open_store(study)).read():
        if isinstance(event, RunQueued) and not is_first:
            queued[event.run.id] = event.at
        if isinstance(event, RunQueued | SessionStarted):
            is_first = isinstance(event, SessionStarted)
    name = study.rstrip("/").rpartition("/")[2]
    chosen = f"app.kubernetes.io/component=trial,automonai/study={name}"
    jobs = {run_of(job): job for job in objects(namespace, "jobs", "-l", chosen)}
    pods = sorted(objects(namespace, "pods", "-l", chosen), key=end_of)
    found = []
    for before, pod in zip(pods, pods[1:], strict=False):
        run_id = run_of(pod)
        if run_id in queued:
            times = [end_of(before), queued[run_id], *cluster_times(jobs[run_id], pod), *log_times(namespace, pod)]
            found.append(Start(run_id, dict(zip(PARTS, differences(times), strict=True))))
    return found


def table(found: Sequence[Start]) -> str:
    """Return the mean and the longest of every part, in seconds."""
    rows = [(part, [start.seconds[part] for start in found]) for part in PARTS]
    rows += [
        ("**from the free slot to the first step**", [start.total for start in found]),
        ("beyond interpreter and imports", [start.beyond_imports for start in found]),
    ]
    lines = [f"| {part} | {fmean(values):.1f} | {max(values):.1f} |" for part, values in rows]
    return "\n".join((f"| part, of {len(found)} runs | mean, s | longest, s |", "|---|---|---|", *lines))


def downloads(namespace: str) -> list[tuple[str, str]]:
    """Return the pods of a namespace that fetched a dataset from the store, with their words for it."""
    pods = (pod["metadata"]["name"] for pod in objects(namespace, "pods"))
    lines = ((pod, line) for pod in pods for line in log(namespace, pod))
    return [(pod, line[line.index(DOWNLOAD) :]) for pod, line in lines if DOWNLOAD in line]


def objects(namespace: str, kind: str, *selection: str) -> list[dict[str, Any]]:
    """Return a namespace's objects of one kind."""
    found: list[dict[str, Any]] = json.loads(kubectl("get", kind, "-n", namespace, *selection, "-o", "json"))["items"]
    return found


def run_of(document: dict[str, Any]) -> str:
    """Return the run that a Job or pod is for."""
    return str(document["metadata"]["labels"]["automonai/run"])


def end_of(pod: dict[str, Any]) -> float:
    """Return when a pod's container ended."""
    (status,) = pod["status"]["containerStatuses"]
    return middle(status["state"]["terminated"]["finishedAt"])


def cluster_times(job: dict[str, Any], pod: dict[str, Any]) -> tuple[float, float, float]:
    """Return when a Job was created, its pod scheduled, its container started."""
    (status,) = pod["status"]["containerStatuses"]
    (scheduled,) = (entry for entry in pod["status"]["conditions"] if entry["type"] == "PodScheduled")
    times = (
        job["metadata"]["creationTimestamp"],
        scheduled["lastTransitionTime"],
        status["state"]["terminated"]["startedAt"],
    )
    first, second, third = (middle(time) for time in times)
    return first, second, third


def log_times(namespace: str, pod: dict[str, Any]) -> list[float]:
    """Return when the worker wrote each of the lines that end a part."""
    lines = log(namespace, pod["metadata"]["name"])
    return [instant(next(line for line in lines if words in line).split()[0]) for words in PARTS.values() if words]


def log(namespace: str, pod: str) -> list[str]:
    """Return a pod's log, each line after the time at which it was written."""
    return kubectl("logs", pod, "-n", namespace, "--all-containers", "--timestamps", "--ignore-errors").splitlines()


def middle(time: str) -> float:
    """Return the middle of a second that Kubernetes names."""
    return instant(time) + 0.5


def instant(time: str) -> float:
    """Return the Unix time of an instant such as 2026-01-31T23:59:59.123456789Z."""
    return datetime.fromisoformat(time).timestamp()


def differences(times: Sequence[float]) -> list[float]:
    """Return the seconds from each time to the next."""
    return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]


def kubectl(*arguments: str) -> str:
    """Run kubectl; return what it wrote."""
    return subprocess.run(["kubectl", *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
