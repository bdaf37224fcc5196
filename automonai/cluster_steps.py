"""What the steps of a study's workflow do on a cluster."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import uuid4

from automonai.domain.records import Record
from automonai.errors import ClusterError, SpecError, UserError
from automonai.parameters import StudyParameters, study_spec, whole_number
from automonai.storage import keys
from automonai.storage.opening import join_location, open_store

if TYPE_CHECKING:
    from automonai.controller import Watch
    from automonai.domain.events import Event
    from automonai.domain.request import StudyData
    from automonai.domain.study import Study
    from automonai.execution.cluster_api import ClusterApi
    from automonai.execution.jobs import JobTemplate
    from automonai.execution.kubernetes import KubernetesExecutor
    from automonai.execution.lease import HeldLease
    from automonai.monitoring import Monitoring
    from automonai.spec import StudySpec
    from automonai.storage.journal import Journal
    from automonai.storage.store import Store

logger = logging.getLogger(__name__)

DONE, FAILED, TERMINATED = 0, 1, 143
DEFAULT_NAMESPACE = "automonai"
PATIENCE_SECONDS = 50.0
"""A workflow that is stopped frees its GPUs within a minute, or its exit step fails and is started again."""


class Surroundings(Record):
    """Where a step runs; its pod's environment says so."""

    store: str = ""
    """Bucket or folder that holds `studies/`; empty where nothing says so."""
    namespace: str = DEFAULT_NAMESPACE
    workflow: str | None = None
    """Name of the Workflow that this is a step of; None: of none."""
    workflow_uid: str = ""
    job_template: Path | None = None
    """YAML file of the JobTemplate."""
    progress_file: Path | None = None
    """Where Argo reads a step's progress."""
    identity: str = ""
    """This pod's name."""
    metrics_port: int | None = None
    """Where a controller shows its metrics to Prometheus; None: nowhere."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Surroundings:
        """Return what the variables AUTOMONAI_* and ARGO_PROGRESS_FILE say.

        Raises:
            SpecError: If AUTOMONAI_METRICS_PORT is no port.
        """
        template, progress = environment.get("AUTOMONAI_JOB_TEMPLATE"), environment.get("ARGO_PROGRESS_FILE")
        return cls(
            store=environment.get("AUTOMONAI_STORE", ""),
            namespace=environment.get("AUTOMONAI_NAMESPACE") or DEFAULT_NAMESPACE,
            workflow=environment.get("AUTOMONAI_WORKFLOW_NAME") or None,
            workflow_uid=environment.get("AUTOMONAI_WORKFLOW_UID", ""),
            job_template=Path(template) if template else None,
            progress_file=Path(progress) if progress else None,
            identity=f"{socket.gethostname()}-{uuid4().hex[:8]}",  # a long pod's name is cut, and may be another's
            metrics_port=_port(environment.get("AUTOMONAI_METRICS_PORT", "")),
        )


def _port(text: str) -> int | None:
    """Return the port that a text names; None for an empty one."""
    if not text:
        return None
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise SpecError(f"AUTOMONAI_METRICS_PORT is '{text}'; expected a port's number, such as 9109, or nothing")
    return int(text)


def check(parameters: StudyParameters, *, surroundings: Surroundings | None = None) -> StudySpec:
    """Check parameters, settings and dataset, and write a new study's first data.

    Raises:
        UserError: If any of them is faulty, or a started study's spec differs.
    """
    here = surroundings or Surroundings.from_environment()
    spec = study_spec(parameters, here.store)
    _template(here, parameters)  # refuses a faulty number of GPUs
    # Only now: a faulty parameter is told within a second, and these take longer than that to load.
    from automonai.search import make_sampler
    from automonai.starting import begin_if_new

    make_sampler(spec.search)
    begin_if_new(spec, open_store(_location(spec)))
    return spec


def search(
    parameters: StudyParameters,
    *,
    watch: Watch | None = None,
    surroundings: Surroundings | None = None,
    api: ClusterApi | None = None,
) -> int:
    """Be the study's controller until its search has ended; return the exit code.

    0: it has, or the user ended the workflow (then its Jobs are deleted). 1: no configuration could be trained, and the
    study is over. 143: this pod has to go and the search goes on: its Jobs are left to a successor.

    Args:
        parameters: The workflow's.
        watch: Told of every event and of the time.
        surroundings: None: what the environment says.
        api: The cluster; None: the one that this pod runs in.

    Raises:
        StudyLockedError: If another controller has the study.
        UserError: If the parameters are faulty or `check` has not run.
    """
    return _control(parameters, search_only=True, watch=watch, surroundings=surroundings, api=api)


def refit(
    parameters: StudyParameters,
    *,
    watch: Watch | None = None,
    surroundings: Surroundings | None = None,
    api: ClusterApi | None = None,
) -> int:
    """Be the study's controller until it is over, normally from the end of its search; return the exit code.

    0: it is over and has an ensemble. All else is as with `search`, arguments and exceptions, too.
    """
    return _control(parameters, search_only=False, watch=watch, surroundings=surroundings, api=api)


def _control(
    parameters: StudyParameters,
    *,
    search_only: bool,
    watch: Watch | None,
    surroundings: Surroundings | None,
    api: ClusterApi | None,
) -> int:
    from automonai.api import stop_on_sigterm
    from automonai.execution.cluster_api import connect
    from automonai.execution.lease import leased
    from automonai.monitoring import monitored
    from automonai.observability.logs import log_context

    here = surroundings or Surroundings.from_environment()
    spec = study_spec(parameters, here.store)
    template = _template(here, parameters)
    cluster = api or connect(here.namespace)
    with (
        log_context(study=spec.name),
        stop_on_sigterm() as stopped,
        leased(cluster, spec.name, identity=here.identity, workflow=here.workflow) as lease,
        monitored(spec.name, port=here.metrics_port, watch=watch, gpus_per_run=template.gpus_per_run) as seen,
    ):
        session = _open(spec, here, cluster, template, lease)
        try:
            is_done = _run(session, search_only=search_only, lease=lease, stopped=stopped.is_set, seen=seen, here=here)
            return _leave(session, cluster, here, is_done=is_done, lease=lease)
        finally:
            session.executor.close()
            logger.info("%s: the Kubernetes API got %d requests", spec.name, cluster.requests)


def report(parameters: StudyParameters, *, output: Path, surroundings: Surroundings | None = None) -> Path:
    """Write the study's report into its store and, for Argo's UI, into a file; return that.

    Raises:
        StudyNotFoundError: If there is no such study.
    """
    from automonai import api

    here = surroundings or Surroundings.from_environment()
    location = _location(study_spec(parameters, here.store))
    api.report(location)
    output.write_bytes(open_store(location).get(keys.REPORT_HTML))
    return output


def predict(study: str, images: str, output: str) -> int:
    """Segment a folder of images by a study's ensemble and put the label maps into another; return how many.

    Args:
        study: Location of a study or of a single training.
        images: Folder or `s3://` location whose objects are the images.
        output: Folder or `s3://` location of the label maps.

    Raises:
        UserError: If there is no ensemble or no image, or images cannot be segmented; the others' label maps are kept.
    """
    from automonai import api

    with TemporaryDirectory(prefix="automonai-") as scratch:
        here, done = Path(scratch) / "images", Path(scratch) / "labels"
        source, target = open_store(images), open_store(output)
        for key in source.list():
            source.download(key, here / key)
        if not here.exists():
            raise UserError(f"{images}: there is nothing; name the folder that holds the images")
        written = api.predict(study, [here], output=done, on_case=lambda _, path: target.upload(path, path.name))
    return len(written)


def finish(*, surroundings: Surroundings | None = None, api: ClusterApi | None = None) -> int:
    """Delete the Jobs of this workflow that still run, however it ended; return how many there were.

    Raises:
        UserError: If this is no step of a workflow.
    """
    from automonai.execution.cluster_api import connect
    from automonai.execution.jobs import WORKFLOW_LABEL

    here = surroundings or Surroundings.from_environment()
    if here.workflow is None:
        raise UserError("AUTOMONAI_WORKFLOW_NAME is not set: 'step finish' is for the exit step of a workflow")
    return _delete_jobs(api or connect(here.namespace), f"{WORKFLOW_LABEL}={here.workflow}", keep=frozenset)


def delete_orphans(namespace: str, *, api: ClusterApi | None = None) -> int:
    """Delete the Jobs that run although their Workflow is over or gone: what the janitor does; return how many."""
    from automonai.execution.cluster_api import connect
    from automonai.execution.jobs import WORKFLOW_LABEL

    cluster = api or connect(namespace)

    def living() -> frozenset[str]:
        return frozenset(workflow.metadata.name for workflow in cluster.living_workflows())

    return _delete_jobs(cluster, WORKFLOW_LABEL, keep=living)


def _delete_jobs(cluster: ClusterApi, selector: str, *, keep: Callable[[], frozenset[str]]) -> int:
    """Delete the selected Jobs that have not ended, but those of workflows to keep; return how many there were.

    What has ended holds no GPU, and its log stays for as long as the chart's `trial.ttlSeconds`.
    """
    from automonai.execution.jobs import PART_OF, PART_OF_LABEL, WORKFLOW_LABEL

    deleted: set[str] = set()

    def delete() -> None:
        # Jobs first: a Workflow that begins in between has none in this list.
        jobs = cluster.list_jobs(f"{PART_OF_LABEL}={PART_OF},{selector}")
        kept = keep()
        for job in jobs:
            workflow = job.metadata.labels.get(WORKFLOW_LABEL, "")
            if not job.has_ended and workflow not in kept:
                cluster.delete_job(job.metadata.name)
                deleted.add(job.metadata.name)
                logger.info("Job %s of workflow %s deleted", job.metadata.name, workflow)

    _patiently(delete)
    return len(deleted)


def _patiently(work: Callable[[], None]) -> None:
    """Do what may be done twice, again and again while the cluster's API is away or overburdened.

    Raises:
        ClusterError: If it still is after `PATIENCE_SECONDS`, or refuses.
    """
    from automonai.execution.watcher import pause_seconds

    deadline, failures = time.monotonic() + PATIENCE_SECONDS, 0
    while True:
        try:
            return work()
        except ClusterError as error:
            failures += 1
            if not error.is_passing or time.monotonic() > deadline:
                raise
            logger.warning("%s; trying again", error)
        time.sleep(pause_seconds(failures))


@dataclass
class _Session:
    """A controller's parts."""

    study: Study
    data: StudyData
    store: Store
    journal: Journal
    executor: KubernetesExecutor
    memory_bytes: int | None
    devices_per_run: int


