"""The workflow of a study: check, search, refit, report; and what a user submits to start one."""

from __future__ import annotations

from hera.workflows import Parameter, Steps, Workflow, WorkflowTemplate
from hera.workflows import models as m

from automonai.spec import SamplerName
from pipelines import release
from pipelines.pods import html_artifact, options, retry_after_disruption, step, template

STUDY = "automonai-study"
GPU_COUNTS = ("0", "1", "2", "4", "8")
INSTANCE_LABEL = "workflows.argoproj.io/controller-instanceid"
"""An Argo that has an instance id sees only what carries it; one that has none, only what carries none."""

_DESCRIPTION = "Finds the best U-Net pipeline for a dataset by BOHB within a budget, and reports it."


def study_parameters() -> list[Parameter]:
    """Return the fields of the form that Argo's UI shows, in its order."""
    return [
        Parameter(
            name="dataset",
            value="",
            description="Where the dataset lies, for example s3://automonai/datasets/hippocampus."
            " 'automonai data push' puts it there.",
        ),
        Parameter(
            name="name",
            value="",
            description="Of the study: lower-case letters, digits and hyphens, at most 40."
            " A name that is there already goes on where it was left.",
        ),
        Parameter(
            name="budget",
            value="1h",
            description="What may be spent: a time (20m, 1h, 2d), '30 epochs' or '3 iterations'."
            " A time also runs while trainings wait for GPUs.",
        ),
        Parameter(
            name="sampler",
            value=SamplerName.BOHB.value,
            enum=[sampler.value for sampler in SamplerName],
            description="The search method.",
        ),
        Parameter(
            name="parallel-runs",
            value=release.PARALLEL_RUNS,
            description="Trainings at once, each in a Job of its own.",
        ),
        Parameter(
            name="gpus-per-run",
            value=release.GPU_COUNT,
            enum=list(GPU_COUNTS),
            description="GPUs of each training: several share the patches of every batch. 0: CPU only.",
        ),
        Parameter(
            name="spec",
            value="",
            description="A whole study.yaml, for everything else. What it states goes before the fields above;"
            " the name must stand there all the same if several studies run at once.",
        ),
    ]


def gpu_parameter(description: str) -> Parameter:
    """Return the field for the GPUs of a workflow whose one pod trains or predicts itself."""
    return Parameter(name="gpus", value=release.GPU_COUNT, enum=list(GPU_COUNTS), description=description)


def study_template() -> WorkflowTemplate:
    """Return the WorkflowTemplate `automonai-study`.

    One study has one workflow at a time; a second one of the same name waits. The steps search and refit are its
    controller, one after the other: an eviction brings a successor that adopts the Jobs.
    """
    parameters = study_parameters()
    asked = options(parameters)
    workflow = template(STUDY, description=_DESCRIPTION, parameters=parameters)
    workflow.entrypoint = "study"
    workflow.on_exit = "finish"
    workflow.synchronization = m.Synchronization(mutexes=[m.Mutex(name=f"{STUDY}-{{{{workflow.parameters.name}}}}")])
    controller = release.CONTROLLER_ACCOUNT
    with workflow:
        check = step("check", asked, retry=retry_after_disruption(), patch=release.CHECK_PATCH)
        search, refit = (
            step(
                name,
                asked,
                account=controller,
                retry=retry_after_disruption(services_away=True),
                study="{{workflow.parameters.name}}",
            )
            for name in ("search", "refit")
        )
        report = step("report", asked, retry=retry_after_disruption(services_away=True), outputs=[html_artifact()])
        step("finish", [], account=controller, retry=retry_after_disruption(services_away=True))
        with Steps(name="study"):
            check(name="check")
            search(name="search")
            refit(name="refit")
            report(name="report")
    return workflow


def study_workflow(*, name: str, spec: str, instance_id: str = "") -> Workflow:
    """Return what starts a study by the template of the cluster: nothing but its parameters.

    Args:
        name: The study's; also the start of the Workflow's.
        spec: The whole StudySpec as YAML.
        instance_id: Of the Argo that is to run it; empty: it has none.
    """
    arguments = [Parameter(name="name", value=name), Parameter(name="spec", value=spec)]
    return Workflow(
        generate_name=f"{name}-",
        labels={INSTANCE_LABEL: instance_id} if instance_id else None,
        workflow_template_ref=m.WorkflowTemplateRef(name=STUDY),
        arguments=arguments,
    )
