"""StudySpec: all that a user decides about a study, one YAML in the CLI, in Helm values and in Argo."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from automonai.documents import parse_yaml, read_yaml
from automonai.errors import SpecError

Scalar = bool | int | float | str


def _takes_bool(annotation: object) -> bool:
    return annotation in (bool, object) or any(map(_takes_bool, get_args(annotation)))


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _has_numbers_where_it_wants_them(cls, values: object) -> object:
        """Refuse true and false for a number: Python takes them for 1 and 0."""
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            told = value if isinstance(value, list | tuple) else [value]
            wrong = [str(one).lower() for one in told if isinstance(one, bool)]
            if wrong and field is not None and not _takes_bool(field.annotation):
                raise ValueError(f"{name}: expected another kind of value than {wrong[0]}")
        return values


_ENDLESS, _LONGEST = float("inf"), 1e300
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s)?")


def parse_duration(text: str | float) -> float:
    """Return the seconds of a duration such as `90`, `45s`, `20m`, `1h`, `1h30m` or `2d`.

    Raises:
        ValueError: If it is none, or not more than nothing.
    """
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError("a duration is a number of seconds or a text like 1h30m")
    if isinstance(text, int | float):
        seconds = float(text) if text < _LONGEST else _ENDLESS
    else:
        compact = re.sub(r"\s+", "", text.lower())
        match = _DURATION.fullmatch(compact)
        if re.fullmatch(r"\d+(\.\d+)?", compact):
            seconds = float(compact)
        elif compact and match:
            factors = (86400.0, 3600.0, 60.0, 1.0)
            seconds = sum(float(part) * factor for part, factor in zip(match.groups(), factors, strict=True) if part)
        else:
            raise ValueError(f"'{text}' is not a duration; write for example 45s, 20m, 1h or 1h30m")
    if not 0 < seconds < _ENDLESS:
        raise ValueError(f"a duration must be more than nothing, not {text}")
    return seconds


Duration = Annotated[float, BeforeValidator(parse_duration)]


def _of_home(place: object) -> object:
    """Return a place with the home folder for a leading `~`, as a shell would have it."""
    return os.path.expanduser(place) if isinstance(place, str) else place  # noqa: PTH111


Place = Annotated[str, BeforeValidator(_of_home)]


@dataclass(frozen=True)
class Limit:
    """A budget in one of its three forms; the two others are None."""

    time: float | None = None
    epochs: int | None = None
    iterations: int | None = None


def parse_limit(text: str) -> Limit:
    """Return what a budget such as `1h`, `30 epochs` or `3 iterations` states.

    Raises:
        SpecError: If it is none of the three.
    """
    counted = re.fullmatch(r"\s*(\d+)\s*(epochs?|iterations?)\s*", text)
    if counted and int(counted[1]) > 0:
        count = int(counted[1])
        return Limit(epochs=count) if counted[2].startswith("epoch") else Limit(iterations=count)
    try:
        return Limit(time=parse_duration(text))
    except ValueError as error:
        raise SpecError(f"budget '{text}': write a time like 1h or 20m, '30 epochs' or '3 iterations'") from error


class SamplerName(StrEnum):
    """The search method."""

    BOHB = "bohb"
    HYPERBAND = "hyperband"
    SUCCESSIVE_HALVING = "successive_halving"
    RANDOM = "random"
    GRID = "grid"


class IntegerRange(_Section):
    """Whole numbers from `low` to `high`, both included."""

    type: Literal["integer"]
    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        _check_range(self.low, self.high, log=self.log)
        return self


class RealRange(_Section):
    """Real numbers from `low` to `high`, drawn on a logarithmic scale if `log`."""

    type: Literal["real"]
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        _check_range(self.low, self.high, log=self.log)
        return self


class Ordered(_Section):
    """Values with an order, such as 8, 16, 32; the model sees their positions."""

    type: Literal["ordinal"]
    values: Annotated[tuple[Scalar, ...], Field(min_length=2)]


class Choice(_Section):
    """Values without an order."""

    type: Literal["categorical"]
    values: Annotated[tuple[Scalar, ...], Field(min_length=2)]


Dimension = IntegerRange | RealRange | Ordered | Choice


def _check_range(low: float, high: float, *, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"low ({low}) and high ({high}) must be finite")
    if not low < high:
        raise ValueError(f"low ({low}) must be below high ({high}); to fix a hyperparameter write its value alone")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range must start above 0, not at {low}")


def _kind(entry: object) -> str | None:
    """Tell a space's entries apart before parsing, so that an error names only the kind that was meant."""
    if isinstance(entry, dict):
        kind = entry.get("type")
        return kind if isinstance(kind, str) else None
    if isinstance(entry, IntegerRange | RealRange | Ordered | Choice):
        return entry.type
    return "fixed" if isinstance(entry, bool | int | float | str) else None


