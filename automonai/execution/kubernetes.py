"""Runs as Jobs of a Kubernetes cluster, one batch/v1 Job per run, followed by a watch."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from automonai.domain.request import EnsembleRequest, TrainRequest
from automonai.domain.run import LossCause
from automonai.errors import ClusterError
from automonai.execution.cluster_api import CONFLICT, FORBIDDEN, ClusterApi, WatchEvent
from automonai.execution.cluster_objects import Change, Job, Pod
from automonai.execution.endings import (
    LEAVING_SECONDS,
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
from automonai.execution.executor import Notice, Report
from automonai.execution.jobs import (
    PART_OF,
    PART_OF_LABEL,
    RUN_LABEL,
    STUDY_ID_LABEL,
    JobTemplate,
    StudyHandle,
    WorkflowOwner,
    job_manifest,
    job_name,
)
from automonai.execution.watcher import News, Relisted, Watcher, pause_seconds
from automonai.storage import keys
from automonai.storage.store import Store

logger = logging.getLogger(__name__)

JOB_LABEL, JOB_UID_LABEL = "batch.kubernetes.io/job-name", "batch.kubernetes.io/controller-uid"
TICK_SECONDS = 0.5
"""Creations that were put off and limits on waiting are looked at this often while nothing else happens."""


@dataclass
class _Active:
    """A request in hand, its Job, and what was seen of it."""

    request: TrainRequest | EnsembleRequest
    name: str
    since: float
    is_answered: bool = False
    """Whether the store had the answer before any Job was made."""
    uid: str = ""
    """The Job's; empty until it is made or adopted."""
    is_missing: bool = False
    """Whether a list lacked the Job: it is asked for by name."""
    is_deletion_asked: bool = False
    are_pods_asked: bool = False
    """Whether the pods of a Job that failed were asked for: the two watches do not keep step."""
    failures: int = 0
    """Of requests to the API in a row."""
    next_try_at: float = 0.0
    refusal: str = ""
    """The quota's words when its Job was refused last."""
    sighting: Sighting = field(default_factory=Sighting)
    disrupted: set[str] = field(default_factory=set)
    """Uids of pods of whose disruption a notice was given."""
    has_started: bool = False
    is_news: bool = False
    """Whether something was seen since it was last looked at."""
    loss: Loss | None = None
    """Set once it is lost; it is reported when no pod of it can write any more."""
    lost_at: float = 0.0

    @property
    def ids(self) -> dict[str, str]:
        """Return what a log line says about where it comes from."""
        return {"run": self.request.run_id}


