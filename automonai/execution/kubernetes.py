"""Runs as Jobs of a Kubernetes cluster, one batch/v1 Job per run, followed by a watch."""

from __future__ import annotations

import json
import logging
import queue
import time
from collections.abc import Callable

from automonai.domain.request import EnsembleRequest, TrainRequest
from automonai.domain.run import LossCause
from automonai.errors import ClusterError
from automonai.execution.cluster_api import CONFLICT, FORBIDDEN, UNREACHABLE, ClusterApi
from automonai.execution.cluster_objects import Job, Pod
from automonai.execution.endings import KILLED, Limits
from automonai.execution.executor import Notice, Report, pause_before
from automonai.execution.jobs import (
    PART_OF,
    PART_OF_LABEL,
    RUN_LABEL,
    STUDY_ID_LABEL,
    WORKFLOW_LABEL,
    JobTemplate,
    StudyHandle,
    WorkflowOwner,
    job_manifest,
    job_name,
)
from automonai.execution.tracked_job import TrackedJob
from automonai.execution.watcher import News, Relisted, Watcher
from automonai.storage import keys
from automonai.storage.store import Store

logger = logging.getLogger(__name__)

JOB_LABEL = "batch.kubernetes.io/job-name"
_LOG_END = 4096
"""Characters in which a log's last message is looked for."""
TICK_SECONDS = 0.5
"""Creations that were put off and limits on waiting are looked at this often while nothing else happens."""
BLIND_SECONDS, CATCH_UP_SECONDS = 5.0, 0.2
"""After so long without a look the watches get so much time to tell what happened, before anything is judged by it."""
LEAVING_SECONDS = 300.0
"""Beyond what a pod is granted to leave: longer than a busy node takes."""


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
            leaving_seconds=LEAVING_SECONDS + template.grace_seconds,
        )
        self._jobs: dict[str, TrackedJob] = {}
        """By run id."""
        self._refusals: dict[str, int] = {}
        """Run id to how often in a row a node did not admit its pod."""
        self._judged_at = clock()
        self._notices: list[Notice] = []
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._watchers: tuple[Watcher, ...] = ()

    @property
    def relists(self) -> int:
        """Return how often everything was listed: once per kind, and again after each 410 Gone."""
        return sum(watcher.relists for watcher in self._watchers)

    def free_slots(self) -> int:
        return max(0, self._slots - len(self._jobs))

    def submit(self, request: TrainRequest | EnsembleRequest) -> None:
        if request.run_id in self._jobs:
            return
        self._start_watching()
        self._store.put(keys.request(request.run_id), request.model_dump_json().encode())
        name = job_name(self._study, request)
        now = self._clock()
        job = TrackedJob(request=request, name=name, since=now, tell=self._notices.append)
        pause = pause_before(max(request.strikes, self._refusals.get(request.run_id, 0)))
        job.is_there = (pause > 0 or not self._has_slot()) and self._is_there(name)
        if not job.is_there:
            job.next_try_at = now + pause
        self._jobs[request.run_id] = job
        job.is_answered = self._store.exists(keys.answer(request.run_id))
        self._attend(job)

    def poll(self, timeout_seconds: float) -> list[Report]:
        deadline = time.monotonic() + timeout_seconds
        self._take_news(0.0)
        while True:
            self._refuse_to_be_blind()
            now = self._time_of_news()
            reports = [report for job in list(self._jobs.values()) if (report := self._report_of(job, now))]
            wait_seconds = deadline - time.monotonic()
            if reports or wait_seconds <= 0:
                return reports
            self._take_news(min(TICK_SECONDS, wait_seconds))

    def notices(self) -> list[Notice]:
        notices = self._notices.copy()
        self._notices.clear()
        return notices

    def cancel(self, run_id: str) -> None:
        job = self._jobs.pop(run_id, None)
        if job is not None:
            self._delete(job)

    def close(self) -> None:
        for watcher in self._watchers:
            watcher.stop()
        self._watchers = ()
        self._jobs.clear()

    def delete_all(self) -> None:
        """Delete the Jobs of all runs in hand: their pods commit what they have and free their GPUs."""
        for run_id in list(self._jobs):
            self.cancel(run_id)

    def _start_watching(self) -> None:
        if self._watchers:
            return
        selector = f"{PART_OF_LABEL}={PART_OF},{STUDY_ID_LABEL}={self._study.id}"
        self._watchers = tuple(Watcher(self._api, kind, selector, self._news.put) for kind in ("jobs", "pods"))
        for watcher in self._watchers:
            watcher.start()

    def _refuse_to_be_blind(self) -> None:
        for watcher in self._watchers:
            if not watcher.is_watching():
                raise ClusterError(f"nobody watches the {watcher.kind} any more; a successor will", status=UNREACHABLE)

    def _time_of_news(self) -> float:
        """Return the time by which to judge; what the watches told until then has been taken note of.

        A look at a store that was away, or a process that was stopped for a while, must not make a Job old whose news
        lies in the queue.
        """
        if self._clock() - self._judged_at > BLIND_SECONDS:
            deadline = time.monotonic() + CATCH_UP_SECONDS
            while (left := deadline - time.monotonic()) > 0:
                self._take_news(left)
        self._judged_at = self._clock()
        return self._judged_at

    def _has_slot(self) -> bool:
        """Whether another Job may be made: a study that was stopped may have more open runs than it has slots now."""
        return sum(bool(job.uid) for job in self._jobs.values()) < self._slots

    def _is_there(self, name: str) -> bool:
        """Whether a predecessor has made that Job; what the API does not say now is found out when it is to be made."""
        try:
            return self._api.find_job(name) is not None
        except ClusterError:
            return False

    def _attend(self, job: TrackedJob) -> None:
        """Ask of the API what is due for a request; what cannot be done now is tried again later."""
        if job.is_answered or job.next_try_at > self._clock():
            return
        try:
            if not job.uid and job.loss is None:
                if job.is_there or self._has_slot():
                    self._create(job)
            elif job.is_missing:
                self._look_for(job)
            elif job.lacks_pods:
                self._list_pods(job)
            elif job.loss is not None and job.needs_deletion:
                self._api.delete_job(job.name)
                job.is_deletion_asked = True
        except ClusterError as error:
            if not _is_passing(error) and not job.may_be_refused(self._clock(), error):
                raise
            job.put_off(self._clock(), error)

    def _create(self, job: TrackedJob) -> None:
        manifest = job_manifest(job.request, self._template, study=self._study, owner=self._owner)
        try:
            job.made(self._api.create_job(manifest).metadata.uid)
        except ClusterError as error:
            if error.status != CONFLICT:
                raise
            self._adopt(job)

    def _adopt(self, job: TrackedJob) -> None:
        """Take over a Job of that name as it is; one that is being deleted makes room for a new one first.

        So does another workflow's, which is over: the janitor would delete its Job under this one's hands.
        """
        job.is_there = False
        found = self._api.find_job(job.name)
        if found is None or found.metadata.deletion_timestamp is not None:
            job.note_blocked(self._clock())
            return
        workflow = "" if self._owner is None else self._owner.name
        if found.metadata.labels.get(WORKFLOW_LABEL, "") != workflow:
            self._api.delete_job(job.name)
            job.put_off(self._clock())
            return
        job.made(found.metadata.uid, is_adopted=True)
        job.note(found)
        self._list_pods(job)
        logger.info("adopted as Job %s", job.name, extra=job.ids)

    def _list_pods(self, job: TrackedJob) -> None:
        for pod in self._api.list("pods", f"{JOB_LABEL}={job.name}").objects:
            if job.owns(pod):
                job.note(pod)
        job.are_pods_asked = True

    def _look_for(self, job: TrackedJob) -> None:
        found = self._api.find_job(job.name)
        job.note_found(found is not None and job.owns(found))

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
            for thing in news.objects:
                if job := self._job_of(thing):
                    job.note(thing)
            for job in self._jobs.values():
                job.note_list(news)
        elif job := self._job_of(news.object):
            job.note_change(news)

    def _job_of(self, thing: Job | Pod) -> TrackedJob | None:
        job = self._jobs.get(thing.metadata.labels.get(RUN_LABEL, ""))
        return job if job is not None and job.owns(thing) else None

    def _report_of(self, job: TrackedJob, now: float) -> Report | None:
        """Do what is due for a request; return what became of it once that is settled."""
        self._attend(job)
        job.note_time(now)
        if self._has_answer(job):
            if not job.is_answered:  # the Job's end may be heard of before its pod's start
                job.note_start()
            del self._jobs[job.run_id]
            self._refusals.pop(job.run_id, None)
            return Report(run_id=job.run_id)
        job.is_news = False
        if job.loss is None:
            job.decide(self._limits, now)
            if job.loss is None:
                return None
            logger.warning("lost: %s", job.loss.why, extra=job.ids)
            self._keep_log(job)
            self._attend(job)
        if not job.is_settled(self._limits, now):
            return None
        del self._jobs[job.run_id]
        refusals = self._refusals.pop(job.run_id, 0)
        if job.loss.is_by_refusal:
            self._refusals[job.run_id] = refusals + 1
        return Report(run_id=job.run_id, lost=job.loss.why, cause=job.loss.cause)

    def _has_answer(self, job: TrackedJob) -> bool:
        return job.is_answered or (job.may_have_answered and self._store.exists(keys.answer(job.run_id)))

    def _keep_log(self, job: TrackedJob) -> None:
        """Store the log of a lost run's pod behind its earlier attempts'; a worker that was not killed has done so."""
        if job.loss is not None and job.loss.cause is LossCause.NODE_LOST:
            return  # its kubelet has the log, and each question would wait for it until the API server gives up
        pod = job.sighting.newest_pod
        if pod is None or pod.status.phase == "Pending" or pod.metadata.uid in job.sighting.gone:
            return
        try:
            log = self._api.pod_log(pod.metadata.name)
        except ClusterError as error:
            logger.warning("the log of pod %s is not to be had: %s", pod.metadata.name, error, extra=job.ids)
            return
        key = keys.log(job.run_id)
        before = self._store.get(key).decode(errors="replace") if self._store.exists(key) else ""
        was_killed = pod.terminated is None or pod.terminated.exit_code == KILLED
        if was_killed or _last_message(log) not in before[-_LOG_END:]:
            self._store.put(key, (before + log).encode())

    def _delete(self, job: TrackedJob) -> None:
        try:
            self._api.delete_job(job.name)
        except ClusterError as error:
            what = "Job %s could not be deleted and is left to the exit step and the janitor: %s"
            logger.warning(what, job.name, error, extra=job.ids)


def _last_message(log: str) -> str:
    """Return what a pod's last line says; the line itself where it is no JSON object with a message."""
    last = log.rstrip().rpartition("\n")[2]
    try:
        return str(json.loads(last)["message"])
    except (ValueError, TypeError, KeyError):
        return last


def _is_passing(error: ClusterError) -> bool:
    """Whether the same request may succeed later: the API is away, or a quota is full."""
    return error.is_passing or (error.status == FORBIDDEN and "exceeded quota" in str(error))
