"""The Job of a run: pure functions from a request and a cluster's settings to the batch/v1 object."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, JsonValue, ValidationError

from automonai.domain.records import Record
from automonai.domain.request import EnsembleRequest, TrainRequest
from automonai.domain.run import Purpose
from automonai.errors import SpecError
from automonai.spec import explain

JsonObject = dict[str, JsonValue]

PART_OF_LABEL = "app.kubernetes.io/part-of"
PART_OF = "automonai"
STUDY_LABEL = "automonai/study"
STUDY_ID_LABEL = "automonai/study-id"
TRIAL_LABEL = "automonai/trial"
RUNG_LABEL = "automonai/rung"
"""Epochs of the budget; `refit` and `ensemble` for what comes after the search."""
RUN_LABEL = "automonai/run"
WORKFLOW_LABEL = "workflows.argoproj.io/workflow"
"""With it, and without `workflows.argoproj.io/completed`, `argo logs` and Argo's UI show the trials' lines too."""
KUEUE_LABEL = "kueue.x-k8s.io/queue-name"
CONTAINER = "main"
"""The name that Argo's log view expects."""
NEVER_RETRIED_EXIT_CODES = (64, 65, 66, 67)
"""`RunError.exit_code` of all kinds: the run would end the same way again."""
METRICS_PORT_NAME = "metrics"
"""Of the container's port, by which a PodMonitor finds it."""
GPUS_VARIABLE = "AUTOMONAI_GPUS"
"""Tells a worker how many GPUs its Job holds: on so many it trains, and it notices when it sees fewer."""
NO_GPUS = {"NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": ""}
"""Environment of a run that asks for no GPU: images and runtimes of NVIDIA show a container all of the node's
otherwise, and it would compute on one that the scheduler has given to another."""
CACHE_FOLDER = "/cache"
TERMINATION_LOG = "/dev/termination-log"
"""What a container writes there becomes its status's message; Kubernetes' own default."""
JOB_NAME_LENGTH = 63
_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class Toleration(Record):
    """A taint that a run's pod puts up with."""

    key: str | None = None
    """None with operator Exists: every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """None: every effect."""
    tolerationSeconds: int | None = None  # noqa: N815 - Kubernetes' own spelling, copied as it stands


class JobTemplate(Record):
    """What a cluster's owner decides about the pods of runs; one YAML file in the controller's pod."""

    image: str
    """The trainer's, by tag or digest."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    """Names of Secrets."""
    service_account: str | None = None
    """None: the namespace's default. Its token is never mounted."""
    user_id: Annotated[int, Field(ge=1)] | None = None
    """Who the pods run as, and the group of their volumes; None: the platform, as OpenShift, or the image says it."""
    labels: dict[str, str] = {}
    """Of Jobs and pods, beside those that the executor needs itself."""
    annotations: dict[str, str] = {}
    """Of Jobs and pods."""
    requests: dict[str, str] = {}
    """Resource name to quantity."""
    limits: dict[str, str] = {}
    """Resource name to quantity; the GPUs are added."""
    gpu_resource: str = "nvidia.com/gpu"
    """The resource's name, as the device plugin advertises it."""
    gpus_per_run: Annotated[int, Field(ge=0)] = 1
    """0: runs on the CPU. A training uses one; more keep others off its node."""
    gpu_memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of the smallest GPU that a run may get; None: unknown, no configuration is refused beforehand."""
    shared_memory: str = "2Gi"
    """Limit of /dev/shm, which counts towards the pod's memory."""
    scratch: str | None = None
    """Limit of each writable folder beside the cache; None: the node's."""
    cache: JsonObject = {"emptyDir": {}}
    """Volume of datasets and preprocessed cases, as in a pod's spec: one that runs share, or each pod's own."""
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()
    affinity: JsonObject = {}
    """As in a pod's spec."""
    priority_class: str | None = None
    runtime_class: str | None = None
    kueue_queue: str | None = None
    """A LocalQueue: Kueue then decides when the Job starts."""
    env: dict[str, str] = {}
    """Environment of the worker; nothing secret."""
    more_env: tuple[JsonObject, ...] = ()
    """Further environment, as in a container's spec: entries with `value` or `valueFrom`."""
    env_from_secrets: tuple[str, ...] = ()
    """Names of Secrets whose keys become the worker's environment: the store's keys."""
    ca_secret: str | None = None
    """A Secret with `ca.crt`, mounted at /etc/automonai/ca: the authority of the store's certificate."""
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Where the worker shows its metrics to Prometheus; None: nowhere."""
    active_deadline_seconds: Annotated[int, Field(ge=1)] | None = None
    """Longest life of a Job, its time in a queue excluded; None: no limit."""
    ttl_seconds: Annotated[int, Field(ge=0)] = 3600
    """How long an ended Job and its pod's log stay."""
    grace_seconds: Annotated[int, Field(ge=0)] = 30
    """Between SIGTERM and SIGKILL."""
    max_disruptions: Annotated[int, Field(ge=0)] = 5
    """How often one Job's pod may be evicted or preempted before the run counts as lost."""
    pending_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """How long a pod may find no node, or a Job no quota, before the run counts as lost."""
    image_seconds: Annotated[float, Field(gt=0)] = 120.0
    """How long a container may fail to start (image, secret, name) before the run counts as lost."""

    @property
    def memory_bytes(self) -> int | None:
        """Return what one run may use, None if that is unknown: of its GPUs, else its container's limit."""
        if self.gpus_per_run:
            return None if self.gpu_memory_gib is None else int(self.gpu_memory_gib * 2**30)
        return _bytes(self.limits["memory"]) if "memory" in self.limits else None


