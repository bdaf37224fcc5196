"""What became of a Job, decided from what the API says about it and its pods; pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from automonai.domain.run import LossCause
from automonai.execution.cluster_objects import Condition, Job, Pod, Terminated, Waiting
from automonai.execution.executor import left_without_answer

KILLED = 137
"""Exit code of a container that was ended by SIGKILL."""


@dataclass(frozen=True)
class Loss:
    """Why a run is lost."""

    cause: LossCause
    why: str
    is_by_refusal: bool = False
    """Whether a node did not admit its pod: that node looks free, and would get the next attempt at once."""


@dataclass(frozen=True)
class Limits:
    """How long a run may wait, and how often be disturbed, before it counts as lost."""

    max_disruptions: int
    pending_seconds: float
    image_seconds: float
    leaving_seconds: float
    """A pod that is still there so long after it was told to leave is on a node that is lost."""


@dataclass
class Sighting:
    """What was last seen of a Job and its pods; times are the controller's own, so clocks need not agree."""

    job: Job | None = None
    is_deleted: bool = False
    pods: dict[str, Pod] = field(default_factory=dict)
    """By uid; those that are gone stay, as they were last seen."""
    waiting_since: float | None = None
    """Since when nothing of it runs that should; None while something runs, or Kueue holds it back."""
    failing_since: float | None = None
    """Since when its container cannot be started."""
    leaving_since: float | None = None
    """Since when its newest pod, or the deleted Job's, should be gone."""
    gone: set[str] = field(default_factory=set)
    """Uids of pods that the API does not know any more."""

    @property
    def newest_pod(self) -> Pod | None:
        """Return the pod that was made last; None before the first."""
        latest_seen_first = reversed(self.pods.values())
        return max(latest_seen_first, key=lambda pod: pod.metadata.creation_timestamp or _LONG_AGO, default=None)

    @property
    def disrupted(self) -> tuple[Pod, ...]:
        """Return the pods that were taken away."""
        return tuple(pod for pod in self.pods.values() if pod.condition("DisruptionTarget") is not None)

    @property
    def is_quiet(self) -> bool:
        """Whether no pod of it can write to the store any more."""
        return all(uid in self.gone or pod.has_ended for uid, pod in self.pods.items())

    @property
    def may_have_answered(self) -> bool:
        """Whether its worker has ended, so that an answer is worth looking for; earlier than the Job says so."""
        ended = any(pod.has_ended or pod.terminated is not None for pod in self.pods.values())
        return ended or self.is_deleted or (self.job is not None and self.job.has_ended)


_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_DISRUPTED_BY_LOST_NODE = ("DeletionByTaintManager", "DeletionByPodGC")
"""Reasons of the DisruptionTarget condition; Kubernetes' documentation, "Pod disruption conditions"."""
_CANNOT_START = (
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
)


def take_note(sighting: Sighting, now: float) -> None:
    """Set a sighting's clocks by what it now holds."""
    pod, job = sighting.newest_pod, sighting.job
    is_held = job is not None and job.spec.suspend
    is_idle = (
        pod is None
        or pod.metadata.uid in sighting.gone
        or pod.status.phase == "Pending"
        or (pod.has_ended and not _has_ended(sighting))
    )
    sighting.waiting_since = None if is_held or not is_idle else _earlier(sighting.waiting_since, now)
    is_failing = pod is not None and not pod.has_ended and _cannot_start(pod) is not None
    sighting.failing_since = _earlier(sighting.failing_since, now) if is_failing else None
    is_leaving = pod is not None and pod.metadata.deletion_timestamp is not None
    is_leaving = (is_leaving or sighting.is_deleted) and not sighting.is_quiet
    sighting.leaving_since = _earlier(sighting.leaving_since, now) if is_leaving else None


def loss_of(sighting: Sighting, limits: Limits, now: float) -> Loss | None:
    """Return why a run without an answer is lost, None while it may still give one."""
    failed = sighting.job.condition("Failed") if sighting.job is not None else None
    if failed is not None:
        return _failure(sighting, failed)
    if sighting.is_deleted:
        return Loss(LossCause.DELETED, "its Job was deleted by somebody")
    if sighting.job is not None and sighting.job.condition("Complete") is not None:
        return Loss(LossCause.CRASH, left_without_answer(0))
    if len(sighting.disrupted) > limits.max_disruptions:
        return _disruptions(sighting)
    return _waited_too_long(sighting, limits, now)


def is_stuck(sighting: Sighting, limits: Limits, now: float) -> bool:
    """Whether a pod should be gone since long: nobody will hear of it again."""
    return sighting.leaving_since is not None and now - sighting.leaving_since >= limits.leaving_seconds


def disruption_cause(pod: Pod) -> LossCause:
    """Return which kind of disruption took a pod away."""
    condition = pod.condition("DisruptionTarget")
    is_node = condition is not None and condition.reason in _DISRUPTED_BY_LOST_NODE
    return LossCause.NODE_LOST if is_node or pod.status.reason == "NodeLost" else LossCause.DISRUPTION


