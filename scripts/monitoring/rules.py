"""Recording rules and alerts.

Counters that a controller rebuilds from its journal do not fall when it restarts, but each controller's pod has its own
series of them. So they are joined by `max`, and an hour's gain is what they are above the lowest that was recorded
within that hour: a study that was taken up again after a day brings its whole past at once, and that is no gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RUNBOOKS = "docs/runbooks"
"""The chart replaces it by metrics.rules.runbookUrl."""
STORAGE_ERROR = 'code!~"2..|404"'
"""Selects requests that failed; 404 is an answer: the object is not there."""
_STUDY = "namespace, study"
_RUN = "namespace, study, trial, rung, pod, worker"
"""Folds of one trial that a refit trains side by side differ in their pod, or on one machine in their worker."""


@dataclass(frozen=True)
class Recording:
    """A series that Prometheus computes and keeps."""

    name: str
    expr: str


@dataclass(frozen=True)
class Alert:
    """What somebody should look at; its page in docs/runbooks bears its name."""

    name: str
    expr: str
    lasting: str
    """How long it has to hold before it is told."""
    severity: Literal["warning", "critical"]
    summary: str
    description: str


def _gain(name: str) -> str:
    return f"({name} - min_over_time({name}[1h]))"


RECORDINGS = (
    Recording("study:automonai_runs:max", f"max by ({_STUDY}, state) (automonai_study_runs)"),
    Recording(
        "study:automonai_runs_finished:sum",
        f"sum by ({_STUDY}) (max by ({_STUDY}, rung, outcome) (automonai_runs_finished_total))",
    ),
    Recording(
        "study:automonai_runs_failed:sum",
        f'sum by ({_STUDY}) (max by ({_STUDY}, rung, outcome) (automonai_runs_finished_total{{outcome!="complete"}}))'
        " or 0 * study:automonai_runs_finished:sum",
    ),
    Recording(
        "study:automonai_runs_started:max",
        f"max by ({_STUDY}) (automonai_run_queue_duration_seconds_count)",
    ),
    Recording(
        "study:automonai_run_disruptions:sum",
        f"sum by ({_STUDY}) (max by ({_STUDY}, reason) (automonai_run_disruptions_total))"
        " or 0 * sum without (state) (study:automonai_runs:max)",
    ),
    Recording(
        "study:automonai_train_steps:rate10m",
        f"sum by ({_STUDY}) (rate(automonai_train_steps_total[10m]))",
    ),
    Recording(
        "study:automonai_storage_error:ratio_rate5m",
        f"sum by ({_STUDY}) (rate(automonai_storage_requests_total{{{STORAGE_ERROR}}}[5m]))"
        f" / sum by ({_STUDY}) (rate(automonai_storage_requests_total[5m]))",
    ),
    Recording(
        "study:automonai_gpu_utilization:avg10m",
        f"avg by ({_STUDY}) (avg_over_time(automonai_gpu_utilization_ratio[10m]))",
    ),
    Recording(
        "study:automonai_gpu_data_wait:avg_rate10m",
        f"avg by ({_STUDY}) (rate(automonai_train_data_wait_seconds_total[10m])"
        f" and on ({_RUN}) automonai_gpu_memory_total_bytes)",
    ),
    Recording(
        "run:automonai_gpu_memory_peak:ratio",
        f"max by ({_RUN}, device) (automonai_gpu_memory_peak_bytes)"
        f" / max by ({_RUN}, device) (automonai_gpu_memory_total_bytes)",
    ),
)

ALERTS = (
    Alert(
        name="AutomonaiStudyStalled",
        expr=f"time() - max by ({_STUDY}) (automonai_controller_last_loop_timestamp_seconds) > 600",
        lasting="5m",
        severity="critical",
        summary="The controller of study {{ $labels.study }} hangs",
        description="Its last loop was {{ $value | humanizeDuration }} ago; a loop takes seconds.",
    ),
    Alert(
        name="AutomonaiStudyStalled",
        expr='sum without (state) (study:automonai_runs:max{state="running"}) > 0'
        f" unless on ({_STUDY}) study:automonai_train_steps:rate10m > 0"
        f" unless on ({_STUDY})"
        " (study:automonai_runs_finished:sum - study:automonai_runs_finished:sum offset 10m) > 0",
        lasting="2h",
        severity="warning",
        summary="Study {{ $labels.study }} makes no progress",
        description="{{ $value }} runs are said to be running, but none has trained a step or ended for two hours.",
    ),
    Alert(
        name="AutomonaiControllerDown",
        expr=f'max by ({_STUDY}) (up{{study!="", workflow!="", rung=""}}) == 0'
        f" or 0 * count by ({_STUDY}) (automonai_train_epoch)"
        f" unless on ({_STUDY}) max by ({_STUDY}) (automonai_controller_last_loop_timestamp_seconds)",
        lasting="5m",
        severity="critical",
        summary="Study {{ $labels.study }} has no controller",
        description="Its trainings run, or its pod is there, but nobody answers for the study.",
    ),
    Alert(
        name="AutomonaiRunsFailing",
        expr=f"{_gain('study:automonai_runs_failed:sum')} / {_gain('study:automonai_runs_finished:sum')} > 0.5"
        f" and {_gain('study:automonai_runs_failed:sum')} >= 3",
        lasting="5m",
        severity="warning",
        summary="Most runs of study {{ $labels.study }} fail",
        description="{{ $value | humanizePercentage }} of the runs that ended within the last hour have no result.",
    ),
    Alert(
        name="AutomonaiQueuedTooLong",
        expr='sum without (state) (study:automonai_runs:max{state="queued"}) > 0'
        f" unless on ({_STUDY})"
        " (study:automonai_runs_started:max - study:automonai_runs_started:max offset 10m) > 0",
        lasting="30m",
        severity="warning",
        summary="Runs of study {{ $labels.study }} do not start",
        description="{{ $value }} runs are queued, and none has started for half an hour.",
    ),
    Alert(
        name="AutomonaiGpuIdle",
        expr="study:automonai_gpu_utilization:avg10m < 0.2 or study:automonai_gpu_data_wait:avg_rate10m > 0.5",
        lasting="20m",
        severity="warning",
        summary="The GPUs of study {{ $labels.study }} are hardly used",
        description="Utilisation below 20 %, or more than half of the time spent waiting for data: {{ $value |"
        " humanizePercentage }}.",
    ),
    Alert(
        name="AutomonaiStorageErrors",
        expr="study:automonai_storage_error:ratio_rate5m > 0.05",
        lasting="5m",
        severity="warning",
        summary="The store fails for study {{ $labels.study }}",
        description="{{ $value | humanizePercentage }} of its requests to the store fail.",
    ),
    Alert(
        name="AutomonaiDisruptionsPilingUp",
        expr=f"{_gain('study:automonai_run_disruptions:sum')} > 5"
        f" unless on ({_STUDY}) {_gain('study:automonai_runs_finished:sum')}"
        f" >= {_gain('study:automonai_run_disruptions:sum')}",
        lasting="5m",
        severity="warning",
        summary="Pods of study {{ $labels.study }} are taken away again and again",
        description="{{ $value }} disruptions within the last hour, more than runs ended.",
    ),
    Alert(
        name="AutomonaiGpuMemoryNearLimit",
        expr="run:automonai_gpu_memory_peak:ratio > 0.95",
        lasting="1m",
        severity="warning",
        summary="Trial {{ $labels.trial }} of study {{ $labels.study }} nearly fills its GPU",
        description="Its peak is {{ $value | humanizePercentage }} of device {{ $labels.device }}'s memory.",
    ),
)


def to_groups() -> dict[str, list[dict[str, object]]]:
    """Return the rules as Prometheus reads them; recordings come first, so that alerts see this round's."""
    recordings = [{"record": recording.name, "expr": recording.expr} for recording in RECORDINGS]
    return {"groups": [{"name": "automonai", "rules": [*recordings, *map(_alert, ALERTS)]}]}


def _alert(alert: Alert) -> dict[str, object]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": f"{RUNBOOKS}/{alert.name}.md",
        },
    }
