"""The spec that `automonai init` proposes: fitted to dataset, machine and budget, every choice with its reason."""

from __future__ import annotations

import re
import textwrap
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from automonai.documents import dump_yaml
from automonai.domain.configuration import Configuration
from automonai.domain.fingerprint import Fingerprint
from automonai.domain.ladder import Ladder, fewest_epochs, fit_ladder, results_on_one_rung
from automonai.domain.plan import Plan, make_plan
from automonai.domain.splitting import make_split, test_cases
from automonai.errors import SpecError
from automonai.execution.machine import Gpu, Machine
from automonai.spec import (
    DEFAULT_SPACE,
    BudgetSpec,
    ExecutionSpec,
    IntegerRange,
    Limit,
    Ordered,
    Scalar,
    SpaceEntry,
    SplitSpec,
    StudySpec,
    TrainingSpec,
    parse_limit,
)

if TYPE_CHECKING:
    from automonai.domain.dataset import Dataset
    from automonai.imaging.checking import CheckedDataset

REFIT_SHARE = BudgetSpec.model_fields["refit_share"].default
SMALL_VOXELS = 2**18
"""Up to this median size the first level stays at full resolution: it wins by 0.009 Dice on 35x50x35 voxels and loses
by 0.09 on 240x240x155, where the time goes into fewer, larger steps (measured on two cores)."""
CPU_PATCH_VOXELS, LEAST_PATCH_VOXELS = 64**3, 32**3
FEWEST_CHANNELS = 8
COST_CAP = 4.0
"""A configuration may cost this many times what the standard one costs per epoch."""
LOOP_OVERHEAD = 1.15
"""Reading and augmentation beside the bare training step."""
VALIDATION_SHARE = 0.25
"""Validations should take no more than this share of the steps' time between them."""
IMPORTANCE = (
    "channel_multiplier",
    "loss",
    "channels",
    "first_stride",
    "flips",
    "convolution",
    "depth",
    "normalisation",
    "resampling",
    "convolutions_per_layer",
)
"""What to search first when there is little time: what mattered in the source work's analysis of variance and in our
own measurements of strides and flips, then the rest."""
FEWEST_SEARCHED = 3
MODEL_SHARE = 0.7
"""Share of a rung's results after which the model should exist; it needs two for each hyperparameter, and two more."""
SMALLEST_FEATURE_VOXELS = 4
"""nnU-Net's limit: no level's features are smaller than this (Isensee et al. 2021, supplementary note 4)."""


def initial_spec(
    checked: CheckedDataset, *, path: str | Path, machine: Machine, budget: str | None, name: str | None
) -> str:
    """Return the YAML of a spec, with comments.

    Raises:
        SpecError: If the budget is none of `1h`, `30 epochs` and `3 iterations`, the name is not allowed, or the cases
            are too few to divide.
    """
    limit = Limit(iterations=5) if budget is None else parse_limit(budget)
    facts = Fingerprint(cases=tuple(checked.facts[case.id] for case in checked.dataset.cases))
    machine = _with_gpu_of_torch(machine)
    is_on_gpu = bool(machine.gpus)
    median = facts.median_shape_voxels()
    is_small = prod(median) <= SMALL_VOXELS
    standard = _standard(is_small=is_small, is_on_gpu=is_on_gpu, fingerprint=facts)
    training = TrainingSpec(max_patch_voxels=128**3 if is_on_gpu else CPU_PATCH_VOXELS)
    execution = _execution(machine)
    memory_bytes = machine.memory_per_run(execution.max_parallel_runs, on_gpu=is_on_gpu)
    plan, training = _fitting(standard, training, dataset=checked.dataset, fingerprint=facts, memory_bytes=memory_bytes)
    standard = plan.configuration
    split = _split(len(checked.dataset.cases))
    make_split((case.id for case in checked.dataset.cases), test=split.test, folds=split.folds, seed=split.seed)
    steps = _steps_per_epoch(checked, split, plan.batch_size)
    step_seconds = _seconds_per_step(plan, execution, machine)
    every, validation_seconds = _validations(facts, plan, split, training, steps=steps, step_seconds=step_seconds)
    epoch_seconds = steps * step_seconds + validation_seconds / every
    training = training.model_copy(update={"validation_every_epochs": every})
    ladder = _ladder(limit, steps, epoch_seconds, execution)
    spec = StudySpec(
        name=name or _slug(checked.dataset.name),
        dataset=str(path),
        split=split,
        search={"space": _space(facts, standard, searched=_searched(ladder)), "standard": _differences(standard)},
        budget=_budget(limit, ladder, epoch_seconds),
        training=training,
        execution=execution,
    )
    return _render(spec, _remarks(facts, machine, epoch_seconds, ladder, limit))


