"""The journal's events. What a study is, is what its events say."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from automonai.domain.records import Record
from automonai.domain.request import EnsembleResult
from automonai.domain.run import LossCause, Result, Run, Trial
from automonai.spec import StudySpec


class _Event(Record):
    at: float
    """Unix time in seconds."""


class StudyStarted(_Event):
    """The first event: what the user asked for."""

    kind: Literal["study_started"] = "study_started"
    version: Literal[1] = 1
    """Of the journal's format."""
    spec: StudySpec
    software: dict[str, str] = {}
    """Package to version."""
    folds: int | None = None
    """Of the division, which may come from a file; None: as many as `split.folds` says."""


class SessionStarted(_Event):
    """A controller took the study up, for the first time or again."""

    kind: Literal["session_started"] = "session_started"
    host: str
    """Name of the machine or pod."""
    process: int
    """Its process id there."""


class TimePassed(_Event):
    """A controller was at work until now, which a budget's time has to know: told where nothing else happens."""

    kind: Literal["time_passed"] = "time_passed"


class ClockJumped(_Event):
    """The machine slept, or somebody set its clock: between the event before this one and this no time was spent."""

    kind: Literal["clock_jumped"] = "clock_jumped"


class SpecChanged(_Event):
    """The user took the study up with another execution or refit, or other limits of its budget."""

    kind: Literal["spec_changed"] = "spec_changed"
    spec: StudySpec


class TrialProposed(_Event):
    """A configuration joined the search."""

    kind: Literal["trial_proposed"] = "trial_proposed"
    trial: Trial
    note: str = ""
    """Why a proposal fell back to a random draw; empty otherwise."""


class RunQueued(_Event):
    """A run is about to be handed to the executor."""

    kind: Literal["run_queued"] = "run_queued"
    run: Run
    resume_from: str | None = None
    """Store key of the manifest of the checkpoint from which it goes on; None: it begins anew."""


class RunStarted(_Event):
    """A worker took a run up, or the ensemble's work; missing where it ended while no controller looked on."""

    kind: Literal["run_started"] = "run_started"
    run_id: str
    """Or `ensemble`."""


class RunDisrupted(_Event):
    """A worker was taken away and is made anew without the controller's doing; the run goes on."""

    kind: Literal["run_disrupted"] = "run_disrupted"
    run_id: str
    """Or `ensemble`."""
    cause: LossCause
    why: str
    """Names the pod, so that one disruption is not written down twice."""


class RunFinished(_Event):
    """A run reached a final state; one that was refused beforehand was never queued."""

    kind: Literal["run_finished"] = "run_finished"
    run: Run
    result: Result


class RunLost(_Event):
    """The infrastructure lost a run; it is queued again while the spec allows."""

    kind: Literal["run_lost"] = "run_lost"
    run_id: str
    """Or `ensemble`."""
    cause: LossCause
    why: str
    """In words."""


class SearchEnded(_Event):
    """Nothing more is searched."""

    kind: Literal["search_ended"] = "search_ended"
    why: str
    """In words."""


class RefitChosen(_Event):
    """Which configurations are trained to the end, on which folds, best first; empty when nothing can be refitted."""

    kind: Literal["refit_chosen"] = "refit_chosen"
    runs: tuple[Run, ...]
    """The trainings, those of the best configuration first."""
    why: str
    """In words."""


class EnsembleQueued(_Event):
    """The networks are trained; the ensemble is chosen from them and tested."""

    kind: Literal["ensemble_queued"] = "ensemble_queued"
    candidates: tuple[str, ...]
    """Run ids."""


class EnsembleFinished(_Event):
    """The ensemble is chosen and scored."""

    kind: Literal["ensemble_finished"] = "ensemble_finished"
    result: EnsembleResult


class StudyEnded(_Event):
    """Nothing is left to do."""

    kind: Literal["study_ended"] = "study_ended"
    succeeded: bool
    """Whether there is an ensemble."""
    why: str
    """In words."""


Event = Annotated[
    StudyStarted
    | SessionStarted
    | TimePassed
    | ClockJumped
    | SpecChanged
    | TrialProposed
    | RunQueued
    | RunStarted
    | RunDisrupted
    | RunFinished
    | RunLost
    | SearchEnded
    | RefitChosen
    | EnsembleQueued
    | EnsembleFinished
    | StudyEnded,
    Field(discriminator="kind"),
]
event_adapter: TypeAdapter[Event] = TypeAdapter(Event)
