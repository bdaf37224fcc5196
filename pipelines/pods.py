"""What the pods of all templates have in common: their accounts, what they mount, what they know."""

from __future__ import annotations

from hera.workflows import Container, Env, Parameter, RetryStrategy, WorkflowTemplate
from hera.workflows import models as m
from hera.workflows.archive import NoneArchiveStrategy
from hera.workflows.artifact import S3Artifact
from hera.workflows.env_from import ConfigMapEnvFrom, SecretEnvFrom
from hera.workflows.retry_strategy import RetryPolicy
from hera.workflows.volume import EmptyDirVolume

from automonai.errors import TRY_LATER
from automonai.execution.jobs import GPUS_VARIABLE, METRICS_PORT_NAME, STUDY_LABEL
from pipelines import release

METRICS_PORT = 9109
CACHE_LABEL = "automonai/cache"
"""Of the pods that mount the cache: the chart's podAffinity keeps them on one node where the volume needs that."""
JOB_TEMPLATE_FOLDER = "/etc/automonai/job-template"
_IN_VAIN = "^[a-z]+: OOMKilled|^Error applying PodSpecPatch|^pods .[a-z0-9.-]+. is forbidden: violates PodSecurity"
"""Of Argo's messages `main: OOMKilled (exit code 137)`, which begins with the container's name, of a parameter that is
no number where the pod needs one, and of a pod that its namespace does not admit."""
REPORT_FILE = "/tmp/report.html"  # noqa: S108 - of the container, where /tmp is a volume of the pod's own

_OWN_VOLUMES = {"tmp": "/tmp", "home": "/home/automonai"}  # noqa: S108 - the root file system is read-only

_IDENTITY = {
    "AUTOMONAI_WORKFLOW_NAME": "{{workflow.name}}",
    "AUTOMONAI_WORKFLOW_UID": "{{workflow.uid}}",
    "AUTOMONAI_NAMESPACE": "{{workflow.namespace}}",
    "AUTOMONAI_JOB_TEMPLATE": f"{JOB_TEMPLATE_FOLDER}/job-template.yaml",
    "AUTOMONAI_LOG_FORMAT": "json",
    "XDG_CACHE_HOME": "/cache",
    "HOME": "/home/automonai",
    "MPLCONFIGDIR": "/tmp/matplotlib",
}

_METRICS = {"AUTOMONAI_METRICS_PORT": release.METRICS_PORT}

_SCRAPING = {
    "prometheus.io/scrape": release.METRICS_SCRAPED,
    "prometheus.io/port": str(METRICS_PORT),
    "prometheus.io/path": "/metrics",
}


def step(
    name: str,
    arguments: list[str],
    *,
    image: str = release.CONTROLLER_IMAGE,
    account: str = release.STEP_ACCOUNT,
    retry: RetryStrategy | None = None,
    outputs: list[S3Artifact] | None = None,
    patch: str = release.STEP_PATCH,
    study: str | None = None,
    gpus: str | None = None,
) -> Container:
    """Return the template of one pod that runs `automonai step NAME`.

    Its last lines of output become the node's message in Argo's UI where the program left no message of its own.

    Args:
        name: Of the step.
        arguments: Its options.
        image: What it runs.
        account: Who it runs as.
        retry: When it is started again.
        outputs: Files that Argo keeps.
        patch: What the release decides about its pod.
        study: Name of the study whose metrics it shows to Prometheus; None: it has none.
        gpus: How many its pod holds, for a step that computes on them; None: it does not.
    """
    return Container(
        name=name,
        image=image,
        command=["automonai"],
        args=["step", name, *arguments],
        env=[Env(name=key, value=value) for key, value in _environment(study, gpus).items()],
        env_from=[  # the last one counts: a secret may hold an address of the store, too, which trainings do not heed
            SecretEnvFrom(name=release.STORE_SECRET, optional=True),
            ConfigMapEnvFrom(name=release.SETTINGS),
        ],
        volumes=[
            *(EmptyDirVolume(name=volume, mount_path=path) for volume, path in _OWN_VOLUMES.items()),
            m.Volume(name="job-template", config_map=m.ConfigMapVolumeSource(name=release.JOB_TEMPLATE)),
        ],
        volume_mounts=[m.VolumeMount(name="job-template", mount_path=JOB_TEMPLATE_FOLDER, read_only=True)],
        security_context=m.SecurityContext(
            allow_privilege_escalation=False,
            capabilities=m.Capabilities(drop=["ALL"]),
            read_only_root_filesystem=True,
        ),
        termination_message_policy="FallbackToLogsOnError",
        service_account_name=account,
        retry_strategy=retry,
        outputs=outputs,
        pod_spec_patch=patch,
        labels=_labels(study, patch),
        annotations=None if study is None else _SCRAPING,
        ports=None if study is None else [m.ContainerPort(name=METRICS_PORT_NAME, container_port=METRICS_PORT)],
    )


