"""A study on a real cluster as its user and its tests see it: Workflow, pods, Jobs and journal."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from real_cluster import DATASET, TRIALS, eventually, kubectl_json, submit, wait_for_end

from automonai.controller import history_of
from automonai.domain.events import (
    Event,
    RunFinished,
    RunLost,
    RunQueued,
    SessionStarted,
    StudyStarted,
    TrialProposed,
)
from automonai.domain.run import Purpose, Result, Run
from automonai.domain.study import Study
from automonai.search import make_sampler
from automonai.storage import keys
from automonai.storage.journal import Journal
from automonai.storage.opening import open_store
from automonai.storage.store import Store

STUDY_SECONDS = 900.0


def has_gone_on(run: Run, result: Result | None) -> bool:
    """Whether the process that ended a new trial's run began in its middle: it made fewer steps than the run has."""
    assert result is not None
    assert result.steps_per_epoch is not None
    return result.steps < run.budget_epochs * result.steps_per_epoch


def is_proposed_by_the_journal_alone(events: Sequence[Event]) -> bool:
    """Whether a new sampler that knows what the journal knew at each proposal would propose the same."""
    started = events[0]
    assert isinstance(started, StudyStarted)
    sampler, same = make_sampler(started.spec.search), []
    for position, event in enumerate(events):
        if isinstance(event, TrialProposed):
            study, trial = Study.replay(events[:position]), event.trial
            budget = study.bracket(trial.bracket).budgets_epochs[0]
            proposal = sampler.propose(history_of(study), index=trial.number, budget_epochs=budget)
            same.append(proposal is not None and proposal.configuration == trial.configuration)
    return bool(same) and all(same)


class ClusterStudy:
    """A study in a release; its journal is read where the store can be reached."""

    def __init__(self, namespace: str, name: str, spec: str, *, gpus: int = 0) -> None:
        """Remember what to start."""
        self.namespace, self.name = namespace, name
        self.form = {
            "dataset": DATASET,
            "name": name,
            "gpus-per-run": str(gpus),
            "spec": spec,
        }
        self.location = f"s3://automonai/studies/{name}"
        self.workflow = ""
        self._endpoint = ""
        self._store: Store | None = None
        self._entries: list[str] = []
        self._events: list[Event] = []

    def start(self) -> ClusterStudy:
        self.workflow = submit(self.namespace, self.form)
        return self

    def ends(self) -> str:
        return wait_for_end(self.namespace, self.workflow, seconds=STUDY_SECONDS)

    def store(self) -> Store:
        """Return the same store, and so the same connections, while its address stays: a port-forward bears few."""
        endpoint = os.environ["AWS_ENDPOINT_URL_S3"]
        if self._store is None or endpoint != self._endpoint:
            self._endpoint, self._store = endpoint, open_store(self.location)
        return self._store

    def events(self) -> list[Event]:
        entries = list(self.store().list(keys.JOURNAL))
        if entries != self._entries:
            self._entries, self._events = entries, Journal(self.store()).read()
        return self._events

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events())

    def works_on(self, *runs: Run) -> None:
        """Wait until the pods of runs are at work."""
        wanted = {run.id for run in runs}
        eventually(lambda: wanted <= self._running(), f"pods of {', '.join(wanted)} are at work")

    def learns(self, *runs: Run) -> None:
        """Wait until runs are in the middle: a checkpoint is committed, and their pods work on."""
        store = self.store()
        for run in runs:
            eventually(partial(store.exists, keys.checkpoint_manifest(run.id)), f"{run.id} has a checkpoint")
        assert {run.id for run in runs} <= self._running(), "the runs ended too early to be disturbed"

    def finishes(self, runs: int) -> None:
        eventually(lambda: self.count(RunFinished) >= runs, f"{runs} runs have finished", seconds=STUDY_SECONDS)

    def jobs(self) -> list[dict[str, Any]]:
        return self._mine("jobs")

    def pods(self, *phases: str) -> list[dict[str, Any]]:
        return [pod for pod in self._mine("pods") if not phases or pod["status"]["phase"] in phases]

    def pod(self, run: Run) -> str:
        """Return the name of a run's pod at work."""
        of_run = [pod for pod in self.pods("Running") if pod["metadata"]["labels"]["automonai/run"] == run.id]
        return str(of_run[-1]["metadata"]["name"])

    def held_gpus(self) -> int:
        return len(self.pods("Pending", "Running"))

    def controller(self) -> str:
        """Return the name of the pod of the step that is at work on the study: search, then refit."""
        of_workflow = f"workflows.argoproj.io/workflow={self.workflow},app.kubernetes.io/component=step"
        pods = kubectl_json("get", "pods", "-n", self.namespace, "-l", of_workflow)["items"]
        (name,) = (
            pod["metadata"]["name"]
            for pod in pods
            if pod["status"]["phase"] == "Running" and re.search("-(search|refit)-[0-9]+$", pod["metadata"]["name"])
        )
        return str(name)

    def is_taken_up(self, sessions: int) -> None:
        eventually(lambda: self.count(SessionStarted) >= sessions, f"controller {sessions} has taken the study up")

    def losses(self) -> dict[str, str]:
        """Return the runs that were lost, and why."""
        return {event.run_id: event.why for event in self.events() if isinstance(event, RunLost)}

    def queued(self) -> list[str]:
        return [event.run.id for event in self.events() if isinstance(event, RunQueued)]

    def refits(self) -> list[Run]:
        return [record.run for record in Study.replay(self.events()).open_runs if record.run.purpose is Purpose.REFIT]

    def story(self) -> dict[str, object]:
        study = Study.replay(self.events())
        assert study.ensemble is not None
        return {
            "trials": [trial.model_dump() for trial in study.trials.values()],
            "losses": {run_id: record.result and record.result.loss for run_id, record in sorted(study.runs.items())},
            "epochs": {run_id: record.result and record.result.curve_epochs for run_id, record in study.runs.items()},
            "members": [(member.run_id, member.weight) for member in study.ensemble.members],
            "test": [scores.dice for scores in study.ensemble.test],
        }

    def went_on(self, run: Run) -> bool:
        """Whether a new trial's run was gone on with by the process that ended it."""
        return has_gone_on(run, Study.replay(self.events()).runs[run.id].result)

    def _running(self) -> set[str]:
        return {pod["metadata"]["labels"]["automonai/run"] for pod in self.pods("Running")}

    def _mine(self, kind: str) -> list[dict[str, Any]]:
        selector = f"{TRIALS},automonai/study={self.name}"
        items: list[dict[str, Any]] = kubectl_json("get", kind, "-n", self.namespace, "-l", selector)["items"]
        return items
