"""One request's Job: what was seen of it, and what follows from that; nothing is asked of the cluster here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from automonai.domain.request import EnsembleRequest, TrainRequest
from automonai.domain.run import LossCause
from automonai.errors import ClusterError
from automonai.execution.cluster_api import FORBIDDEN, STARTING_SECONDS, WatchEvent
from automonai.execution.cluster_objects import Change, Job, Pod
from automonai.execution.endings import (
    Limits,
    Loss,
    Sighting,
    disruption_cause,
    disruption_reason,
    has_run,
    is_stuck,
    is_worth_deleting,
    loss_of,
    take_note,
)
from automonai.execution.executor import Notice
from automonai.execution.watcher import Relisted, pause_seconds

logger = logging.getLogger(__name__)

JOB_UID_LABEL = "batch.kubernetes.io/controller-uid"


@dataclass
class TrackedJob:
    """A request in hand, its Job, and what was seen of it."""

    request: TrainRequest | EnsembleRequest
    name: str
    """The Job's, made or not."""
    since: float
    """When the request came; times are the controller's own."""
    tell: Callable[[Notice], object]
    """Gets each notice."""
    is_answered: bool = False
    """Whether the store had the answer before any Job was made."""
    uid: str = ""
    """The Job's; empty until it is made or adopted."""
    is_there: bool = False
    """Whether a predecessor has made its Job, which is adopted whether a slot is free or not."""
    is_missing: bool = False
    """Whether a list lacked the Job: it is asked for by name."""
    is_deletion_asked: bool = False
    is_adopted: bool = False
    """Whether the Job was there before the request: the watches may have told of its pods already."""
    are_pods_asked: bool = False
    """Whether the pods of a Job that failed or was adopted were asked for: the two watches do not keep step."""
    next_try_at: float = 0.0
    is_news: bool = False
    """Whether something was seen since it was last looked at."""
    loss: Loss | None = None
    """Set once it is lost; it is reported when no pod of it can write any more."""
    sighting: Sighting = field(default_factory=Sighting)
    _failures: int = 0
    """Of requests to the API in a row."""
    _refused_since: float | None = None
    """When the API began to refuse us; None while it does not."""
    _blocked_since: float | None = None
    """Since when a Job of its name that is being deleted is in its way."""
    _refusal: str = ""
    """The quota's words when its Job was refused last."""
    _disrupted: set[str] = field(default_factory=set)
    """Uids of pods of whose disruption a notice was given."""
    _has_started: bool = False
    _lost_at: float = 0.0

    @property
    def run_id(self) -> str:
        """Return whose request it is."""
        return self.request.run_id

    @property
    def ids(self) -> dict[str, str]:
        """Return what a log line says about where it comes from."""
        return {"run": self.run_id}

    @property
    def lacks_pods(self) -> bool:
        """Whether the Job was adopted, or has failed and no pod that could say why has been seen to end."""
        if self.is_adopted and not self.are_pods_asked:
            return True
        job, pod = self.sighting.job, self.sighting.newest_pod
        has_failed = job is not None and job.condition("Failed") is not None
        return has_failed and not self.are_pods_asked and (pod is None or not pod.has_ended)

    @property
    def needs_deletion(self) -> bool:
        """Whether the Job, once the run is lost, would go on if nobody deleted it."""
        return bool(self.uid) and not self.is_deletion_asked and is_worth_deleting(self.sighting)

    @property
    def may_have_answered(self) -> bool:
        """Whether an answer may have come into the store since it was last looked for."""
        return self.is_news and self.sighting.may_have_answered

    def owns(self, thing: Job | Pod) -> bool:
        """Whether a Job or pod belongs to it, and not to an earlier Job of the same run."""
        uid = thing.metadata.uid if isinstance(thing, Job) else thing.metadata.labels.get(JOB_UID_LABEL)
        return self.uid == uid

    def made(self, uid: str, *, is_adopted: bool = False) -> None:
        """Take note that its Job is there."""
        self.uid, self.is_adopted, self._failures = uid, is_adopted, 0
        self._refused_since = self._blocked_since = None

    def may_be_refused(self, now: float, error: ClusterError) -> bool:
        """Whether a refusal may only mean that the API server has just been started; if it lasts, it does not."""
        if not error.is_refusal:
            return False
        self._refused_since = now if self._refused_since is None else self._refused_since
        return now - self._refused_since < STARTING_SECONDS

    def put_off(self, now: float, error: ClusterError | None = None) -> None:
        """Take note that a request to the API has to wait; each further one in a row for longer."""
        self._failures += 1
        self.next_try_at = now + pause_seconds(self._failures)
        self._refusal = str(error) if error is not None and error.status == FORBIDDEN else ""
        if error is not None:
            self._blocked_since = None
            logger.warning("it has to wait: %s; trying again", error, extra=self.ids)

    def note_blocked(self, now: float) -> None:
        """Take note that an earlier Job of its name is still being deleted."""
        self._blocked_since = now if self._blocked_since is None else self._blocked_since
        self.put_off(now)

    def note(self, thing: Job | Pod) -> None:
        """Take note of a Job or pod of its own."""
        self.is_news = True
        if isinstance(thing, Job):
            self.sighting.job = thing
            return
        self.sighting.pods[thing.metadata.uid] = thing
        self.sighting.gone.discard(thing.metadata.uid)  # a list that lacked it may have been older than the pod
        if has_run(thing):
            self.note_start()
        if thing.condition("DisruptionTarget") is not None and thing.metadata.uid not in self._disrupted:
            self._note_disruption(thing)

    def note_change(self, event: WatchEvent) -> None:
        """Take note of what a watch told of a Job or pod of its own."""
        self.note(event.object)
        if event.change is not Change.DELETED:
            return
        if isinstance(event.object, Job):
            self.sighting.is_deleted = True
        else:
            self.sighting.gone.add(event.object.metadata.uid)

    def note_list(self, listed: Relisted) -> None:
        """Take note of what a list lacks; what it has is noted thing by thing."""
        self.is_news = True
        uids = {thing.metadata.uid for thing in listed.objects}
        if listed.kind == "pods":
            self.sighting.gone |= self.sighting.pods.keys() - uids
        else:
            # The list may be older than the Job, so that its lack proves nothing yet.
            self.is_missing = bool(self.uid) and self.uid not in uids

    def note_found(self, is_there: bool) -> None:
        """Take note of whether the Job that a list lacked is there after all."""
        self.sighting.is_deleted = not is_there
        self.is_missing, self.is_news = False, True

    def note_start(self) -> None:
        """Take note that a worker took it up."""
        if not self._has_started:
            self._has_started = True
            self.tell(Notice(run_id=self.run_id))

    def note_time(self, now: float) -> None:
        """Let the clocks run by which it may come to have waited too long, once there is a Job."""
        if self.uid:
            take_note(self.sighting, now)

    def decide(self, limits: Limits, now: float) -> None:
        """Set why it is lost if no answer can come of it any more."""
        self.loss, self._lost_at = self._find_loss(limits, now), now

    def is_settled(self, limits: Limits, now: float) -> bool:
        """Whether a lost run may be tried again: its Job goes, and no pod of it is left or its node is lost."""
        if self.needs_deletion:
            return False
        is_over = is_stuck(self.sighting, limits, now) or now - self._lost_at >= limits.leaving_seconds
        return is_over or self.sighting.is_quiet

    def _note_disruption(self, pod: Pod) -> None:
        self._disrupted.add(pod.metadata.uid)
        why = f"pod {pod.metadata.name} was taken away: {disruption_reason(pod)}"
        self.tell(Notice(run_id=self.run_id, cause=disruption_cause(pod), why=why))
        logger.warning("%s", why, extra=self.ids)

    def _find_loss(self, limits: Limits, now: float) -> Loss | None:
        if self.uid:
            return None if self.lacks_pods else loss_of(self.sighting, limits, now)
        if self._refusal and now - self.since >= limits.pending_seconds:
            return Loss(LossCause.QUOTA, f"its Job was refused for {limits.pending_seconds:.0f} s: {self._refusal}")
        if self._blocked_since is not None and now - self._blocked_since >= limits.leaving_seconds:
            return Loss(LossCause.DELETED, f"Job {self.name} is being deleted, and does not go: its node may be lost")
        return None
