"""The parts of Kubernetes' objects that are looked at; all else in them is skipped as they are read."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic.alias_generators import to_camel

T = TypeVar("T")
Listed = Annotated[tuple[T, ...], BeforeValidator(lambda value: value or ())]
"""A list for which the API may write null."""


class _Object(BaseModel):
    """Not a Record of ours: the API adds fields with every version."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Metadata(_Object):
    """Who an object is."""

    name: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Condition(_Object):
    """Something that an object's controller says about it."""

    type: str
    status: str = "True"
    reason: str = ""
    message: str = ""

    @property
    def is_true(self) -> bool:
        """Whether it holds."""
        return self.status == "True"


class JobSpec(_Object):
    """What a Job asks for."""

    suspend: bool = False


class JobStatus(_Object):
    """How far a Job is."""

    conditions: Listed[Condition] = ()


class Job(_Object):
    """A batch/v1 Job."""

    metadata: Metadata
    spec: JobSpec = JobSpec()
    status: JobStatus = JobStatus()

    def condition(self, kind: str) -> Condition | None:
        """Return the condition of that type if it holds."""
        return _holding(self.status.conditions, kind)

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.condition("Complete") is not None or self.condition("Failed") is not None


class Terminated(_Object):
    """How a container ended."""

    exit_code: int = 0
    reason: str = ""
    message: str = ""


class Waiting(_Object):
    """Why a container does not run yet."""

    reason: str = ""
    message: str = ""


class ContainerState(_Object):
    """At most one is set; neither while it runs."""

    terminated: Terminated | None = None
    waiting: Waiting | None = None


class ContainerStatus(_Object):
    """One container's state."""

    name: str
    state: ContainerState = ContainerState()


class PodStatus(_Object):
    """How far a pod is."""

    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    conditions: Listed[Condition] = ()
    container_statuses: Listed[ContainerStatus] = ()


class Pod(_Object):
    """A pod of a run."""

    metadata: Metadata
    status: PodStatus = PodStatus()

    def condition(self, kind: str, *, holds: bool = True) -> Condition | None:
        """Return the condition of that type if it holds, or with `holds=False` if it does not."""
        return _holding(self.status.conditions, kind, holds=holds)

    @property
    def has_ended(self) -> bool:
        """Whether its containers are over."""
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def terminated(self) -> Terminated | None:
        """Return how its container ended; None while it has not."""
        states = (status.state.terminated for status in self.status.container_statuses)
        return next((state for state in states if state is not None), None)

    @property
    def waiting(self) -> Waiting | None:
        """Return why its container does not run; None if it does, or has."""
        states = (status.state.waiting for status in self.status.container_statuses)
        return next((state for state in states if state is not None), None)


class Parameter(_Object):
    """A Workflow's parameter."""

    name: str
    value: str | None = None


class Arguments(_Object):
    """What a Workflow was submitted with."""

    parameters: Listed[Parameter] = ()


class WorkflowSpec(_Object):
    """What a Workflow asks for."""

    shutdown: str = ""
    """Stop or Terminate once the user has asked for it."""
    arguments: Arguments = Arguments()


class WorkflowStatus(_Object):
    """How far a Workflow is."""

    phase: str = ""


class Workflow(_Object):
    """An Argo Workflow."""

    metadata: Metadata
    spec: WorkflowSpec = WorkflowSpec()
    status: WorkflowStatus = WorkflowStatus()

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.status.phase in ("Succeeded", "Failed", "Error")


class WorkflowTemplate(_Object):
    """An Argo WorkflowTemplate."""

    metadata: Metadata

    @property
    def instance_id(self) -> str:
        """Return the id of the Argo that it is for; empty: one that has none."""
        return self.metadata.labels.get("workflows.argoproj.io/controller-instanceid", "")


class LeaseSpec(_Object):
    """Who holds a Lease."""

    holder_identity: str | None = None


class Lease(_Object):
    """A coordination.k8s.io Lease."""

    metadata: Metadata
    spec: LeaseSpec = LeaseSpec()


class Change(StrEnum):
    """What a watch tells of an object."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


Kind = Literal["jobs", "pods"]


def _holding(conditions: tuple[Condition, ...], kind: str, *, holds: bool = True) -> Condition | None:
    return next((condition for condition in conditions if condition.type == kind and condition.is_true is holds), None)
