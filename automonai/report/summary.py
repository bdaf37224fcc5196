"""Summary: what a study came to, in numbers; `report.json` is its JSON."""

from __future__ import annotations

from typing import Literal

from automonai.domain.configuration import Configuration
from automonai.domain.records import Record
from automonai.domain.run import FailureReason, Origin
from automonai.domain.study import Phase
from automonai.report.intervals import Interval


class DatasetSummary(Record):
    """The data, in numbers."""

    name: str
    """As the dataset calls itself."""
    channels: tuple[str, ...]
    """Names, in the order of the image's channels."""
    classes: dict[int, str]
    """Label value to class name, without the background."""
    development_cases: int
    """Cases that are searched and trained on."""
    test_cases: int
    """Cases that only the last step sees."""
    folds: int
    """Parts of the development cases; each is held out once."""


class CaseSummary(Record):
    """The ensemble's scores on one test case, by class name; None where a figure has no meaning."""

    case: str
    """Its id."""
    mean_dice: float | None
    """Mean over the classes that have one."""
    dice: dict[str, float | None]
    """By class name; None if neither prediction nor label has the class."""
    hd95_mm: dict[str, float | None]
    """95 % Hausdorff distance by class name; None unless both have the class."""
    surface_dice: dict[str, float | None]
    """Surface Dice at 1 mm by class name; None if neither has the class."""
    overlay: str | None = None
    """Store key of the case's picture."""


class HeldOutScores(Record):
    """The ensemble on the cases that nothing before had seen; confidence intervals are 95 %, over cases."""

    mean_dice: float | None
    """Mean over the classes of their means over cases."""
    mean_dice_low: float | None
    """None for fewer than two cases."""
    mean_dice_high: float | None
    """None for fewer than two cases."""
    dice: dict[str, Interval]
    """By class name."""
    hd95_mm: dict[str, Interval]
    """95 % Hausdorff distance, by class name."""
    surface_dice: dict[str, Interval]
    """At 1 mm, by class name."""
    cases: tuple[CaseSummary, ...]
    """Lowest mean Dice first."""


class Winner(Record):
    """The configuration of most weight in the ensemble.

    Before there is one, the configuration that is refitted first; before that, the best so far.
    """

    trial: int
    """Its number."""
    configuration: Configuration
    origin: Origin
    budget_epochs: int
    """Epochs that it had trained in the search."""
    loss: float | None
    """What the search minimises, of its last run in the search."""
    dice: float | None
    """Mean foreground Dice on its validation cases in the search."""
    parameters: int | None
    """Weights of its network."""
    prediction_seconds_per_case: float | None
    """Time to predict and score one validation case."""


class Comparison(Record):
    """The winner beside the standard configuration, after the same epochs and on the same validation cases."""

    trial: int
    """The standard configuration's number."""
    epochs: int
    """The most epochs after which both were validated."""
    winner_dice: float
    """Mean foreground Dice of the winner then."""
    standard_dice: float
    """Mean foreground Dice of the standard configuration then."""


class MemberSummary(Record):
    """A network of the ensemble."""

    run_id: str
    """The run that trained it."""
    trial: int
    """Whose configuration it has."""
    fold: int
    """Held out of its training."""
    weight: float
    """Share in the ensemble; all add up to 1."""
    is_refit: bool
    """Whether it was trained to the end; if not it is the search's own, since no network that was came through."""


class EnsembleSummary(Record):
    """What `predict` uses."""

    members: tuple[MemberSummary, ...]
    """Highest weight first."""
    largest_component: tuple[str, ...]
    """Classes of which only the largest connected component is kept."""
    validation_dice: dict[str, float]
    """Dice by class name on held-out cases, each by the networks that had not seen it: one of each configuration."""
    validation_mean_dice: float | None
    """Mean of these over the classes; the choice was made by it, so that it is slightly too good."""
    single_validation_dice: float | None
    """The same mean for the best configuration by itself, with all pieces of every class kept."""
    scored_cases: int
    """Held-out cases by which it was chosen; 0 if that is not known."""
    planned_cases: int
    """Held-out cases by which it would have been chosen, had there been time for all of them."""
    left_out: tuple[int, ...]
    """Trials that took no part in the choice: they share no fold with the better ones."""
    seconds: float
    """Wall-clock time to choose and test it."""


class Optimism(Record):
    """The winner's score in the search beside the ensemble's on the test, which are not strictly comparable.

    Networks, length of training and patients differ, and only the first was chosen for its score.
    """

    search_dice: float
    """Mean foreground Dice of the winner on its validation cases, when the search ended."""
    test_dice: float
    """Mean Dice of the ensemble on the test cases."""
    difference: float
    """Search minus test."""


class Proposals(Record):
    """Where the tried configurations came from."""

    model: int
    """Proposed by BOHB's model."""
    random: int
    """Drawn at random, the warm-up included."""
    standard: int
    """The standard configuration, which is tried first."""
    fallback: int
    """Drawn at random because the model failed."""
    warm_up: int
    """Of `random`: drawn before a budget had enough results for a model."""
    grid: int
    """From the grid sampler."""
    model_budgets: dict[int, int]
    """Budget in epochs to the number of proposals that its model made; no other budget had a model in use."""


