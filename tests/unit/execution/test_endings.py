"""Why a run is lost, from what the API says of its Job and pod alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from automonai.domain.run import LossCause
from automonai.execution.cluster_objects import Job, Pod
from automonai.execution.endings import Limits, Sighting, loss_of, take_note

LIMITS = Limits(max_disruptions=2, pending_seconds=60, image_seconds=20, leaving_seconds=330)
LEFT_AT = datetime(2026, 1, 1, tzinfo=UTC)
FAILED_JOB = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}


def sighting(pod_status: dict[str, Any], *, job_status: dict[str, Any] | None = None) -> Sighting:
    """Return a Job of one pod as it is first seen, at time 0."""
    metadata = {"name": "run", "uid": "1", "resourceVersion": "1"}
    seen = Sighting(
        job=Job.model_validate({"metadata": metadata, "spec": {}, "status": job_status or {}}),
        pods={"1": Pod.model_validate({"metadata": metadata, "status": pod_status})},
    )
    take_note(seen, 0.0)
    return seen


@pytest.mark.parametrize(
    ("reason", "message", "cause", "words"),
    [
        (
            "UnexpectedAdmissionError",
            "requested number of devices unavailable for nvidia.com/gpu",
            LossCause.UNSCHEDULABLE,
            "refused its pod: UnexpectedAdmissionError: requested number of devices unavailable for nvidia.com/gpu",
        ),
        (
            "Evicted",
            'Usage of EmptyDir volume "cache" exceeds the limit "20Gi".',
            LossCause.DISRUPTION,
            'disrupted once by Evicted (Usage of EmptyDir volume "cache" exceeds the limit',
        ),
    ],
)
def test_what_the_nodes_kubelet_says_of_a_pod_is_told(reason: str, message: str, cause: LossCause, words: str) -> None:
    status = {"phase": "Failed", "reason": reason, "message": message}
    loss = loss_of(sighting(status, job_status=FAILED_JOB), LIMITS, 1.0)
    assert loss is not None
    assert loss.cause is cause
    assert words in loss.why


def test_a_pod_that_cannot_start_on_its_node_is_not_said_to_have_none() -> None:
    seen = sighting({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]})
    assert loss_of(seen, LIMITS, 59.0) is None
    loss = loss_of(seen, LIMITS, 61.0)
    assert loss is not None
    assert loss.why.startswith("its pod has a node, but for 60 s no container")


def test_a_pod_that_is_gone_is_waited_for_as_one_that_was_never_made() -> None:
    seen = sighting({"phase": "Running"})
    seen.gone.add("1")
    take_note(seen, 100.0)
    assert loss_of(seen, LIMITS, 159.0) is None
    loss = loss_of(seen, LIMITS, 161.0)
    assert loss is not None
    assert loss.cause is LossCause.QUOTA


def test_a_pod_that_was_told_to_leave_may_take_what_it_was_granted() -> None:
    seen = sighting({"phase": "Running"})
    seen.pods["1"] = seen.pods["1"].model_copy(
        update={"metadata": seen.pods["1"].metadata.model_copy(update={"deletion_timestamp": LEFT_AT})}
    )
    take_note(seen, 0.0)
    assert loss_of(seen, LIMITS, 329.0) is None
    loss = loss_of(seen, LIMITS, 331.0)
    assert loss is not None
    assert loss.cause is LossCause.NODE_LOST