def _open(
    spec: StudySpec, here: Surroundings, cluster: ClusterApi, template: JobTemplate, lease: HeldLease
) -> _Session:
    from automonai.execution.jobs import StudyHandle, WorkflowOwner, study_id
    from automonai.execution.kubernetes import KubernetesExecutor
    from automonai.starting import take_up
    from automonai.storage.journal import Journal
    from automonai.storage.retrying import Retrying

    store = open_store(_location(spec), retrying=Retrying(sleep=lease.pause))
    journal = Journal(store)
    study, data = take_up(spec, store, journal)
    owner = None if here.workflow is None else WorkflowOwner(name=here.workflow, uid=here.workflow_uid)
    handle = StudyHandle(name=spec.name, id=study_id(spec.name, study.started_at), location=_location(spec))
    slots = study.spec.execution.max_parallel_runs
    template = _with_threads(template, study.spec.execution.threads)
    executor = KubernetesExecutor(cluster, store, study=handle, template=template, slots=slots, owner=owner)
    memory_gib = study.spec.execution.memory_gib
    memory_bytes = template.memory_bytes if memory_gib is None else int(memory_gib * 2**30)
    return _Session(
        study=study,
        data=data,
        store=store,
        journal=journal,
        executor=executor,
        memory_bytes=memory_bytes,
        devices_per_run=max(1, template.gpus_per_run),
    )