class KubernetesExecutor:
    """One Job per request; the answer is looked for in the store.

    A Job that exists already is adopted. Jobs outlive this object: `close` leaves them to a successor, `delete_all`
    ends them. While the API is away nothing is lost: creations wait, the watches go on where they were.
    """

    def __init__(
        self,
        api: ClusterApi,
        store: Store,
        *,
        study: StudyHandle,
        template: JobTemplate,
        slots: int,
        owner: WorkflowOwner | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Remember the settings; nothing is asked of the cluster before the first submit.

        Args:
            api: The namespace in which Jobs are made.
            store: The study's; workers open it by `study.location`.
            study: Whose runs these are.
            template: The cluster's settings.
            slots: Most runs at once.
            owner: The Workflow that owns the Jobs; None: nobody.
            clock: Gives seconds, for the limits on waiting.
        """
        self._api, self._store, self._study, self._template = api, store, study, template
        self._slots, self._owner, self._clock = slots, owner, clock
        self._limits = Limits(
            max_disruptions=template.max_disruptions,
            pending_seconds=template.pending_seconds,
            image_seconds=template.image_seconds,
        )
        self._active: dict[str, _Active] = {}
        self._notices: list[Notice] = []
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._watchers: tuple[Watcher, ...] = ()

    @property
    def relists(self) -> int:
        """Return how often everything was listed: once per kind, and again after each 410 Gone."""
        return sum(watcher.relists for watcher in self._watchers)

    def free_slots(self) -> int:
        return max(0, self._slots - len(self._active))

    def submit(self, request: TrainRequest | EnsembleRequest) -> None:
        if request.run_id in self._active:
            return
        self._start_watching()
        self._store.put(keys.request(request.run_id), request.model_dump_json().encode())
        active = _Active(request=request, name=job_name(self._study, request), since=self._clock())
        self._active[request.run_id] = active
        active.is_answered = self._store.exists(keys.answer(request.run_id))
        self._attend(active)

    def poll(self, timeout_seconds: float) -> list[Report]:
        deadline = time.monotonic() + timeout_seconds
        self._take_news(0.0)
        while True:
            reports = [report for active in list(self._active.values()) if (report := self._report_of(active))]
            wait_seconds = deadline - time.monotonic()
            if reports or wait_seconds <= 0:
                return reports
            self._take_news(min(TICK_SECONDS, wait_seconds))

    def notices(self) -> list[Notice]:
        notices, self._notices = self._notices, []
        return notices

    def cancel(self, run_id: str) -> None:
        active = self._active.pop(run_id, None)
        if active is not None:
            self._delete(active)

    def close(self) -> None:
        for watcher in self._watchers:
            watcher.stop()
        self._watchers = ()
        self._active.clear()

    def delete_all(self) -> None:
        """Delete the Jobs of all runs in hand: their pods commit what they have and free their GPUs.

        Raises:
            ClusterError: If the API does not answer; the Workflow's exit step and the janitor then remain.
        """
        for active in list(self._active.values()):
            self._api.delete_job(active.name)
            del self._active[active.request.run_id]

    def _start_watching(self) -> None:
        if self._watchers:
            return
        selector = f"{PART_OF_LABEL}={PART_OF},{STUDY_ID_LABEL}={self._study.id}"
        self._watchers = tuple(Watcher(self._api, kind, selector, self._news.put) for kind in ("jobs", "pods"))
        for watcher in self._watchers:
            watcher.start()

    def _attend(self, active: _Active) -> None:
        """Ask of the API what is due for a request; what cannot be done now is tried again later."""
        if active.is_answered or active.next_try_at > self._clock():
            return
        try:
            if not active.uid and active.loss is None:
                self._create(active)
            elif active.is_missing:
                active.sighting.is_deleted = self._find(active) is None
                active.is_missing, active.is_news = False, True
            elif _lacks_pods(active):
                self._note_pods(active)
            elif active.loss is not None and _needs_deletion(active):
                self._api.delete_job(active.name)
                active.is_deletion_asked = True
        except ClusterError as error:
            if not _is_passing(error):
                raise
            self._put_off(active, error)

    def _create(self, active: _Active) -> None:
        manifest = job_manifest(active.request, self._template, study=self._study, owner=self._owner)
        try:
            active.uid = self._api.create_job(manifest).metadata.uid
            active.failures = 0
        except ClusterError as error:
            if error.status != CONFLICT:
                raise
            self._adopt(active)

    def _adopt(self, active: _Active) -> None:
        """Take over a Job of that name as it is; one that is being deleted makes room for a new one first."""
        job = self._api.find_job(active.name)
        if job is None or job.metadata.deletion_timestamp is not None:
            self._put_off(active, None)
            return
        active.uid, active.failures = job.metadata.uid, 0
        self._note(active, job)
        self._note_pods(active)
        logger.info("adopted as Job %s", active.name, extra=active.ids)

    def _note_pods(self, active: _Active) -> None:
        for pod in self._api.list("pods", f"{JOB_LABEL}={active.name}").objects:
            if self._active_of(pod) is active:
                self._note(active, pod)
        active.are_pods_asked = True

    def _find(self, active: _Active) -> Job | None:
        job = self._api.find_job(active.name)
        return job if job is not None and job.metadata.uid == active.uid else None

    def _put_off(self, active: _Active, error: ClusterError | None) -> None:
        active.failures += 1
        active.next_try_at = self._clock() + pause_seconds(active.failures)
        active.refusal = str(error) if error is not None and error.status == FORBIDDEN else ""
        if error is not None:
            logger.warning("it has to wait: %s; trying again", error, extra=active.ids)

    def _take_news(self, wait_seconds: float) -> None:
        """Take note of all that the watches told, waiting for the first piece of it if need be."""
        try:
            news = self._news.get(timeout=wait_seconds) if wait_seconds > 0 else self._news.get_nowait()
            while True:
                self._take(news)
                news = self._news.get_nowait()
        except queue.Empty:
            return

    def _take(self, news: News) -> None:
        if isinstance(news, Relisted):
            self._take_list(news)
            return
        active = self._active_of(news.object)
        if active is None:
            return
        self._note(active, news.object)
        if news.change is Change.DELETED:
            _note_gone(active.sighting, news)

    def _take_list(self, news: Relisted) -> None:
        """Note what is there, then find out what of ours is not."""
        for thing in news.objects:
            active = self._active_of(thing)
            if active is not None:
                self._note(active, thing)
        uids = {thing.metadata.uid for thing in news.objects}
        for active in self._active.values():
            active.is_news = True
            if news.kind == "pods":
                active.sighting.gone |= active.sighting.pods.keys() - uids
            else:
                # The list may be older than the Job, so that its lack proves nothing yet.
                active.is_missing = bool(active.uid) and active.uid not in uids

    def _active_of(self, thing: Job | Pod) -> _Active | None:
        """Return the request that a Job or pod belongs to; None for others', and for earlier Jobs of the same run."""
        active = self._active.get(thing.metadata.labels.get(RUN_LABEL, ""))
        uid = thing.metadata.uid if isinstance(thing, Job) else thing.metadata.labels.get(JOB_UID_LABEL)
        return active if active is not None and active.uid == uid else None

    def _note(self, active: _Active, thing: Job | Pod) -> None:
        active.is_news = True
        if isinstance(thing, Job):
            active.sighting.job = thing
            return
        active.sighting.pods[thing.metadata.uid] = thing
        if has_run(thing):
            self._note_start(active)
        if thing.condition("DisruptionTarget") is not None and thing.metadata.uid not in active.disrupted:
            active.disrupted.add(thing.metadata.uid)
            why = f"pod {thing.metadata.name} was taken away: {disruption_reason(thing)}"
            self._notices.append(Notice(run_id=active.request.run_id, cause=disruption_cause(thing), why=why))
            logger.warning("%s", why, extra=active.ids)

    def _note_start(self, active: _Active) -> None:
        if not active.has_started:
            active.has_started = True
            self._notices.append(Notice(run_id=active.request.run_id))

    def _report_of(self, active: _Active) -> Report | None:
        """Do what is due for a request; return what became of it once that is settled."""
        run_id, now = active.request.run_id, self._clock()
        self._attend(active)
        take_note(active.sighting, now)
        if self._has_answer(active):
            if not active.is_answered:  # the Job's end may be heard of before its pod's start
                self._note_start(active)
            del self._active[run_id]
            return Report(run_id=run_id)
        active.is_news = False
        if active.loss is None:
            active.loss, active.lost_at = self._loss_of(active, now), now
            if active.loss is None:
                return None
            logger.warning("lost: %s", active.loss.why, extra=active.ids)
            self._keep_log(active)
            self._attend(active)
        if not self._is_settled(active, now):
            return None
        del self._active[run_id]
        return Report(run_id=run_id, lost=active.loss.why, cause=active.loss.cause)

    def _has_answer(self, active: _Active) -> bool:
        if active.is_answered:
            return True
        is_worth_asking = active.is_news and active.sighting.may_have_answered
        return is_worth_asking and self._store.exists(keys.answer(active.request.run_id))

    def _is_settled(self, active: _Active, now: float) -> bool:
        """Whether a lost run may be tried again: nothing of it is left, or its node is lost for good."""
        if is_stuck(active.sighting, now) or now - active.lost_at >= LEAVING_SECONDS:
            return True
        return active.sighting.is_quiet and not _needs_deletion(active)

    def _loss_of(self, active: _Active, now: float) -> Loss | None:
        if active.uid:
            return None if _lacks_pods(active) else loss_of(active.sighting, self._limits, now)
        if active.refusal and now - active.since >= self._limits.pending_seconds:
            return Loss(
                LossCause.QUOTA, f"its Job was refused for {self._limits.pending_seconds:.0f} s: {active.refusal}"
            )
        return None

    def _keep_log(self, active: _Active) -> None:
        pod = active.sighting.newest_pod
        if pod is None or pod.status.phase == "Pending" or pod.metadata.uid in active.sighting.gone:
            return
        try:
            log = self._api.pod_log(pod.metadata.name)
        except ClusterError as error:
            logger.warning("the log of pod %s is not to be had: %s", pod.metadata.name, error, extra=active.ids)
            return
        self._store.put(keys.log(active.request.run_id), log.encode())

    def _delete(self, active: _Active) -> None:
        try:
            self._api.delete_job(active.name)
        except ClusterError as error:
            logger.warning(
                "Job %s could not be deleted and is left to the janitor: %s", active.name, error, extra=active.ids
            )


def _note_gone(sighting: Sighting, event: WatchEvent) -> None:
    if isinstance(event.object, Job):
        sighting.is_deleted = True
    else:
        sighting.gone.add(event.object.metadata.uid)


def _lacks_pods(active: _Active) -> bool:
    """Whether a Job has failed, but no pod that could say why has been seen to end."""
    job, pod = active.sighting.job, active.sighting.newest_pod
    has_failed = job is not None and job.condition("Failed") is not None
    return has_failed and not active.are_pods_asked and (pod is None or not pod.has_ended)


def _needs_deletion(active: _Active) -> bool:
    """Whether a lost run's Job would go on if nobody deleted it."""
    return bool(active.uid) and not active.is_deletion_asked and is_worth_deleting(active.sighting)


def _is_passing(error: ClusterError) -> bool:
    """Whether the same request may succeed later: the API is away, or a quota is full."""
    return error.is_passing or (error.status == FORBIDDEN and "exceeded quota" in str(error))