def _split(cases: int) -> SplitSpec:
    """Return the usual division, with fewer folds where there are too few cases for it."""
    usual = SplitSpec()
    developed = cases - test_cases(cases, usual.test)
    return usual.model_copy(update={"folds": max(2, min(usual.folds, developed))})


def _with_gpu_of_torch(machine: Machine) -> Machine:
    """Return the machine with the GPU that torch sees where nvidia-smi tells of none.

    So it is with a MIG device, and in a container that lacks nvidia-smi.
    """
    import torch

    if machine.gpus or not torch.cuda.is_available():
        return machine
    seen = torch.cuda.get_device_properties(0)
    return machine.model_copy(update={"gpus": (Gpu(id="0", name=seen.name, memory_bytes=seen.total_memory),)})


def _fitting(
    standard: Configuration,
    training: TrainingSpec,
    *,
    dataset: Dataset,
    fingerprint: Fingerprint,
    memory_bytes: int,
) -> tuple[Plan, TrainingSpec]:
    """Return the plan of what is tried first, with smaller patches, then fewer channels, until it fits the memory.

    Raises:
        SpecError: If nothing does.
    """
    while True:
        plan = make_plan(standard, dataset=dataset, fingerprint=fingerprint, training=training)
        needed = plan.step_bytes()
        if needed <= memory_bytes:
            return plan, training
        if training.max_patch_voxels > CPU_PATCH_VOXELS:
            training = training.model_copy(update={"max_patch_voxels": training.max_patch_voxels // 2})
        elif standard.channels > FEWEST_CHANNELS:
            standard = standard.model_copy(update={"channels": standard.channels // 2})
        elif training.max_patch_voxels > LEAST_PATCH_VOXELS:
            training = training.model_copy(update={"max_patch_voxels": training.max_patch_voxels // 2})
        else:
            raise SpecError(
                f"a training step of the smallest network needs {needed / 2**30:.1f} GiB for {len(plan.labels)}"
                f" classes, and a run may have {memory_bytes / 2**30:.1f} GiB here; use a machine with more memory"
            )


def _standard(*, is_small: bool, is_on_gpu: bool, fingerprint: Fingerprint) -> Configuration:
    """Return what is tried first."""
    if is_on_gpu:
        wanted = Configuration(depth=5, channels=32, first_stride=1)
    elif is_small:
        wanted = Configuration(depth=3, channels=16, first_stride=1)
    else:
        wanted = Configuration(depth=4, channels=16, first_stride=2)
    deepest = _deepest(fingerprint)
    oversampling = 0.0 if is_small else 0.33
    return wanted.model_copy(
        update={"depth": max(2, min(wanted.depth, deepest)), "foreground_oversampling": oversampling}
    )


def _deepest(fingerprint: Fingerprint) -> int:
    """Return the largest depth that leaves features of `SMALLEST_FEATURE_VOXELS` along the shortest axis."""
    shortest, depth = min(fingerprint.median_shape_voxels()), 1
    while depth < 6 and shortest // 2**depth >= SMALLEST_FEATURE_VOXELS:
        depth += 1
    return max(3, depth)


def _searched(ladder: Ladder) -> int:
    """Return how many hyperparameters the ladder's results can model."""
    return max(FEWEST_SEARCHED, int(MODEL_SHARE * results_on_one_rung(ladder) / 2) - 1)


def _space(fingerprint: Fingerprint, standard: Configuration, *, searched: int) -> dict[str, SpaceEntry]:
    """Return the default space without what cannot matter, be paid for or be modelled here."""
    space: dict[str, SpaceEntry] = dict(DEFAULT_SPACE)
    space["depth"] = IntegerRange(type="integer", low=2, high=max(3, _deepest(fingerprint)))
    affordable = tuple(n for n in (8, 16, 32, 64, 128) if n**2 <= COST_CAP * standard.channels**2)
    space["channels"] = Ordered(type="ordinal", values=affordable)
    if standard.foreground_oversampling:
        space["foreground_oversampling"] = standard.foreground_oversampling
    useful = [name for name in IMPORTANCE if not (name == "resampling" and fingerprint.has_uniform_spacing)]
    values = standard.model_dump(mode="json")
    return space | {name: values[name] for name in IMPORTANCE if name not in useful[:searched]}


def _differences(standard: Configuration) -> dict[str, Scalar]:
    """Return what makes a standard configuration differ from the package's."""
    mine, default = standard.model_dump(mode="json"), Configuration().model_dump(mode="json")
    return {key: value for key, value in mine.items() if value != default[key]}


def _execution(machine: Machine) -> ExecutionSpec:
    """Return one run per GPU; without one, several runs share the cores.

    Two runs of one thread train a fifth more patches a second than one of two threads (measured on two cores).
    """
    if machine.gpus:
        return ExecutionSpec(max_parallel_runs=len(machine.gpus))
    by_memory = max(1, machine.memory_bytes // (4 * 2**30))
    return ExecutionSpec(max_parallel_runs=max(1, min(machine.cores, 8, by_memory)))


def _steps_per_epoch(checked: CheckedDataset, split: SplitSpec, batch_size: int) -> float:
    """Return the optimiser steps of one epoch: a patch from each case that a fold trains on."""
    return max(1.0, len(checked.dataset.cases) * (1 - split.test) * (1 - 1 / split.folds) / batch_size)


def _seconds_per_step(plan: Plan, execution: ExecutionSpec, machine: Machine) -> float:
    import torch

    from automonai.learning.timing import seconds_per_step

    threads = machine.threads_per_run(execution.max_parallel_runs)
    try:
        return LOOP_OVERHEAD * seconds_per_step(plan, execution=execution, threads=threads)
    except torch.OutOfMemoryError as error:
        needed = f"{plan.step_bytes() / 2**30:.1f} GiB"
        raise SpecError(f"the GPU has less memory free than a training step needs ({needed}); is it in use?") from error


def _validations(
    fingerprint: Fingerprint,
    plan: Plan,
    split: SplitSpec,
    training: TrainingSpec,
    *,
    steps: float,
    step_seconds: float,
) -> tuple[int, float]:
    """Return every how many epochs to validate, and what one validation takes in seconds.

    A few large volumes are an epoch of few steps, beside which their validation takes long. It need not be rarer than
    the shortest run, which is validated at its end whatever the spec says.
    """
    from automonai.learning.validation import seconds_per_validation, window_count

    share = (1 - split.test) / split.folds
    if training.validation_cases is not None:
        share = min(share, training.validation_cases / len(fingerprint.cases))
    windows = round(share * sum(window_count(case.box_shape, plan) for case in fingerprint.cases))
    seconds = seconds_per_validation(max(1, windows), seconds_per_patch=step_seconds / plan.batch_size)
    wanted = ceil(seconds / (VALIDATION_SHARE * steps * step_seconds))
    return max(training.validation_every_epochs, min(wanted, fewest_epochs(steps))), seconds


def _ladder(limit: Limit, steps: float, epoch_seconds: float, execution: ExecutionSpec) -> Ladder:
    if limit.time is not None:
        seconds = limit.time * (1 - REFIT_SHARE) * execution.max_parallel_runs
        return fit_ladder(seconds / epoch_seconds, steps_per_epoch=steps)
    if limit.epochs is not None:
        return fit_ladder(limit.epochs, steps_per_epoch=steps)
    return Ladder(min_epochs=5, max_epochs=200, eta=3, iterations=limit.iterations or 5)


def _budget(limit: Limit, ladder: Ladder, epoch_seconds: float) -> BudgetSpec:
    return BudgetSpec(
        iterations=limit.iterations,
        epochs=limit.epochs,
        time=limit.time,
        min_epochs=ladder.min_epochs,
        max_epochs=ladder.max_epochs,
        eta=ladder.eta,
        max_seconds_per_epoch=float(f"{COST_CAP * epoch_seconds:.3g}"),
    )


def _slug(name: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    return slug or "study"


def _remarks(
    fingerprint: Fingerprint, machine: Machine, epoch_seconds: float, ladder: Ladder, limit: Limit
) -> dict[str, str]:
    x, y, z = fingerprint.median_shape_voxels()
    fits = f";\nat the standard configuration's cost some {ladder.iterations} iterations fit it"
    device = machine.gpus[0].name if machine.gpus else f"{machine.cores} CPU cores"
    return {
        "": f"{len(fingerprint.cases)} cases, median {x} x {y} x {z} voxels without background, on {device}.\n"
        f"The standard configuration takes some {epoch_seconds:.1f} s per epoch in each parallel run"
        ", validations included\n(one epoch is one patch from each training case).",
        "dataset": "relative to where automonai is started, as is the store",
        "split": "test: share of the cases that only the last step sees; 0 for none",
        "search": _search_remark(ladder),
        "budget": "whichever of time, epochs, iterations is stated and reached first ends the search;\n"
        f"refit_share of the time is kept for training the best to the end{'' if limit.iterations else fits}",
        "training": "patches follow the volumes' shape up to max_patch_voxels",
        "execution": "threads and memory of each run are its share of the machine unless stated",
        "refit": "what is trained to the end; null: decided by the budget",
    }


def _search_remark(ladder: Ladder) -> str:
    searched, results = min(_searched(ladder), len(IMPORTANCE)), results_on_one_rung(ladder)
    text = "a hyperparameter is a range, a choice, or one fixed value"
    if searched == len(IMPORTANCE):
        return text
    return (
        f"{text};\nthis budget gives some {results} results on one rung, which model {searched} hyperparameters:"
        " the others are fixed here;\nto search one as well, write its range from docs/reference/spec.md in its place"
    )


def _render(spec: StudySpec, remarks: dict[str, str]) -> str:
    """Return the spec as YAML: a comment above each section, and each field's own meaning beside it."""
    document = spec.model_dump(mode="json")
    document["budget"]["time"] = _duration_text(spec.budget.time)
    lines = [_comment("A study's spec, written by 'automonai init'.\n" + remarks[""])]
    for key, value in document.items():
        if remarks.get(key):
            lines.append("\n" + _comment(remarks[key]))
        if isinstance(value, dict):
            lines.append(f"{key}:\n")
            section = getattr(spec, key)
            lines.extend(_field(name, item, type(section)) for name, item in value.items())
        else:
            lines.append(f"{key}: {_inline(value)}\n")
    return "".join(lines)


def _field(name: str, value: object, section: type[BaseModel]) -> str:
    """Return one field of a section: its meaning as a comment, then its value."""
    meaning = " ".join((section.model_fields[name].description or "").split()).replace("None:", "null:")
    comment = "".join(f"  # {line}\n" for line in textwrap.wrap(meaning, width=110))
    if name in ("space", "standard") and isinstance(value, dict):
        entries = "".join(f"    {key}: {_inline(_without_defaults(item))}\n" for key, item in value.items())
        return f"{comment}  {name}:\n{entries}" if entries else f"{comment}  {name}: {{}}\n"
    return f"{comment}  {name}: {_inline(value)}\n"


def _without_defaults(item: object) -> object:
    """Return a dimension without `log: false`, which is what its absence means."""
    if isinstance(item, dict):
        return {key: value for key, value in item.items() if not (key == "log" and value is False)}
    return item


def _inline(value: object) -> str:
    """Return a value as one line of YAML."""
    text = dump_yaml(value, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()


def _duration_text(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if n) or "1s"


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.split("\n"))