def _run(
    session: _Session,
    *,
    search_only: bool,
    lease: HeldLease,
    stopped: Callable[[], bool],
    seen: Monitoring,
    here: Surroundings,
) -> bool:
    """Return whether nothing is left to do for the step."""
    from automonai.controller import Controller, run_study
    from automonai.domain.progress import refit_done_and_planned, search_done_and_planned
    from automonai.search import make_sampler

    progress = search_done_and_planned if search_only else lambda study, _: refit_done_and_planned(study)
    controller = Controller(
        study=session.study,
        data=session.data,
        store=session.store,
        journal=session.journal,
        sampler=seen.timed(make_sampler(session.study.spec.search)),
        executor=session.executor,
        memory_bytes=session.memory_bytes,
        devices_per_run=session.devices_per_run,
        watch=ProgressWatch(here.progress_file, progress, seen.watch),
        steady_clock=time.monotonic,
        should_stop=lambda: stopped() or lease.is_lost(),
        search_only=search_only,
        may_write=lease.is_sure,
    )
    run_study(controller)
    return controller.is_done


def _leave(session: _Session, cluster: ClusterApi, here: Surroundings, *, is_done: bool, lease: HeldLease) -> int:
    """Return the exit code; a workflow that the user ended takes its Jobs with it."""
    from automonai.report import write_report

    if session.study.ended is not None:
        write_report(session.study, session.data, session.store)
        return DONE if session.study.ended.succeeded else FAILED
    if is_done:
        return DONE
    if lease.is_lost() or not _is_ended_by_user(cluster, here):
        return TERMINATED
    session.executor.delete_all()
    return DONE


