"""One controller per study on a cluster: a Lease, renewed by a thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from automonai.errors import ClusterError, StopRequestedError, StudyLockedError
from automonai.execution.cluster_api import CONFLICT, NOT_FOUND, STARTING_SECONDS, ClusterApi
from automonai.execution.cluster_objects import Lease
from automonai.execution.jobs import PART_OF, PART_OF_LABEL, STUDY_LABEL, JsonObject

logger = logging.getLogger(__name__)

LEASE_SECONDS = 15
"""A Lease that nobody renewed for so long belongs to a dead controller."""
RENEW_SECONDS = 4.0
LOOK_SECONDS = 1.0
SURE_SECONDS = 12.0
"""Without a renewal for so long a controller writes nothing more: where only its own way to the API is cut, another one
may take the Lease three seconds later, and two must not write one journal."""
UNREACHABLE_SECONDS = 120.0
"""Without the API for so long a controller gives up; until then it may find the Lease still its own."""
WORKFLOW_ANNOTATION = "automonai/workflow"


class HeldLease:
    """A study's Lease in this controller's hands."""

    def __init__(
        self, api: ClusterApi, lease: Lease, *, asked_at: float, study: str, identity: str, workflow: str | None
    ) -> None:
        """Remember what is held since it was asked for, at a monotonic time; `start` keeps it."""
        self._api, self._lease = api, lease
        self._study, self._identity, self._workflow = study, identity, workflow
        self._renewed_at = asked_at
        self._lost = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")

    def is_lost(self) -> bool:
        """Whether it is another's, or this controller has given up: it must write nothing more."""
        return self._lost.is_set()

    def is_sure(self) -> bool:
        """Whether no other controller can have it at this moment."""
        return not self.is_lost() and time.monotonic() - self._renewed_at < SURE_SECONDS

    def pause(self, seconds: float) -> None:
        """Wait before a request to the store is tried again, and for as long as another controller may have the Lease.

        Raises:
            StopRequestedError: If it is lost: a late write would replace what the successor has written.
        """
        time.sleep(seconds)
        while not self.is_sure():
            if self.is_lost():
                raise StopRequestedError(f"study {self._study} may be another controller's; what is left is its to do")
            time.sleep(LOOK_SECONDS / 10)

    def start(self) -> None:
        """Begin to renew it."""
        self._thread.start()

    def release(self) -> None:
        """Give it back, so that a successor need not wait for its end."""
        self._stopping.set()
        self._thread.join()
        if self.is_lost():
            return
        try:
            self._write(holder=None)
        except ClusterError as error:
            logger.warning("the Lease of study %s could not be given back: %s", self._study, error)

    def _keep(self) -> None:
        try:
            self._renew_again_and_again()
        finally:  # whatever ended it: nobody renews it any more
            if not self._stopping.is_set():
                self._lost.set()

    def _renew_again_and_again(self) -> None:
        while not self._stopping.wait(RENEW_SECONDS):
            asked_at = time.monotonic()
            try:
                self._renew()
                self._renewed_at = asked_at
            except ClusterError as error:
                logger.warning("the Lease of study %s is not renewed: %s; trying again", self._study, error)
            if time.monotonic() - self._renewed_at > UNREACHABLE_SECONDS:
                self._lost.set()
            if self.is_lost():
                logger.error("the Lease of study %s is lost; this controller stops", self._study)
                return

    def _renew(self) -> None:
        try:
            self._write(holder=self._identity)
        except ClusterError as error:
            if error.status not in (CONFLICT, NOT_FOUND):
                raise
            current = self._api.find_lease(self._lease.metadata.name)
            if current is None or current.spec.holder_identity != self._identity:
                self._lost.set()
            else:
                self._lease = current  # our own write of some time ago, whose answer did not reach us
                self._write(holder=self._identity)

    def _write(self, *, holder: str | None) -> None:
        name = self._lease.metadata.name
        manifest = _manifest(self._study, holder=holder, workflow=self._workflow, replaces=self._lease)
        self._lease = self._api.replace_lease(name, manifest)