def _labels(study: str | None, patch: str) -> dict[str, str] | None:
    cache = {CACHE_LABEL: release.CACHE} if patch in (release.CHECK_PATCH, release.TRIAL_PATCH) else {}
    return {**cache, **({} if study is None else {STUDY_LABEL: study})} or None


def _environment(study: str | None, gpus: str | None) -> dict[str, str]:
    return {
        **_IDENTITY,
        **({} if study is None else _METRICS),
        **({} if gpus is None else {GPUS_VARIABLE: gpus}),
    }


def options(parameters: list[Parameter]) -> list[str]:
    """Return a command's options that hand over a workflow's parameters, whatever they contain."""
    return [f"--{parameter.name}={{{{workflow.parameters.{parameter.name}}}}}" for parameter in parameters]


def html_artifact() -> S3Artifact:
    """Return the report as Argo's UI shows it: one file, not packed, its key ending in .html."""
    return S3Artifact(
        name="report",
        path=REPORT_FILE,
        key="workflows/{{workflow.name}}/report.html",
        archive=NoneArchiveStrategy(),
    )


def retry_after_disruption(*, services_away: bool = False) -> RetryStrategy:
    """Return the strategy that starts a step again after its pod was lost, never after an error of its own.

    -1 is a pod that ended without any exit code: its node is gone, or refused it. 137 and 143 are SIGKILL and SIGTERM:
    an eviction. A user's Stop ends with 0, see `automonai.cluster_steps`. The kernel's kill of a container that has
    used up its memory is 137 as well, but would come again, and so would a pod that cannot be made of the workflow's
    parameters: Argo's message tells them apart. The message goes on with the log's last lines, which may tell of a
    training's pod, so that only its beginning counts.

    Args:
        services_away: Also start it again when it has given up waiting for the store or the Kubernetes API; for steps
            of a study whose check has reached the store before, so that its address is not the fault.
    """
    codes = [-1, TRY_LATER, 137, 143] if services_away else [-1, 137, 143]
    return RetryStrategy(
        limit="50",
        retry_policy=RetryPolicy.always,
        expression=f"(lastRetry.status == 'Error' || asInt(lastRetry.exitCode) in {codes})"
        f" && !(lastRetry.message matches '{_IN_VAIN}')",
        backoff=m.Backoff(duration="5s", factor=2, cap="2m"),
    )


def template(name: str, *, description: str, parameters: list[Parameter]) -> WorkflowTemplate:
    """Return a WorkflowTemplate without steps: its form, and what holds for all of its pods."""
    return WorkflowTemplate(
        name=name,
        annotations={
            "workflows.argoproj.io/title": name,
            "workflows.argoproj.io/description": description,
        },
        arguments=parameters,
        service_account_name=release.STEP_ACCOUNT,
        artifact_repository_ref=m.ArtifactRepositoryRef(config_map=release.ARTIFACTS, key="automonai"),
        archive_logs=True,
    )