SpaceEntry = Annotated[
    Annotated[IntegerRange, Tag("integer")]
    | Annotated[RealRange, Tag("real")]
    | Annotated[Ordered, Tag("ordinal")]
    | Annotated[Choice, Tag("categorical")]
    | Annotated[Scalar, Tag("fixed")],
    Discriminator(
        _kind,
        custom_error_type="space_entry",
        custom_error_message=(
            "expected one fixed value, or a mapping with type: integer, real, ordinal or categorical"
        ),
    ),
]


DEFAULT_SPACE: dict[str, Dimension] = {
    "depth": IntegerRange(type="integer", low=2, high=6),
    "channels": Ordered(type="ordinal", values=(8, 16, 32, 64, 128)),
    "channel_multiplier": RealRange(type="real", low=0.5, high=3.0),
    "convolution": Choice(type="categorical", values=("2d", "3d")),
    "convolutions_per_layer": IntegerRange(type="integer", low=0, high=3),
    "normalisation": Choice(type="categorical", values=("none", "zscore", "percentile_zscore", "minmax")),
    "resampling": Choice(type="categorical", values=("none", "mean", "median")),
    "loss": Choice(
        type="categorical",
        values=("dice", "generalised_dice", "dice_ce", "dice_hausdorff", "dice_topk", "dice_focal"),
    ),
    "first_stride": Ordered(type="ordinal", values=(1, 2)),
    "flips": Choice(type="categorical", values=("none", "left_right", "all")),
}
"""The source work's eight hyperparameters, the first level's stride, and which axes are flipped."""


def _default_space() -> dict[str, Dimension | Scalar]:
    return {**DEFAULT_SPACE}


class SplitSpec(_Section):
    """How the cases are divided; the division is written once into the study."""

    test: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the cases that only the last step sees; 0: none."""
    folds: Annotated[int, Field(ge=2, le=20)] = 4
    """Parts of the other cases; each is held out once."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the division; the same seed divides the same cases alike."""
    file: Place | None = None
    """File or s3:// location of JSON or YAML with `test: [ids]`, `folds: [[ids], ...]`; replaces the three above."""


class SearchSpec(_Section):
    """What is searched and how."""

    sampler: SamplerName = SamplerName.BOHB
    """The method that proposes configurations and decides which of them go on."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of every proposal and every training."""
    objective: Literal["dice", "loss"] = "dice"
    """Minimise 1 - mean foreground Dice, or the validation loss."""
    promotion: Literal["continue", "restart"] = "continue"
    """A promoted trial continues its training, or starts over as in the paper."""
    random_fraction: Annotated[float, Field(ge=0, le=1)] = 1 / 3
    """Share of BOHB's proposals that are drawn at random although there is a model."""
    grid_points: Annotated[int, Field(ge=2)] = 3
    """Values per range that the grid sampler takes."""
    space: dict[str, SpaceEntry] = Field(default_factory=_default_space)
    """Hyperparameter to range, choice or one fixed value; what is not named keeps the standard's value."""
    standard: dict[str, Scalar] = Field(default_factory=dict)
    """The configuration that is tried first, where it differs from the package's standard."""

    @model_validator(mode="after")
    def _compares_like_with_like(self) -> Self:
        varies = isinstance(self.space.get("loss"), Choice | Ordered)
        if self.objective == "loss" and varies:
            raise ValueError(
                "search.objective is loss, and search.space.loss varies: values of different losses do not compare;"
                " fix search.space.loss, or let the objective be dice"
            )
        return self


