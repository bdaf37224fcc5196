"""The dashboard Runs: how each training that runs is doing."""

from __future__ import annotations

from scripts.monitoring.grafana import STUDY, Dashboard, Panel, Query, Variable

_TRIAL = f'{STUDY}, trial=~"$trial"'
_NAME = "trial {{trial}} rung {{rung}} {{pod}}{{worker}}"
"""A refit trains several folds of one trial side by side: on a cluster in pods, on one machine in workers."""
_DEVICE = f"{_NAME} device {{{{device}}}}"


def _newest(metric: str, by: str = "trial, rung, pod, worker") -> str:
    return f"max by ({by}) ({metric}{{{_TRIAL}}})"


def _rate(metric: str) -> str:
    return f"sum by (trial, rung, pod, worker) (rate({metric}{{{_TRIAL}}}[$__rate_interval]))"


def _mean_rate(metric: str, by: str) -> str:
    selector = f"{{{_TRIAL}}}[$__rate_interval]"
    return f"sum by ({by}) (rate({metric}_sum{selector})) / sum by ({by}) (rate({metric}_count{selector}))"


_CHECKPOINT_SECONDS = (
    f"{_newest('automonai_checkpoint_write_duration_seconds_sum')}"
    f" / {_newest('automonai_checkpoint_write_duration_seconds_count')}"
)

_COURSE = (
    Panel(
        title="Training loss",
        description="Loss of the latest step. A training whose loss is not finite ends at once.",
        unit="none",
        queries=(Query(_newest("automonai_train_loss"), _NAME),),
    ),
    Panel(
        title="Dice by class",
        description="Mean Dice of each class over the cases of the latest validation.",
        unit="percentunit",
        queries=(
            Query(_newest("automonai_validation_dice", "trial, rung, pod, worker, label"), f"{_NAME} {{{{label}}}}"),
        ),
        highest=1,
    ),
    Panel(
        title="Epoch",
        description="Epochs that the trial has trained, earlier rungs included.",
        unit="none",
        queries=(Query(_newest("automonai_train_epoch"), _NAME),),
    ),
)

_SPEED = (
    Panel(
        title="Throughput",
        description="Mean rate of the run so far, validations included, as it will stand in its result.",
        unit="suffix: patches/s",
        queries=(Query(_newest("automonai_train_throughput_patches_per_second"), _NAME),),
    ),
    Panel(
        title="Throughput at the moment",
        description="Rate of patches now: it falls to nothing while a validation or a checkpoint takes its time.",
        unit="suffix: patches/s",
        queries=(Query(_rate("automonai_train_patches_total"), _NAME),),
    ),
    Panel(
        title="Steps per second",
        description="Rate of optimiser steps.",
        unit="suffix: steps/s",
        queries=(Query(_rate("automonai_train_steps_total"), _NAME),),
    ),
    Panel(
        title="Share of time waiting for data",
        description="Seconds that the training waited for patches in each second. A GPU that waits half of the time"
        " needs more CPU cores: trial.resources.requests.cpu.",
        unit="percentunit",
        queries=(Query(_rate("automonai_train_data_wait_seconds_total"), _NAME),),
        thresholds=((0.2, "yellow"), (0.5, "red")),
        highest=1,
    ),
    Panel(
        title="Step duration by phase",
        description="Mean time of each phase of a step.",
        unit="s",
        queries=(
            Query(
                _mean_rate("automonai_train_step_duration_seconds", "trial, rung, pod, worker, phase"),
                f"{_NAME} {{{{phase}}}}",
            ),
        ),
    ),
    Panel(
        title="GPU utilisation",
        description="Share of time in which a kernel ran on the device, by NVML. Low while trials run: see the runbook"
        " of AutomonaiGpuIdle. Empty on CPUs.",
        unit="percentunit",
        queries=(Query(_newest("automonai_gpu_utilization_ratio", "trial, rung, pod, worker, device"), _DEVICE),),
        thresholds=((0.3, "yellow"), (0.6, "green")),
        base_color="red",
        highest=1,
    ),
)

_MEMORY = (
    Panel(
        title="GPU memory",
        description="What PyTorch has allocated and reserved, its peak, and what the card has.",
        unit="bytes",
        queries=(
            Query(
                _newest("automonai_gpu_memory_allocated_bytes", "trial, rung, pod, worker, device"),
                f"{_DEVICE} allocated",
            ),
            Query(
                _newest("automonai_gpu_memory_reserved_bytes", "trial, rung, pod, worker, device"),
                f"{_DEVICE} reserved",
            ),
            Query(_newest("automonai_gpu_memory_peak_bytes", "trial, rung, pod, worker, device"), f"{_DEVICE} peak"),
            Query(_newest("automonai_gpu_memory_total_bytes", "trial, rung, pod, worker, device"), f"{_DEVICE} card"),
        ),
    ),
    Panel(
        title="GPU memory against the card",
        description="Peak as a share of the card. Above 95 % the next larger configuration may run out of memory.",
        unit="percentunit",
        queries=(
            Query(
                f"{_newest('automonai_gpu_memory_peak_bytes', 'trial, rung, pod, worker, device')}"
                f" / {_newest('automonai_gpu_memory_total_bytes', 'trial, rung, pod, worker, device')}",
                _DEVICE,
            ),
        ),
        thresholds=((0.85, "yellow"), (0.95, "red")),
        highest=1,
    ),
    Panel(
        title="GPU power",
        description="Power draw of the device, by NVML.",
        unit="watt",
        queries=(Query(_newest("automonai_gpu_power_watts", "trial, rung, pod, worker, device"), _DEVICE),),
    ),
    Panel(
        title="Peak memory of the run",
        description="Of the GPU, or of the process where a run trains on a CPU, as it will stand in the run's result.",
        unit="bytes",
        queries=(Query(_newest("automonai_peak_memory_bytes"), _NAME),),
    ),
    Panel(
        title="Time to write a checkpoint",
        description="Mean of the run so far, upload included. Longer than the seconds between SIGTERM and SIGKILL: an"
        " eviction costs what was trained since the checkpoint before.",
        unit="s",
        queries=(Query(_CHECKPOINT_SECONDS, _NAME),),
        thresholds=((15, "yellow"), (30, "red")),
    ),
    Panel(
        title="Size of checkpoints",
        description="Bytes of the latest checkpoint: network, optimiser and random states.",
        unit="bytes",
        queries=(Query(_newest("automonai_checkpoint_size_bytes"), _NAME),),
    ),
)

RUNS = Dashboard(
    uid="automonai-runs",
    title="AutoMONAI / Runs",
    description="Each training: does it learn, how fast, and what does it take of the GPU?",
    variables=(Variable("trial", f"automonai_train_epoch{{{STUDY}}}", "trial", has_all=True),),
    panels=(*_COURSE, *_SPEED, *_MEMORY),
)