def disruption_reason(pod: Pod) -> str:
    """Return why a pod was taken away, in Kubernetes' word for it, and what its node's kubelet said."""
    condition = pod.condition("DisruptionTarget")
    reason = (condition.reason if condition is not None else pod.status.reason) or "an unknown cause"
    return f"{reason} ({pod.status.message})" if pod.status.message else reason


def has_run(pod: Pod) -> bool:
    """Whether a pod's container has been started."""
    return pod.status.phase == "Running" or pod.terminated is not None or pod.status.phase == "Succeeded"


def is_worth_deleting(sighting: Sighting) -> bool:
    """Whether a lost run's Job still holds something that its next attempt needs."""
    return not sighting.is_deleted and not _has_ended(sighting)


def _failure(sighting: Sighting, failed: Condition) -> Loss:
    if failed.reason == "DeadlineExceeded":
        return Loss(LossCause.DEADLINE, f"its Job ran into activeDeadlineSeconds ({failed.message})")
    loss = _worst_of_pods(sighting)
    return loss or Loss(LossCause.CRASH, f"its Job failed: {failed.reason}: {failed.message}")


def _worst_of_pods(sighting: Sighting) -> Loss | None:
    pod = sighting.newest_pod
    if pod is None:
        return None
    ended = pod.terminated
    if ended is not None and ended.reason == "OOMKilled":
        return Loss(
            LossCause.OUT_OF_MEMORY,
            "its container was killed out of memory (OOMKilled); raise the runs' memory limit or lower"
            " execution.memory_gib",
        )
    if pod.condition("DisruptionTarget") is not None or pod.status.reason in ("NodeLost", "Evicted"):
        return _disruptions(sighting)
    if ended is not None:
        return Loss(LossCause.CRASH, _exit_words(ended))
    return _refusal(pod)


def _refusal(pod: Pod) -> Loss | None:
    """Return why a pod ended although its container never ran: its node's kubelet did not admit it."""
    if not pod.has_ended or not (pod.status.reason or pod.status.message):
        return None
    words = ": ".join(filter(None, (pod.status.reason, pod.status.message)))
    return Loss(LossCause.UNSCHEDULABLE, f"its node refused its pod: {words}", is_by_refusal=True)


def _disruptions(sighting: Sighting) -> Loss:
    pods = sighting.disrupted or tuple(sighting.pods.values())[-1:]
    times = f"{len(pods)} times, the last time" if len(pods) > 1 else "once"
    cause = disruption_cause(pods[-1])
    what = "its pod's node was lost" if cause is LossCause.NODE_LOST else "its pod was disrupted"
    return Loss(cause, f"{what} {times} by {disruption_reason(pods[-1])}")


def _waited_too_long(sighting: Sighting, limits: Limits, now: float) -> Loss | None:
    pod = sighting.newest_pod
    if is_stuck(sighting, limits, now):
        why = f"its pod was told to leave {limits.leaving_seconds:.0f} s ago and is still there: its node is lost"
        return Loss(LossCause.NODE_LOST, why)
    if sighting.failing_since is not None and now - sighting.failing_since >= limits.image_seconds:
        waiting = _cannot_start(pod) if pod is not None else None
        words = f"{waiting.reason}: {waiting.message}" if waiting is not None else "no reason given"
        return Loss(LossCause.IMAGE, f"its container could not be started: {words}")
    if sighting.waiting_since is None or now - sighting.waiting_since < limits.pending_seconds:
        return None
    waited = f"{limits.pending_seconds:.0f} s"
    if pod is None or pod.has_ended or pod.metadata.uid in sighting.gone:
        return Loss(
            LossCause.QUOTA, f"its Job could not make a pod for {waited}: a quota or an admission rule refuses it"
        )
    unscheduled = pod.condition("PodScheduled", holds=False)
    if unscheduled is None and pod.condition("PodScheduled") is not None:
        what = "its volumes (kubectl describe pod tells) or its image are not ready"
        return Loss(LossCause.UNSCHEDULABLE, f"its pod has a node, but for {waited} no container: {what}")
    words = unscheduled.message if unscheduled is not None else "its pod stays Pending"
    return Loss(LossCause.UNSCHEDULABLE, f"no node took its pod for {waited}: {words}")


def _cannot_start(pod: Pod) -> Waiting | None:
    waiting = pod.waiting
    return waiting if waiting is not None and waiting.reason in _CANNOT_START else None


def _exit_words(ended: Terminated) -> str:
    if ended.exit_code == KILLED:
        return "its worker was ended by SIGKILL (exit code 137)"
    return left_without_answer(ended.exit_code, ended.message.strip())


def _has_ended(sighting: Sighting) -> bool:
    return sighting.job is not None and sighting.job.has_ended


def _earlier(since: float | None, now: float) -> float:
    return now if since is None else since