@contextmanager
def leased(api: ClusterApi, study: str, *, identity: str, workflow: str | None = None) -> Iterator[HeldLease]:
    """Hold a study's Lease while the body runs.

    Args:
        api: The namespace in which controllers of the study run.
        study: Its name.
        identity: Of this controller: its pod's name.
        workflow: Noted for `automonai stop`; None where there is none.

    Raises:
        StudyLockedError: If another workflow's controller renews it; a dead one's ends after `LEASE_SECONDS`, which are
            waited, as is the end of this workflow's own earlier controller.
        ClusterError: If the API refuses it, or does not answer for long.
    """
    lease, asked_at = _acquire(api, study, identity=identity, workflow=workflow, sleep=time.sleep, clock=time.monotonic)
    held = HeldLease(api, lease, asked_at=asked_at, study=study, identity=identity, workflow=workflow)
    held.start()
    try:
        yield held
    finally:
        held.release()


def workflow_of(api: ClusterApi, study: str) -> str | None:
    """Return the name of the Workflow whose controller holds a study, None if nobody does."""
    lease = api.find_lease(lease_name(study))
    if lease is None or not lease.spec.holder_identity:
        return None
    return lease.metadata.annotations.get(WORKFLOW_ANNOTATION)


def lease_name(study: str) -> str:
    """Return the name of a study's Lease."""
    return f"automonai-{study}"


def _acquire(
    api: ClusterApi,
    study: str,
    *,
    identity: str,
    workflow: str | None,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> tuple[Lease, float]:
    """Take the Lease once nobody has renewed it for its length by our own clock: clocks of two nodes may differ.

    Return it and when it was asked for: others count its time from then, however late the answer came.
    """
    seen, since = "", clock()
    started = since
    while True:
        try:
            current = api.find_lease(lease_name(study))
            if current is not None and _is_anothers(current, identity):
                version = current.metadata.resource_version
                if version != seen:
                    if seen and not _is_predecessors(current, workflow):
                        raise _locked(study, current)
                    seen, since = version, clock()
                is_free = clock() - since >= LEASE_SECONDS
            else:
                is_free = True
            asked_at = clock()
            taken = _take(api, study, current, identity=identity, workflow=workflow) if is_free else None
        except ClusterError as error:
            patience = STARTING_SECONDS if error.is_refusal else UNREACHABLE_SECONDS if error.is_passing else 0.0
            if clock() - started >= patience:
                raise
            logger.warning("the Lease of study %s cannot be had: %s; trying again", study, error)
            taken = None
        if taken is not None:
            return taken, asked_at
        sleep(LOOK_SECONDS)


def _is_anothers(lease: Lease, identity: str) -> bool:
    return lease.spec.holder_identity not in (None, "", identity)


def _is_predecessors(lease: Lease, workflow: str | None) -> bool:
    """Whether it is held by the same workflow's controller: one whose pod was deleted may live for some seconds yet."""
    return workflow is not None and lease.metadata.annotations.get(WORKFLOW_ANNOTATION) == workflow


def _take(api: ClusterApi, study: str, current: Lease | None, *, identity: str, workflow: str | None) -> Lease | None:
    """Write ourselves down as the holder; None if somebody was faster."""
    manifest = _manifest(study, holder=identity, workflow=workflow, replaces=current)
    try:
        if current is None:
            return api.create_lease(manifest)
        return api.replace_lease(lease_name(study), manifest)
    except ClusterError as error:
        if error.status != CONFLICT:
            raise
        return None


def _locked(study: str, lease: Lease) -> StudyLockedError:
    workflow = lease.metadata.annotations.get(WORKFLOW_ANNOTATION)
    where = f" of workflow {workflow}" if workflow else ""
    return StudyLockedError(
        f"study {study} is being written by controller {lease.spec.holder_identity}{where}; wait for it, or stop it"
        " with: automonai stop"
    )


def _manifest(study: str, *, holder: str | None, workflow: str | None, replaces: Lease | None) -> JsonObject:
    metadata: JsonObject = {
        "name": lease_name(study),
        "labels": {PART_OF_LABEL: PART_OF, STUDY_LABEL: study},
        "annotations": {WORKFLOW_ANNOTATION: workflow} if workflow else {},
    }
    if replaces is not None:
        metadata["resourceVersion"] = replaces.metadata.resource_version
    spec: JsonObject = {
        "holderIdentity": holder or "",
        "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
