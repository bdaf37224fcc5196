"""What a user does to a study that runs on a cluster: end its workflow, read a run's log."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from automonai.documents import parse_yaml
from automonai.errors import ClusterError, ObjectNotFoundError, UserError
from automonai.storage import keys
from automonai.storage.opening import is_remote, open_store

if TYPE_CHECKING:
    from automonai.execution.cluster_api import ClusterApi
    from automonai.execution.cluster_objects import Workflow

logger = logging.getLogger(__name__)


def stop(location: str, *, namespace: str, api: ClusterApi | None = None) -> tuple[str, ...]:
    """Ask for the end of the workflows that run a study or wait for it; return their names. Results are kept.

    Raises:
        UserError: If no workflow runs it.
    """
    from automonai.execution.cluster_api import connect
    from automonai.execution.lease import workflow_of

    if not is_remote(location):
        raise UserError(
            f"{location} is on this machine: end its search by Ctrl-C where it runs; 'stop' is for s3:// studies"
        )
    cluster = api or connect(namespace)
    study = location.rstrip("/").rpartition("/")[2]
    holder = workflow_of(cluster, study)
    names = tuple(
        workflow.metadata.name
        for workflow in cluster.living_workflows()
        if workflow.metadata.name == holder or _is_for(workflow, study)
    )
    if not names:
        raise UserError(
            f"{location}: no workflow in namespace {cluster.namespace} runs this study, so there is nothing to stop;"
            " --namespace names another one"
        )
    for name in names:
        cluster.stop_workflow(name)
    return names


def _is_for(workflow: Workflow, study: str) -> bool:
    """Whether a Workflow was submitted for a study, by its parameter `name` or, before that, its spec's."""
    given = {parameter.name: parameter.value or "" for parameter in workflow.spec.arguments.parameters}
    try:
        spec = parse_yaml(given.get("spec", ""), where="parameter spec")
    except UserError:
        spec = None
    name = spec.get("name") if isinstance(spec, dict) else None
    return study == (name or given.get("name"))


def logs(location: str, run_id: str, *, namespace: str, api: ClusterApi | None = None) -> str:
    """Return a run's log, readable: from its pod while it runs, from the store once it has ended.

    A run that was taken from one pod has the log of that in the store while another goes on with it. Where no cluster
    can be asked, what is stored is the answer.

    Raises:
        UserError: If there is neither.
    """
    store = open_store(location)
    if not re.fullmatch("[a-z0-9-]+", run_id):
        raise UserError(f"'{run_id}' is no run's id; 'automonai runs {location}' lists the runs")
    is_over = not is_remote(location) or store.exists(keys.answer(run_id))
    found = None if is_over else _log_of_pod(location, run_id, namespace=namespace, api=api)
    if found is None:
        try:
            found = store.get(keys.log(run_id)).decode(errors="replace")
        except ObjectNotFoundError as error:
            raise UserError(
                f"{location}: run {run_id} has no log; 'automonai runs {location}' lists the runs, and what runs on one"
                f" machine has its lines in workers/worker-*.log of the study's folder until it ends"
            ) from error
    return _readable(found)


def _log_of_pod(location: str, run_id: str, *, namespace: str, api: ClusterApi | None) -> str | None:
    """Return the log of the newest pod that has begun to work on a run; None if there is none, or no cluster."""
    from automonai.execution.cluster_api import connect
    from automonai.execution.cluster_objects import Pod
    from automonai.execution.endings import Sighting, has_run
    from automonai.execution.jobs import PART_OF, PART_OF_LABEL, RUN_LABEL, STUDY_LABEL

    study = location.rstrip("/").rpartition("/")[2]
    try:
        cluster = api or connect(namespace)
        found = cluster.list("pods", f"{PART_OF_LABEL}={PART_OF},{STUDY_LABEL}={study},{RUN_LABEL}={run_id}").objects
        begun = {pod.metadata.uid: pod for pod in found if isinstance(pod, Pod) and has_run(pod)}
        newest = Sighting(pods=begun).newest_pod
        return None if newest is None else cluster.pod_log(newest.metadata.name)
    except (ClusterError, UserError) as error:
        logger.warning("the cluster cannot be asked for the pod's log: %s", error)
        return None


def _readable(log: str) -> str:
    """Return a log without JSON: a pod's has it, and so has the stored one of a run whose pod was lost."""
    from automonai.observability.logs import readable

    return "".join(f"{readable(line)}\n" for line in log.splitlines())