def _is_ended_by_user(cluster: ClusterApi, here: Surroundings) -> bool:
    """Whether SIGTERM means that the Workflow ends; else this pod is evicted. In doubt the Jobs go on."""
    if here.workflow is None:
        return False
    try:
        workflow = cluster.find_workflow(here.workflow)
    except ClusterError as error:
        logger.warning("the workflow cannot be read: %s; its Jobs are left running", error)
        return False
    return workflow is None or bool(workflow.spec.shutdown)


class ProgressWatch:
    """Writes `done/planned` for Argo's UI, and passes everything on."""

    def __init__(self, path: Path | None, counted: Callable[[Study, float], tuple[int, int]], watch: Watch) -> None:
        """Remember where to write, None for nowhere, what of a study and a time, and whom to tell."""
        self._path, self._counted, self._watch = path, counted, watch
        self._written = ""

    def on_event(self, event: Event, study: Study) -> None:
        self._watch.on_event(event, study)
        self._write(study, event.at)

    def on_tick(self, study: Study, now: float) -> None:
        self._watch.on_tick(study, now)

    def _write(self, study: Study, now: float) -> None:
        done, planned = self._counted(study, now)
        text = f"{done}/{planned}"
        if self._path is not None and planned and text != self._written:
            self._path.write_text(text)
            self._written = text


def _template(here: Surroundings, parameters: StudyParameters) -> JobTemplate:
    from automonai.execution.jobs import load_template

    if here.job_template is None:
        raise SpecError("AUTOMONAI_JOB_TEMPLATE is not set: it names the YAML file of the runs' Jobs")
    template = load_template(here.job_template)
    if not parameters.gpus_per_run:
        return template
    gpus = whole_number("gpus-per-run", parameters.gpus_per_run, at_least=0)
    return template.model_copy(update={"gpus_per_run": gpus})


def _with_threads(template: JobTemplate, threads: int | None) -> JobTemplate:
    """Return the template of Jobs with the spec's CPU threads, if it states any; else the cluster's remain."""
    if threads is None:
        return template
    return template.model_copy(
        update={"env": {**template.env, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}}
    )


def _location(spec: StudySpec) -> str:
    return join_location(spec.store, spec.name)
