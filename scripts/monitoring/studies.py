"""The dashboard Studies: does the search get better, and where do the GPU hours go?"""

from __future__ import annotations

from scripts.monitoring.grafana import STUDY, Dashboard, Panel, Query

_OPEN = f'sum(max by (state) (automonai_study_runs{{{STUDY}, state=~"queued|running"}}))'
_GPU_HOURS = f"max by (outcome) (automonai_gpu_seconds_total{{{STUDY}}}) / 3600"


def _mean(metric: str, by: str) -> str:
    """Return the mean of all observations so far: a search makes too few for a rate."""
    return (
        f"sum by ({by}) (max by (pod, {by}) ({metric}_sum{{{STUDY}}}))"
        f" / sum by ({by}) (max by (pod, {by}) ({metric}_count{{{STUDY}}}))"
    )


_STATS = (
    Panel(
        title="Best Dice",
        description="Mean foreground Dice of the best trial so far, over its validation cases. Empty before the first"
        " trial has completed a rung.",
        unit="percentunit",
        queries=(Query(f"max(automonai_study_best_dice{{{STUDY}}})"),),
        kind="stat",
        width=4,
        height=4,
    ),
    Panel(
        title="Best objective",
        description="What the search minimises, of the best trial so far: 1 - mean Dice, or the validation loss.",
        unit="none",
        queries=(Query(f"min(automonai_study_best_objective{{{STUDY}}})"),),
        kind="stat",
        width=4,
        height=4,
    ),
    Panel(
        title="Open runs",
        description="Runs that are queued or running now.",
        unit="none",
        queries=(Query(_OPEN),),
        kind="stat",
        width=4,
        height=4,
    ),
    Panel(
        title="GPU time spent",
        description="GPU hours of all ended runs, whatever became of them.",
        unit="h",
        queries=(Query(f"sum({_GPU_HOURS})"),),
        kind="stat",
        width=4,
        height=4,
    ),
    Panel(
        title="Time since the last loop",
        description="The controller looks at its runs every few seconds. Minutes mean that it hangs or waits for the"
        " store; see the runbook of AutomonaiStudyStalled.",
        unit="s",
        queries=(Query(f"time() - max(automonai_controller_last_loop_timestamp_seconds{{{STUDY}}})"),),
        kind="stat",
        thresholds=((60, "yellow"), (600, "red")),
        width=4,
        height=4,
    ),
    Panel(
        title="Resumes",
        description="How often a controller took up what another one left unfinished: evictions of its pod, or a"
        " user's restart.",
        unit="none",
        queries=(Query(f"max(automonai_controller_resumes_total{{{STUDY}}})"),),
        kind="stat",
        thresholds=((3, "yellow"), (10, "red")),
        width=4,
        height=4,
    ),
)

_COURSE = (
    Panel(
        title="Best Dice so far",
        description="The incumbent's Dice over time. A curve that has been flat for most of the budget: more budget"
        " will hardly help, another search space may.",
        unit="percentunit",
        queries=(Query(f"max by (study) (automonai_study_best_dice{{{STUDY}}})", "{{study}}"),),
        width=12,
    ),
    Panel(
        title="Best objective so far",
        description="The incumbent's objective over time; lower is better.",
        unit="none",
        queries=(Query(f"min by (study) (automonai_study_best_objective{{{STUDY}}})", "{{study}}"),),
        width=12,
    ),
    Panel(
        title="Rung funnel",
        description="Ended runs on each rung, by its epochs: many short trainings, few long ones. 'refit' is what"
        " follows the search.",
        unit="none",
        queries=(
            Query(
                f"sort_desc(sum by (rung) (max by (rung, outcome) (automonai_runs_finished_total{{{STUDY}}})))",
                "rung {{rung}}",
            ),
        ),
        kind="bargauge",
    ),
    Panel(
        title="Runs by state",
        description="How many runs are in each state. 'queued' that stays: see Capacity. 'lost' is queued again by the"
        " controller.",
        unit="none",
        queries=(Query(f"max by (state) (automonai_study_runs{{{STUDY}}})", "{{state}}"),),
        is_stacked=True,
    ),
    Panel(
        title="GPU hours by outcome",
        description="Where the GPU time went. What is not 'complete' has not bought a result. Runs on a CPU count as if"
        " they had one GPU.",
        unit="h",
        queries=(Query(_GPU_HOURS, "{{outcome}}"),),
        is_stacked=True,
    ),
    Panel(
        title="Proposals by origin",
        description="Where configurations came from. 'model' is BOHB's model; 'fallback' means that the model failed"
        " and a random one was taken, each of which the report names.",
        unit="none",
        queries=(Query(f"max by (origin) (automonai_proposals_total{{{STUDY}}})", "{{origin}}"),),
        is_stacked=True,
    ),
    Panel(
        title="Budget spent and progress",
        description="Share of each limit of the budget that is spent, and of the planned runs that have ended; the"
        " latter is an estimate while the search goes on.",
        unit="percentunit",
        queries=(
            Query(f"max by (limit) (automonai_study_budget_spent_ratio{{{STUDY}}})", "spent: {{limit}}"),
            Query(f"max(automonai_study_progress_ratio{{{STUDY}}})", "runs done"),
        ),
        highest=1,
    ),
    Panel(
        title="Epochs by rung",
        description="Epochs that ended runs trained: on which rungs the search spends its training.",
        unit="none",
        queries=(Query(f"max by (rung) (automonai_study_epochs_total{{{STUDY}}})", "rung {{rung}}"),),
        is_stacked=True,
    ),
    Panel(
        title="Duration of runs",
        description="Mean wall-clock time of ended runs on each rung, start-up and reading included.",
        unit="s",
        queries=(Query(_mean("automonai_run_duration_seconds", "rung"), "rung {{rung}}"),),
    ),
    Panel(
        title="Time to propose",
        description="Mean time that the sampler took for a configuration. GPUs wait for it.",
        unit="s",
        queries=(Query(_mean("automonai_propose_duration_seconds", "study"), "{{study}}"),),
        thresholds=((5, "yellow"), (30, "red")),
    ),
    Panel(
        title="Throughput of ended runs",
        description="Patches per second of the last ended run on each rung, as in its result, so that trainings shorter"
        " than two scrapes are seen, too.",
        unit="suffix: patches/s",
        queries=(Query(f"max by (rung) (automonai_run_throughput_patches_per_second{{{STUDY}}})", "rung {{rung}}"),),
    ),
    Panel(
        title="Peak memory of ended runs",
        description="Peak of the last ended run on each rung, as in its result: of the GPU, on a CPU of the process.",
        unit="bytes",
        queries=(Query(f"max by (rung) (automonai_run_peak_memory_bytes{{{STUDY}}})", "rung {{rung}}"),),
    ),
    Panel(
        title="Study and software",
        description="Which study this is, and the version that runs it.",
        unit="none",
        queries=(
            Query(f"max without (instance, pod, job, container, endpoint) (automonai_study_info{{{STUDY}}})"),
            Query(f"max without (instance, pod, job, container, endpoint) (automonai_build_info{{{STUDY}}})"),
        ),
        kind="table",
        width=24,
        height=6,
    ),
)

STUDIES = Dashboard(
    uid="automonai-studies",
    title="AutoMONAI / Studies",
    description="Whether a study gets better, where its GPU hours go, and whether its controller is well.",
    panels=(*_STATS, *_COURSE),
)
