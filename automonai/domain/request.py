"""What a worker is asked to do; written to the store as `request.json` before the worker sees it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from automonai.domain.configuration import Configuration
from automonai.domain.dataset import Dataset, Split
from automonai.domain.fingerprint import Fingerprint
from automonai.domain.records import Record
from automonai.domain.run import Run
from automonai.spec import ExecutionSpec, TrainingSpec


class StudyData(Record):
    """What every worker of a study shares: `data.json` in the study's folder; only its execution may change later."""

    version: int = 1
    dataset: Dataset
    split: Split
    fingerprint: Fingerprint
    training: TrainingSpec
    execution: ExecutionSpec
    contents: dict[str, str] = {}
    """Case to a hash of its files, as they were when the study was started; empty of a dataset in a bucket, whose place
    says which version of it is meant."""


class _TimedRequest(Record):
    """A request that may have to be answered within a time."""

    deadline_seconds: float | None = None
    """Wall-clock seconds from `asked_at` within which the answer must be there: less is done if need be."""
    asked_at: float | None = None
    """Unix time of asking; None: when a worker takes it up."""

    def seconds_left(self, now: float, *, worked_seconds: float = 0.0) -> float | None:
        """Return what is left of the deadline, at least half of it less what was worked; None without one.

        What passed before a worker took it up (a queue, a node that is being started) is the request's own; but one
        that came very late is done half as long rather than not at all, and clocks of machines differ. A worker that
        takes the place of one that was evicted has the rest of that half.
        """
        if self.deadline_seconds is None:
            return None
        waited = 0.0 if self.asked_at is None else max(0.0, now - self.asked_at)
        return max(0.0, self.deadline_seconds / 2 - worked_seconds, self.deadline_seconds - waited)


class TrainRequest(_TimedRequest):
    """Train one trial to one budget on one fold."""

    kind: Literal["train"] = "train"
    run: Run
    configuration: Configuration
    seed: int
    """Of the trial: initial weights, order of cases, augmentation. Every rung of a trial has the same."""
    objective: Literal["dice", "loss"] = "dice"
    resume_from: str | None = None
    """Store key of the checkpoint manifest of the trial's lower rung; None starts from new weights."""
    decay: bool = False
    """Decay the learning rate to zero over the known length (a refit); else it stays constant."""
    max_seconds_per_epoch: float | None = None
    """The cap: above it the run ends as too_slow."""
    memory_bytes: int | None = None
    """What the run may use; a plan that needs more is refused. None: whatever there is."""
    attempt: int = 0
    """How often the infrastructure has lost the run before; tells an executor a new try from one to adopt."""
    strikes: int = 0
    """The losses among them that were not for want of room: each makes the next try wait longer."""

    @property
    def run_id(self) -> str:
        """Return the id of the run."""
        return self.run.id

    @property
    def rung(self) -> str:
        """Return the rung of the run."""
        return self.run.rung


class Member(Record):
    """One trained network that may join the ensemble."""

    run_id: str
    trial: int
    fold: int
    checkpoint: str
    """Store key of its manifest."""


class EnsembleRequest(_TimedRequest):
    """Choose the ensemble from its candidates and score it once on the test cases."""

    kind: Literal["ensemble"] = "ensemble"
    candidates: Annotated[tuple[Member, ...], Field(min_length=1)]
    """The best configuration's members first."""
    attempt: int = 0
    """As in a TrainRequest."""
    strikes: int = 0
    """As in a TrainRequest, of this session."""

    @property
    def run_id(self) -> str:
        """Return the id of this work."""
        return "ensemble"

    @property
    def rung(self) -> str:
        """Return what stands in the place of a rung in labels of Jobs and metrics."""
        return "ensemble"


Request = Annotated[TrainRequest | EnsembleRequest, Field(discriminator="kind")]
request_adapter: TypeAdapter[TrainRequest | EnsembleRequest] = TypeAdapter(Request)


class CaseScores(Record):
    """The ensemble's scores on one test case, by label value; None where a figure has no meaning."""

    case: str
    """Its id."""
    dice: dict[int, float | None]
    """None if neither prediction nor label has the class."""
    hd95_mm: dict[int, float | None]
    """95 % Hausdorff distance; None unless both have the class."""
    surface_dice: dict[int, float | None]
    """At 1 mm; None if neither has the class."""
    overlay: str | None = None
    """Store key of a PNG with image, label and prediction of the slice with most errors; only for the worst cases."""


class EnsembleMember(Record):
    """A network of the ensemble and its weight; the weights of an ensemble sum to 1."""

    run_id: str
    """The run that trained it."""
    trial: int
    """Whose configuration it has."""
    fold: int
    """Held out of its training."""
    weight: float
    """Of its probabilities in the mean."""
    checkpoint: str
    """Store key of a checkpoint manifest."""


class EnsembleResult(Record):
    """The chosen ensemble: `ensemble/ensemble.json` in the study's folder."""

    version: int = 1
    """Of this format."""
    members: tuple[EnsembleMember, ...]
    """The networks."""
    largest_component: tuple[int, ...] = ()
    """Label values of which only the largest connected component is kept, because it helped on validation."""
    validation_dice: dict[int, float] = {}
    """Out-of-fold Dice of the ensemble per label value."""
    single_validation_dice: float | None = None
    """Out-of-fold mean Dice of the best configuration alone."""
    scored_cases: int = 0
    """Out-of-fold cases by which it was chosen; 0 where there was no choice."""
    planned_cases: int = 0
    """What `scored_cases` would have been had there been time for all."""
    left_out: tuple[int, ...] = ()
    """Trials that took no part in the choice: they share no fold with the better ones."""
    test: tuple[CaseScores, ...] = ()
    """One for each test case."""
    seconds: float = 0.0
    """Wall-clock time to choose and test it."""
    peak_memory_bytes: int | None = None
    """As in a Result."""