class RunCounts(Record):
    """What became of the runs, those of the refit included."""

    complete: int
    """Ended with a result."""
    failed: int
    """Ended without one for good, those included that were refused before they ran."""
    lost: int
    """How often the infrastructure lost a run; most of these ran again and count above as well."""
    open: int
    """Queued, running or to be queued again."""


class Failure(Record):
    """All FAILED runs of one cause with one message."""

    cause: FailureReason
    message: str
    """What the runs, or the check before them, said."""
    runs: tuple[str, ...]
    """Their ids."""


class Spent(Record):
    """What the study cost so far, and what it may cost."""

    epochs: int
    """Trained in the search."""
    refit_epochs: int
    """Trained in the refit."""
    seconds: float
    """Wall-clock time that controllers spent on the study."""
    search_seconds: float | None
    """Of it the search; None while it goes on."""
    run_seconds: float
    """Added up over all runs, parallel ones each on their own."""
    peak_memory_bytes: int | None
    """The largest of any one run."""
    limit_iterations: int | None
    """`budget.iterations` of the spec."""
    limit_epochs: int | None
    """`budget.epochs` of the spec."""
    limit_seconds: float | None
    """`budget.time` of the spec."""


class TrialSummary(Record):
    """One configuration and how far it came."""

    trial: int
    """Its number, in the order of the proposals."""
    rank: int | None
    """1 is the best; None without a completed run."""
    origin: Origin
    model_budget_epochs: int | None
    """The budget whose model proposed it; None when it did not come from a model."""
    bracket: int
    """Number of its bracket of successive halving."""
    budget_epochs: int
    """Epochs of its last completed run; 0 without one."""
    loss: float | None
    """What the search minimises, of its last completed run; None without one."""
    dice: float | None
    """Mean foreground Dice of that run on its validation cases."""
    epochs: int
    """Trained in the search, over all its runs."""
    seconds: float
    """Spent in the search, over all its runs."""
    failure: FailureReason | None
    """Why its last run that failed did so; None if none failed."""
    refit: Literal["open", "complete", "failed"] | None
    """What became of its networks that are trained to the end: complete if one is; None if none was to be."""
    configuration: Configuration


class Share(Record):
    """How much one hyperparameter matters to the results."""

    name: str
    """The hyperparameter's."""
    mean: float
    """Share of the variance of held-out results that the forest loses when this one's values are shuffled."""
    std: float
    """Over the shuffles."""


class Importance(Record):
    """Permutation importance of the hyperparameters, by a random forest on held-out trials."""

    trials: int
    """Trials with a result."""
    results: int
    """Completed runs of these."""
    explained: float | None
    """Share of the variance of held-out results that the forest predicts; at or below 0 it learnt nothing."""
    shares: tuple[Share, ...]
    """Largest first; empty if `missing` says why."""
    missing: str
    """Why there is none; empty if there is one."""


class Note(Record):
    """Something that fell back or was lost."""

    seconds: float
    """Of the study's time."""
    text: str
    """What happened, in words."""


class Summary(Record):
    """What a study came to, or has come to so far."""

    version: Literal[1] = 1
    """Of this format."""
    study: str
    """Its name."""
    phase: Phase
    succeeded: bool | None
    """None while the study is not over."""
    stopped_because: str
    """Why the study is over; empty while it is not."""
    search_stopped_because: str
    """Why the search is over; empty while it is not."""
    refit_because: str
    """What decided the refit; empty before that."""
    refitted_first: int | None
    """The trial that the refit is for in the first place; None before that."""
    started_at: float
    """Unix time in seconds."""
    sampler: str
    """`search.sampler` of the spec."""
    objective: Literal["dice", "loss"]
    """`search.objective` of the spec."""
    searched: tuple[str, ...]
    """Names of the hyperparameters that varied."""
    rungs: tuple[int, ...]
    """Budgets of the search in epochs."""
    dataset: DatasetSummary
    test: HeldOutScores | None
    """None before the ensemble is tested, and without test cases."""
    winner: Winner | None
    """The best configuration so far; None before a run has completed."""
    standard: Comparison | None
    """How the winner does beside the standard configuration; None if it is that, or if they cannot be compared."""
    ensemble: EnsembleSummary | None
    """None before it is chosen."""
    optimism: Optimism | None
    """None before the test."""
    proposals: Proposals
    runs: RunCounts
    failures: tuple[Failure, ...]
    """By cause and message."""
    budget: Spent
    trials: tuple[TrialSummary, ...]
    """Best first, then those without a completed run."""
    importance: Importance | None = None
    """Measured for the report only; None in a mere status."""
    software: dict[str, str]
    """Package to version, as of the study's start."""
    devices: tuple[str, ...]
    """Names of what the runs ran on."""
    notes: tuple[Note, ...]
    """In the order of time."""

    @property
    def best_trial(self) -> TrialSummary | None:
        """Return the trial of the best score in the search; None before a run has completed."""
        return self.trials[0] if self.trials and self.trials[0].rank is not None else None
