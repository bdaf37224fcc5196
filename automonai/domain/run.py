"""Trial, Run and Result: what is tried, what an executor runs, and what came of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from automonai.domain.configuration import Configuration
from automonai.domain.records import Record


class Origin(StrEnum):
    """Where a proposed configuration came from."""

    STANDARD = "standard"
    MODEL = "model"
    RANDOM = "random"
    """Drawn at random on purpose: by a random sampler, or BOHB's random fraction."""
    WARM_UP = "warm_up"
    """Drawn at random because no budget had enough results for a model."""
    FALLBACK = "fallback"
    """Drawn at random because the model failed; each one is reported."""
    GRID = "grid"


class RunState(StrEnum):
    """The life of a run; COMPLETE and FAILED are final, LOST is queued again until the retries are spent."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    LOST = "lost"

    @property
    def is_final(self) -> bool:
        """Whether nothing can change this state any more."""
        return self in (RunState.COMPLETE, RunState.FAILED)


class FailureReason(StrEnum):
    """Why a run is FAILED."""

    BAD_CONFIGURATION = "bad_configuration"
    DOES_NOT_FIT = "does_not_fit"
    """Rejected before it ran: its plan needs more memory than the device has."""
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE_LOSS = "non_finite_loss"
    TOO_SLOW = "too_slow"
    LOST = "lost"
    """The infrastructure lost it more often than the spec allows."""


class LossCause(StrEnum):
    """Why the infrastructure lost a run, or took a pod from it."""

    DISRUPTION = "disruption"
    """Evicted, preempted or drained."""
    NODE_LOST = "node_lost"
    OUT_OF_MEMORY = "out_of_memory"
    """The kernel killed it at its container's limit; a worker that notices by itself ends as FAILED instead."""
    DEADLINE = "deadline"
    IMAGE = "image"
    """The container could not be started: image, name or secret."""
    UNSCHEDULABLE = "unschedulable"
    QUOTA = "quota"
    DELETED = "deleted"
    """Somebody deleted its Job."""
    CRASH = "crash"
    """Its worker left without an answer."""

    @property
    def is_want_of_room(self) -> bool:
        """Whether the cluster was merely full: a run that never started may wait as long as it takes."""
        return self in (LossCause.UNSCHEDULABLE, LossCause.QUOTA)


class Purpose(StrEnum):
    """What a run is for."""

    SEARCH = "search"
    REFIT = "refit"


class Run(Record):
    """One trial at one budget on one fold: what an executor runs."""

    trial: Annotated[int, Field(ge=0)]
    """Its number."""
    budget_epochs: Annotated[int, Field(ge=1)]
    """Epochs that the trial has trained once this run is over, those of lower rungs included."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Held out; the run trains on the cases of the others."""
    purpose: Purpose = Purpose.SEARCH

    @property
    def id(self) -> str:
        """Return the deterministic id, e.g. `trial-0007-epochs-0009-fold-0` or `refit-0007-fold-2`.

        A refit's id leaves its epochs out: under a time budget they are settled while it runs.
        """
        if self.purpose is Purpose.REFIT:
            return f"refit-{self.trial:04d}-fold-{self.fold}"
        return f"trial-{self.trial:04d}-epochs-{self.budget_epochs:04d}-fold-{self.fold}"

    @property
    def rung(self) -> str:
        """Return its rung as labels of Jobs and metrics call it: the budget's epochs, or `refit`."""
        return "refit" if self.purpose is Purpose.REFIT else str(self.budget_epochs)


class CurvePoint(Record):
    """One validation during a training."""

    epoch: int
    """Epochs trained until here."""
    seconds: float
    """Training time of the trial until here, earlier rungs included."""
    training_loss: float
    """Mean over the steps of the epoch that ended here."""
    validation_loss: float
    """Mean over the validation cases."""
    dice: dict[int, float]
    """Mean Dice over the validation cases of each foreground label value; labels that no case has are left out."""

    @property
    def mean_dice(self) -> float:
        """Return the mean foreground Dice, 0 if no validation case has any foreground."""
        return sum(self.dice.values()) / len(self.dice) if self.dice else 0.0


class Result(Record):
    """What came of a run; written to the store as `result.json` by the worker."""

    version: int = 1
    """Of this format."""
    run_id: str
    """Of the run."""
    state: RunState
    """COMPLETE or FAILED."""
    loss: float | None = None
    """What the search minimises: 1 - mean foreground Dice, or the validation loss; None when FAILED."""
    reason: FailureReason | None = None
    """Why it is FAILED; None when COMPLETE."""
    message: str = ""
    """What went wrong, in words; empty when COMPLETE."""
    curve: tuple[CurvePoint, ...] = ()
    """Every validation of this trial on this fold, earlier rungs included."""
    epochs: int = 0
    """Epochs that this run itself trained (a continued run counts only what it added)."""
    seconds: float = 0.0
    """Wall-clock time of this run, reading and validation included."""
    seconds_per_epoch: float | None = None
    """Training time per epoch and its part of a validation's, start-up and preprocessing excluded."""
    training_seconds_per_epoch: float | None = None
    """Of it the time of the steps and of waiting for their batches."""
    validation_seconds: float | None = None
    """How long the last validation took."""
    prediction_seconds_per_case: float | None = None
    """Time to predict and score one validation case."""
    steps_per_epoch: int | None = None
    """Optimiser steps of one epoch."""
    patches_per_epoch: int | None = None
    """Patches that one epoch trains on: one of each training case."""
    steps: int = 0
    """Optimiser steps of the process that ended this run, like the three figures below."""
    data_wait_seconds: float | None = None
    """How long these steps waited for their batches."""
    patches_per_second: float | None = None
    """Trained on by these steps; the time of validations counts."""
    peak_memory_bytes: int | None = None
    """Peak of the device memory on a GPU, of the process's resident memory on a CPU."""
    planned_memory_bytes: int | None = None
    """What its plan was expected to need."""
    parameters: int | None = None
    """Weights of the network."""
    checkpoint: str | None = None
    """Store key of the committed checkpoint's manifest."""
    device: str = ""
    """GPU, or CPU and threads, and the arithmetic; empty if it did not run."""

    @property
    def curve_epochs(self) -> int:
        """Return the epochs that the trial had trained at its last validation; 0 without one."""
        return self.curve[-1].epoch if self.curve else 0

    @property
    def mean_dice(self) -> float | None:
        """Return the last validation's mean foreground Dice; None without a validation."""
        return self.curve[-1].mean_dice if self.curve else None


class Trial(Record):
    """One configuration and where it stands in the search."""

    number: Annotated[int, Field(ge=0)]
    """From 0, in the order of the proposals."""
    configuration: Configuration
    origin: Origin
    bracket: int
    """Number of its bracket of successive halving, from 0."""
    model_budget_epochs: int | None = None
    """The budget whose model proposed it; None when it did not come from a model."""
