"""What is known of a Job, whatever the order in which its lists and watches tell of it."""

from __future__ import annotations

from automonai.domain.configuration import Configuration
from automonai.domain.request import TrainRequest
from automonai.domain.run import Run
from automonai.execution.cluster_objects import Pod
from automonai.execution.executor import Notice
from automonai.execution.tracked_job import TrackedJob
from automonai.execution.watcher import Relisted

REQUEST = TrainRequest(run=Run(trial=1, budget_epochs=1), configuration=Configuration(), seed=1)


def running_pod() -> Pod:
    labels = {"batch.kubernetes.io/controller-uid": "job-1"}
    return Pod.model_validate(
        {
            "metadata": {"name": "pod", "uid": "pod-1", "labels": labels, "resourceVersion": "1"},
            "status": {"phase": "Running"},
        }
    )


def test_a_list_that_is_older_than_a_pod_does_not_make_it_gone() -> None:
    told: list[Notice] = []
    job = TrackedJob(request=REQUEST, name="job", since=0.0, tell=told.append)
    job.made("job-1")
    job.note(running_pod())
    job.note_list(Relisted("pods", ()))
    assert job.sighting.is_quiet
    job.note(running_pod())
    assert not job.sighting.is_quiet
    assert told == [Notice(run_id=REQUEST.run_id)]