class WorkflowOwner(Record):
    """The Argo Workflow that a study's Jobs belong to: deleting it deletes them."""

    name: str
    uid: str


class StudyHandle(Record):
    """What a Job says about its study."""

    name: str
    id: str
    """Tells studies of one name apart, such as one that was deleted and begun anew."""
    location: str
    """What the worker opens: `s3://bucket/studies/name`."""


def load_template(path: Path) -> JobTemplate:
    """Read a JobTemplate from its YAML file.

    Raises:
        SpecError: If it cannot be read or breaks a rule; names each broken field.
    """
    try:
        return JobTemplate.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SpecError(f"{path}: the job template cannot be read: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: the job template is not valid YAML: {error}") from error
    except ValidationError as error:
        raise SpecError(f"{path}: the job template is invalid: {explain(error)}") from error


def study_id(name: str, started_at: float) -> str:
    """Return the id of a study that was started at that time."""
    return hashlib.sha256(f"{name}@{started_at}".encode()).hexdigest()[:10]


def job_name(study: StudyHandle, request: TrainRequest | EnsembleRequest) -> str:
    """Return the name of a request's Job, the same for the same study, run and attempt; at most 63 characters."""
    identity = f"{study.id}/{request.run_id}/{request.attempt}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:6]
    ending = f"{_short_run(request)}-a{request.attempt}-{digest}"
    return f"{study.name[: JOB_NAME_LENGTH - 1 - len(ending)].rstrip('-')}-{ending}"


def job_manifest(
    request: TrainRequest | EnsembleRequest,
    template: JobTemplate,
    *,
    study: StudyHandle,
    owner: WorkflowOwner | None,
) -> JsonObject:
    """Return the Job of a request.

    Args:
        request: What the worker is to do; it reads it from the store.
        template: The cluster's settings.
        study: Whose run it is.
        owner: Deleting it deletes the Job; None where no Workflow runs the study.
    """
    metadata: JsonObject = {
        "name": job_name(study, request),
        "labels": _labels(request, template, study=study, owner=owner, is_pod=False),
        "annotations": dict(template.annotations),
    }
    if owner is not None:
        metadata["ownerReferences"] = [_owner_reference(owner)]
    spec: JsonObject = {
        "backoffLimit": 0,  # a lost run is queued again by the controller alone
        "completions": 1,
        "parallelism": 1,
        "podReplacementPolicy": "Failed",  # two pods of one run would write one checkpoint
        "podFailurePolicy": _failure_policy(),
        "ttlSecondsAfterFinished": template.ttl_seconds,
        "template": {
            "metadata": {
                "labels": _labels(request, template, study=study, owner=owner, is_pod=True),
                "annotations": {**_scraping(template), **template.annotations},
            },
            "spec": _pod_spec(request, template, location=study.location),
        },
    }
    if template.active_deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = template.active_deadline_seconds
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _short_run(request: TrainRequest | EnsembleRequest) -> str:
    if isinstance(request, EnsembleRequest):
        return "ensemble"
    run = request.run
    if run.purpose is Purpose.REFIT:
        return f"refit{run.trial:04d}-f{run.fold}"
    return f"t{run.trial:04d}-e{run.budget_epochs:04d}-f{run.fold}"


def _labels(
    request: TrainRequest | EnsembleRequest,
    template: JobTemplate,
    *,
    study: StudyHandle,
    owner: WorkflowOwner | None,
    is_pod: bool,
) -> JsonObject:
    labels: JsonObject = {
        **template.labels,
        "app.kubernetes.io/name": "automonai",
        "app.kubernetes.io/component": "trial",
        PART_OF_LABEL: PART_OF,
        STUDY_LABEL: study.name,
        STUDY_ID_LABEL: study.id,
        RUN_LABEL: request.run_id,
        "automonai/attempt": str(request.attempt),
    }
    labels[RUNG_LABEL] = request.rung
    if isinstance(request, TrainRequest):
        labels[TRIAL_LABEL] = str(request.run.trial)
    if owner is not None:
        labels[WORKFLOW_LABEL] = owner.name  # Argo labels its own pods with it, so it is no longer than a label
    if template.kueue_queue is not None and not is_pod:
        labels[KUEUE_LABEL] = template.kueue_queue
    return labels