class BudgetSpec(_Section):
    """How much may be spent; the first limit that is reached ends the search."""

    iterations: Annotated[int, Field(ge=1)] | None = None
    """Brackets of successive halving (for random and grid search: configurations)."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Epochs of training in the search, over all runs."""
    time: Duration | None = None
    """Wall-clock time, refit and ensemble included: seconds, or a text such as 45s, 20m, 1h30m or 2d."""
    min_epochs: Annotated[int, Field(ge=1)] = 5
    """The lowest rung is at least this long."""
    max_epochs: Annotated[int, Field(ge=1)] = 200
    """The highest rung."""
    eta: Annotated[int, Field(ge=2)] = 3
    """Factor between rungs; one of so many trials is promoted."""
    refit_share: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Share of `time` that is kept for the refit, the ensemble and the test."""
    max_seconds_per_epoch: Annotated[float, Field(gt=0)] | None = None
    """Cap: a run whose first steps predict more than this ends as FAILED, too_slow, as does one that would take much
    longer than the search has left of `time`; None: the latter alone."""

    @model_validator(mode="after")
    def _has_a_limit_and_a_ladder(self) -> Self:
        if self.iterations is None and self.epochs is None and self.time is None:
            raise ValueError("state at least one of iterations, epochs and time")
        if self.min_epochs > self.max_epochs:
            raise ValueError(f"min_epochs ({self.min_epochs}) is above max_epochs ({self.max_epochs})")
        return self


class ExecutionSpec(_Section):
    """Where and how many at once."""

    max_parallel_runs: Annotated[int, Field(ge=1)] = 1
    """Trainings at once, each on its own GPU or its share of the cores."""
    max_retries: Annotated[int, Field(ge=0)] = 3
    """How often a run that the infrastructure lost is queued again; one that waited for room on a cluster is while its
    search has time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of each run; None: cores divided by max_parallel_runs, on a cluster the chart's trial.threads."""
    memory_gib: Annotated[float, Field(gt=0, le=2**20)] | None = None
    """Memory that one run may use (of the GPU, else of the machine's share); None: measured, on a cluster the chart's
    trial.gpu.memoryGiB (without GPUs the limit in trial.resources)."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the arithmetic in training and prediction; auto: the fastest that the device has in hardware."""
    compile: bool = False
    """Compile the network with torch.compile, which takes its time in every run."""


PatchSide = Annotated[int, Field(ge=1, le=4096)]


class TrainingSpec(_Section):
    """What the search does not vary."""

    validation_every_epochs: Annotated[int, Field(ge=1)] = 5
    """A run validates, and commits its checkpoint, this often and at its end."""
    validation_cases: Annotated[int, Field(ge=1)] | None = 48
    """At most so many of a fold's cases are scored in a validation, always the same; None: all."""
    max_patch_voxels: Annotated[int, Field(ge=512)] = 128**3
    """Patches follow the data's shape up to this many voxels, but have the least sides that the depth needs."""
    patch_voxels: tuple[PatchSide, PatchSide, PatchSide] | None = None
    """One patch for all configurations, rounded up to what the depth needs; None: from the data."""


class RefitSpec(_Section):
    """What is trained to the end once the search is over."""

    configurations: Annotated[int, Field(ge=1, le=3)] | None = None
    """How many of the best configurations; None: 1, or 2 under a time budget where the second is close, or where the
    search took so few steps that the standard configuration is kept beside the best."""
    tolerance: Annotated[float, Field(ge=0)] = 0.01
    """A further configuration is refitted only if its loss in the search is within this of the best one's."""
    members: Annotated[int, Field(ge=1)] | None = None
    """Networks in all, at most one for each fold of each configuration; None: so many, or what the time allows. Under a
    time budget fewer, where each would be trained less than the search trained the best."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Epochs of each; None: budget.max_epochs, or what the time allows."""
    min_epochs_factor: Annotated[int, Field(ge=1)] = 12
    """Under a time budget a member is worth training for at least this many times budget.max_epochs."""


