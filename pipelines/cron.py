"""An example: a study that only uses the cluster at night."""

from __future__ import annotations

from hera.workflows import CronWorkflow, Parameter
from hera.workflows import models as m

from pipelines.study import STUDY

NIGHT_SECONDS = 10 * 3600


def nightly_study() -> CronWorkflow:
    """Return a CronWorkflow that takes one study up every evening and leaves it in the morning.

    When its time is over Argo ends the workflow; the exit step deletes the running Jobs, and the next evening's
    workflow goes on from their last checkpoints.
    """
    return CronWorkflow(
        name="nightly-study",
        schedules=["0 20 * * *"],
        timezone="Etc/UTC",
        concurrency_policy="Forbid",
        active_deadline_seconds=NIGHT_SECONDS,
        workflow_template_ref=m.WorkflowTemplateRef(name=STUDY),
        arguments=[
            Parameter(name="dataset", value="s3://automonai/datasets/hippocampus"),
            Parameter(name="name", value="nightly"),
            Parameter(name="budget", value="10 iterations"),
            Parameter(name="parallel-runs", value="8"),
        ],
    )