def _scraping(template: JobTemplate) -> dict[str, str]:
    """Return the annotations by which a Prometheus without its operator finds a pod."""
    if template.metrics_port is None:
        return {}
    return {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(template.metrics_port),
        "prometheus.io/path": "/metrics",
    }


def _owner_reference(owner: WorkflowOwner) -> JsonObject:
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def _failure_policy() -> JsonObject:
    exit_codes: JsonObject = {
        "containerName": CONTAINER,
        "operator": "In",
        "values": list(NEVER_RETRIED_EXIT_CODES),
    }
    return {
        "rules": [
            {"action": "FailJob", "onExitCodes": exit_codes},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]
    }


def _pod_spec(request: TrainRequest | EnsembleRequest, template: JobTemplate, *, location: str) -> JsonObject:
    optional: JsonObject = {
        "serviceAccountName": template.service_account,
        "imagePullSecrets": [{"name": name} for name in template.image_pull_secrets],
        "nodeSelector": dict(template.node_selector),
        "tolerations": [toleration.model_dump(exclude_none=True) for toleration in template.tolerations],
        "affinity": template.affinity,
        "priorityClassName": template.priority_class,
        "runtimeClassName": template.runtime_class,
    }
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": template.grace_seconds,
        "securityContext": _pod_security(template),
        "containers": [_container(request, template, location=location)],
        "volumes": _volumes(template),
        **{key: value for key, value in optional.items() if value},
    }


def _pod_security(template: JobTemplate) -> JsonObject:
    user = template.user_id
    return {
        "runAsNonRoot": True,
        **({} if user is None else {"runAsUser": user, "runAsGroup": user, "fsGroup": user}),
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container(request: TrainRequest | EnsembleRequest, template: JobTemplate, *, location: str) -> JsonObject:
    mounts: list[JsonValue] = [
        {"name": "cache", "mountPath": CACHE_FOLDER},
        {"name": "scratch", "mountPath": "/tmp"},
        {"name": "home", "mountPath": "/home/automonai"},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]
    if template.ca_secret is not None:
        mounts.append({"name": "ca", "mountPath": "/etc/automonai/ca", "readOnly": True})
    arguments: list[JsonValue] = [
        location,
        *("--cache", CACHE_FOLDER),
        *("--run", request.run_id),
        *("--last-words", TERMINATION_LOG),
    ]
    gpus = template.gpus_per_run if isinstance(request, TrainRequest) else min(1, template.gpus_per_run)
    container: JsonObject = {
        "name": CONTAINER,
        "image": template.image,
        "imagePullPolicy": template.image_pull_policy,
        "command": ["python", "-m", "automonai.worker"],
        "args": arguments,
        "env": _environment(template, gpus=gpus),
        "envFrom": [{"secretRef": {"name": name}} for name in template.env_from_secrets],
        "resources": _resources(template, gpus=gpus),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": mounts,
    }
    if template.metrics_port is not None:
        container["args"] = [*arguments, "--metrics-port", str(template.metrics_port)]
        container["ports"] = [{"name": METRICS_PORT_NAME, "containerPort": template.metrics_port}]
    return container


def _environment(template: JobTemplate, *, gpus: int) -> list[JsonValue]:
    values = {
        "HOME": "/home/automonai",
        "TMPDIR": "/tmp",
        "MPLCONFIGDIR": "/tmp/matplotlib",
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/torchinductor",
        "TRITON_CACHE_DIR": "/tmp/triton",
        "PYTHONUNBUFFERED": "1",
        "AUTOMONAI_LOG_FORMAT": "json",
        GPUS_VARIABLE: str(gpus),
        **({} if gpus else NO_GPUS),
        **({} if template.ca_secret is None else {"AWS_CA_BUNDLE": "/etc/automonai/ca/ca.crt"}),
        **template.env,
    }
    entries: list[JsonValue] = [{"name": name, "value": value} for name, value in values.items()]
    return [*entries, *template.more_env]


def _resources(template: JobTemplate, *, gpus: int) -> JsonObject:
    limits: JsonObject = {**template.limits}
    if gpus:
        limits[template.gpu_resource] = str(gpus)
    resources: JsonObject = {"requests": {**template.requests}, "limits": limits}
    return {key: value for key, value in resources.items() if value}


def _volumes(template: JobTemplate) -> list[JsonValue]:
    volumes: list[JsonValue] = [
        {"name": "cache", **template.cache},
        {"name": "scratch", "emptyDir": _empty(template.scratch)},
        {"name": "home", "emptyDir": _empty(template.scratch)},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": template.shared_memory}},
    ]
    if template.ca_secret is not None:
        volumes.append({"name": "ca", "secret": {"secretName": template.ca_secret}})
    return volumes


def _empty(size: str | None) -> JsonObject:
    return {} if size is None else {"sizeLimit": size}


def _bytes(quantity: str) -> int | None:
    """Return the bytes of a Kubernetes quantity such as 8Gi; None for a form that memory never has."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMGT]?i?)", quantity)
    return int(float(match[1]) * _BYTES[match[2]]) if match and match[2] in _BYTES else None