class StudySpec(_Section):
    """One study: its dataset, its search and its budget."""

    version: Literal[1] = 1
    """Of this format."""
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
    """Lower-case letters, digits and hyphens, at most 40: it names folders, Jobs and labels."""
    dataset: Place
    """Folder in MSD or nnU-Net layout, or its place on S3: s3://BUCKET/PREFIX."""
    store: Place = "./studies"
    """Folder or s3://BUCKET/PREFIX that holds the study's own; ignored on a cluster: there s3://BUCKET/studies does."""
    split: SplitSpec = SplitSpec()
    """How the cases are divided."""
    search: SearchSpec = SearchSpec()
    """What is searched and how."""
    budget: BudgetSpec
    """How much may be spent."""
    training: TrainingSpec = TrainingSpec()
    """What the search does not vary."""
    execution: ExecutionSpec = ExecutionSpec()
    """Where and how many at once."""
    refit: RefitSpec = RefitSpec()
    """What is trained to the end."""

    @model_validator(mode="after")
    def _affords_a_run(self) -> Self:
        budget, factor = self.budget, 1
        if self.search.sampler not in (SamplerName.RANDOM, SamplerName.GRID):
            while budget.min_epochs * factor * budget.eta <= budget.max_epochs:
                factor *= budget.eta
        shortest = (2 * budget.max_epochs + factor) // (2 * factor)  # as domain.bracket.rung_budgets has it
        if budget.epochs is not None and budget.epochs < shortest:
            raise ValueError(
                f"budget.epochs ({budget.epochs}) does not suffice for one run, which takes {shortest} epochs"
                " or more; raise it, or lower budget.min_epochs or budget.max_epochs"
            )
        return self


def load_spec(path: str | Path, overrides: tuple[str, ...] = ()) -> StudySpec:
    """Read a study's spec from a YAML file.

    Args:
        path: The YAML file.
        overrides: `section.field=value` each, the value in YAML; they replace what the file says.

    Raises:
        SpecError: If the file cannot be read, is no YAML mapping, or breaks a rule; names each broken field.
    """
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise SpecError(f"{path}: expected a mapping of settings, found {type(document).__name__}")
    for override in overrides:
        _override(document, override)
    return parse_spec(document, where=str(path))


def parse_spec(document: object, *, where: str = "spec") -> StudySpec:
    """Return the spec of a parsed document.

    Raises:
        SpecError: Naming every field that breaks a rule, what was found and what is allowed.
    """
    try:
        return StudySpec.model_validate(document)
    except ValidationError as error:
        raise SpecError(f"{where}: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """Return one line per broken field: its path, the rule, and what was found."""
    lines = []
    for item in error.errors():
        path, kind = ".".join(str(part) for part in item["loc"]), item["type"]
        rule = _RULES.get(kind, item["msg"].removeprefix("Value error, "))
        found = "" if kind == "missing" or not path else f" (found {item['input']!r:.80})"
        lines.append(f"{path}: {rule}{found}".removeprefix(": "))
    return "; ".join(lines)


_RULES = {
    "extra_forbidden": "there is no such setting",
    "missing": "is missing",
    "string_type": "must be a text; write a number in quotes",
    "string_pattern_mismatch": "must be lower-case letters, digits and hyphens, 40 at most",
}
"""Kinds of pydantic's errors in words of a spec."""


def _override(document: dict[str, object], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise SpecError(f"--set {override}: write it as section.field=value, for example search.seed=8")
    value = parse_yaml(text, where=f"--set {override}: the value")
    node = document
    *parents, last = path.split(".")
    for parent in parents:
        child = node.get(parent)
        if child is None:  # not there, or a section that the file leaves empty
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise SpecError(f"--set {override}: {parent} is a single value, it has no fields")
        node = child
    node[last] = value
