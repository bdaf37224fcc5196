"""The dashboard Capacity: are there enough GPUs, are they used, and does the storage keep up?"""

from __future__ import annotations

from scripts.monitoring.grafana import STUDY, Dashboard, Panel, Query
from scripts.monitoring.rules import STORAGE_ERROR

_QUEUE = "automonai_run_queue_duration_seconds"
_RATE = f"{{{STUDY}}}[$__rate_interval]"


def _gpu_seconds(more: str = "") -> str:
    return f"sum by (study) (max by (study, outcome) (automonai_gpu_seconds_total{{{STUDY}{more}}}))"


_WASTED = _gpu_seconds(', outcome!="complete"')

_QUEUES = (
    Panel(
        title="Queued and running",
        description="Runs that wait for a GPU and runs that have one. Some that always wait: parallel-runs is higher"
        " than what the cluster gives.",
        unit="none",
        queries=(Query(f'max by (state) (automonai_study_runs{{{STUDY}, state=~"queued|running"}})', "{{state}}"),),
        is_stacked=True,
    ),
    Panel(
        title="Time in the queue",
        description="Mean time from queueing a run to its start, over all runs of the study so far.",
        unit="s",
        queries=(
            Query(
                f"max by (study) ({_QUEUE}_sum{{{STUDY}}}) / max by (study) ({_QUEUE}_count{{{STUDY}}})", "{{study}}"
            ),
        ),
        thresholds=((600, "yellow"), (1800, "red")),
    ),
    Panel(
        title="Runs started",
        description="Runs that got their GPU within the last ten minutes.",
        unit="none",
        queries=(Query(f"sum by (study) (increase({_QUEUE}_count{{{STUDY}}}[10m]))", "{{study}}"),),
    ),
    Panel(
        title="Disruptions by reason",
        description="Pods that were taken away and made anew; the run goes on from its checkpoint.",
        unit="none",
        queries=(Query(f"max by (reason) (automonai_run_disruptions_total{{{STUDY}}})", "{{reason}}"),),
        is_stacked=True,
    ),
    Panel(
        title="Retries by reason",
        description="Runs that the controller had to queue again.",
        unit="none",
        queries=(Query(f"max by (reason) (automonai_run_retries_total{{{STUDY}}})", "{{reason}}"),),
        is_stacked=True,
    ),
    Panel(
        title="Share of GPU time without a result",
        description="GPU time of runs that failed or were lost, of all GPU time.",
        unit="percentunit",
        queries=(
            Query(
                f"({_WASTED} or 0 * {_gpu_seconds()}) / {_gpu_seconds()}",
                "{{study}}",
            ),
        ),
        thresholds=((0.2, "yellow"), (0.5, "red")),
        highest=1,
    ),
)

_GPUS = (
    Panel(
        title="GPU utilisation of the study",
        description="Mean over its trainings' GPUs, by NVML in the trainings.",
        unit="percentunit",
        queries=(Query(f"avg by (study) (automonai_gpu_utilization_ratio{{{STUDY}}})", "{{study}}"),),
        thresholds=((0.3, "yellow"), (0.6, "green")),
        base_color="red",
        highest=1,
    ),
    Panel(
        title="GPU utilisation of the namespace's pods",
        description="By NVIDIA's DCGM exporter where the cluster has it, GPUs of other pods included; else empty.",
        unit="percentunit",
        queries=(
            Query(
                'avg by (Hostname, gpu) (DCGM_FI_DEV_GPU_UTIL{exported_namespace=~"$namespace", exported_pod!=""}'
                ' or DCGM_FI_DEV_GPU_UTIL{namespace=~"$namespace", exported_pod="", pod!=""}) / 100',
                "{{Hostname}} GPU {{gpu}}",
            ),
        ),
        thresholds=((0.3, "yellow"), (0.6, "green")),
        base_color="red",
        highest=1,
    ),
    Panel(
        title="GPU power of the study",
        description="Sum over its trainings' GPUs.",
        unit="watt",
        queries=(Query(f"sum by (study) (automonai_gpu_power_watts{{{STUDY}}})", "{{study}}"),),
    ),
)

_STORAGE = (
    Panel(
        title="Storage requests",
        description="Requests of controller and trainings to the store.",
        unit="reqps",
        queries=(Query(f"sum by (operation) (rate(automonai_storage_requests_total{_RATE}))", "{{operation}}"),),
        width=6,
    ),
    Panel(
        title="Storage errors",
        description="Requests that the store refused or did not answer; they are tried again for two minutes. That an"
        " object is not there is no error.",
        unit="reqps",
        queries=(
            Query(
                f"sum by (operation, code) (rate(automonai_storage_requests_total"
                f"{{{STUDY}, {STORAGE_ERROR}}}[$__rate_interval]))"
                f" or 0 * sum by (operation) (rate(automonai_storage_requests_total{_RATE}))",
                "{{operation}} {{code}}",
            ),
        ),
        thresholds=((0.1, "red"),),
        width=6,
    ),
    Panel(
        title="Storage latency",
        description="95 % of the requests took less than this. Uploads and downloads grow with their size.",
        unit="s",
        queries=(
            Query(
                "histogram_quantile(0.95, sum by (operation, le)"
                f" (rate(automonai_storage_request_duration_seconds_bucket{_RATE})))",
                "{{operation}}",
            ),
        ),
        thresholds=((1, "yellow"), (10, "red")),
        width=6,
    ),
    Panel(
        title="Storage traffic",
        description="Bytes to and from the store.",
        unit="Bps",
        queries=(
            Query(f"sum by (direction) (rate(automonai_storage_transferred_bytes_total{_RATE}))", "{{direction}}"),
        ),
        width=6,
    ),
)

CAPACITY = Dashboard(
    uid="automonai-capacity",
    title="AutoMONAI / Capacity",
    description="Whether runs get their GPUs, whether they use them, and whether the storage keeps up.",
    panels=(*_QUEUES, *_GPUS, *_STORAGE),
)
