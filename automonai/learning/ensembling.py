"""Which trained networks go into the ensemble, judged on cases that none of the judged networks saw.

Axes: probabilities_OKXYZ (O weight vectors, K classes); tables are (cases, weight vectors, foreground classes).
"""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd, prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from automonai.domain.request import (
    CaseScores,
    EnsembleMember,
    EnsembleRequest,
    EnsembleResult,
    Member,
    StudyData,
)
from automonai.errors import StopRequestedError
from automonai.imaging.content import refuse_changed_case
from automonai.imaging.reading import Volume, read_label
from automonai.learning.inference import scratch_array
from automonai.learning.memory import peak_memory_bytes, reset_peak_memory
from automonai.learning.overlays import render_overlay
from automonai.learning.precision import Precision, limit_threads
from automonai.learning.predicting import (
    LoadedMember,
    class_indices,
    keep_largest_components,
    load_members,
    predict_label,
    probability_slabs,
    read_volume,
)
from automonai.learning.scoring import case_scores
from automonai.learning.validation import class_dice
from automonai.storage.store import Store

logger = logging.getLogger(__name__)

MAX_CASES_PER_FOLD = 24
"""Out-of-fold cases beyond this narrow the choice's error less than they cost."""

MAX_CONFIGURATIONS = 3
MAX_STEPS = 4
"""Length of the greedy selection, so that a weight is a multiple of 1/4 or 1/3."""

COMPONENT_GAIN = 1e-4
"""A class keeps only its largest component if that raises its out-of-fold Dice by more."""

WORST_CASES = 4

_COUNTED_VOXELS = 2**20

Counts = tuple[int, ...]
"""How often each configuration was selected; its weight is its share."""


@dataclass(frozen=True)
class Candidates:
    """The members by configuration, best configuration first, and the folds that all of these have a member of."""

    trials: tuple[int, ...]
    members: dict[tuple[int, int], Member]
    """By trial and fold."""
    folds: tuple[int, ...]
    left_out: tuple[int, ...]
    """Trials without a fold in common with the better ones."""

    @classmethod
    def of(cls, members: Sequence[Member]) -> Candidates:
        """Sort the members; configurations without a fold in common with the better ones are left out."""
        by_key = {(member.trial, member.fold): member for member in members}
        trials: list[int] = []
        left_out: list[int] = []
        folds: set[int] = set()
        for trial in dict.fromkeys(member.trial for member in members):
            own = {fold for number, fold in by_key if number == trial}
            common = folds & own if trials else own
            if len(trials) == MAX_CONFIGURATIONS or not common:
                logger.warning("configuration left out of the ensemble: trial=%d", trial)
                left_out.append(trial)
                continue
            trials.append(trial)
            folds = common
        return cls(tuple(trials), by_key, tuple(sorted(folds)), tuple(left_out))

    def of_trial(self, trial: int) -> tuple[Member, ...]:
        """Return the configuration's members, by fold."""
        return tuple(self.members[key] for key in sorted(self.members) if key[0] == trial)


@dataclass(frozen=True, eq=False)
class OutOfFoldDice:
    """Dice of every weight vector; NaN where neither prediction nor label has the class."""

    counts: tuple[Counts, ...]
    plain: NDArray[np.float64]
    """(cases, weight vectors, foreground classes)."""
    largest: NDArray[np.float64]
    """The same after keeping each class's largest component only."""
    planned: int
    """Cases that there would have been without a deadline."""


@dataclass(frozen=True)
class Choice:
    """Weight vector and classes of which only the largest component stays."""

    counts: Counts
    largest_component: tuple[int, ...]
    """Class indices."""
    dice: tuple[float, ...]
    """Of each foreground class, NaN if no case has it."""
    best_single_dice: float | None


@dataclass(frozen=True)
class _Work:
    """Where everything is and when to end."""

    data: StudyData
    store: Store
    cache_folder: Path
    precision: Precision
    stop: Callable[[], bool]
    clock: Callable[[], float]

    def check_stop(self) -> None:
        if self.stop():
            raise StopRequestedError("the choice of the ensemble was asked to stop")

    def load(self, members: Sequence[Member | EnsembleMember]) -> list[LoadedMember]:
        return load_members(
            members, store=self.store, folder=self.cache_folder / "members", device=self.precision.device
        )

    def read(self, case_id: str) -> tuple[Volume, np.ndarray]:
        dataset = self.data.dataset
        case, expected = dataset.case(case_id), self.data.contents.get(case_id)
        refuse_changed_case(dataset, case, expected=expected, cache_folder=self.cache_folder)
        volume = read_volume(dataset.image_paths(case), case_id, dataset.channels)
        return volume, read_label(dataset.label_path(case), sorted(dataset.labels), image=volume)


@dataclass
class _Pace:
    """What the cases so far took: a part by each network, and the rest, as for reading, once a case."""

    clock: Callable[[], float]
    started: float
    networks: int
    """Of each case."""
    cases: int = 0
    predicting: float = 0.0
    """Seconds of all networks."""

    def timed(self, slabs: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
        """Pass on what the networks of a case predict, and count the case and the time that they take for it."""
        self.cases += 1
        while True:
            began = self.clock()
            slab = next(slabs, None)
            self.predicting += self.clock() - began
            if slab is None:
                return
            yield slab

    def end(self, counts: Sequence[int]) -> float:
        """Return when more cases are done, each predicted by so many networks."""
        now = self.clock()
        by_network = self.predicting / self.cases / self.networks
        once = (now - self.started - self.predicting) / self.cases
        return now + sum(once + by_network * count for count in counts)


def choose_ensemble(
    request: EnsembleRequest,
    data: StudyData,
    *,
    store: Store,
    cache_folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    stop: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> EnsembleResult:
    """Choose the ensemble by greedy selection with replacement (Caruana et al. 2004); score it once on the test cases.

    A configuration is judged on each fold's held-out cases by its member of that fold; its weight is then shared
    equally among all of its members. All weight vectors are scored in one pass over the cases.

    Args:
        request: The candidates, the best configuration's first.
        data: Of the study.
        store: Of the study; gets the overlays of the worst test cases.
        cache_folder: For the downloaded checkpoints, and of notes on the dataset's files.
        device: Where the networks run.
        dtype: Of the convolutions.
        stop: Whether to leave; asked before every pass of windows through a network.
        clock: Seconds.

    Raises:
        StopRequestedError: If `stop` says so; nothing but overlays was written.
        DatasetError: If a case cannot be read any more.
    """
    started = clock()
    limit_threads(is_alone=True)
    reset_peak_memory()
    work = _Work(data, store, cache_folder, Precision(device, dtype), stop, clock)
    candidates = Candidates.of(request.candidates)
    left = request.seconds_left(time.time())
    deadline = None if left is None else started + left
    table = out_of_fold_dice(candidates, work, deadline=deadline)
    choice = choose(table)
    members = _weighted_members(candidates, choice.counts)
    values = sorted(data.dataset.labels)
    result = EnsembleResult(
        members=members,
        largest_component=tuple(values[index] for index in choice.largest_component),
        validation_dice={
            value: dice for value, dice in zip(values[1:], choice.dice, strict=True) if not np.isnan(dice)
        },
        single_validation_dice=choice.best_single_dice,
        scored_cases=len(table.plain),
        planned_cases=table.planned,
        left_out=candidates.left_out,
    )
    scores = _test(result, work)
    return result.model_copy(
        update={"test": scores, "seconds": clock() - started, "peak_memory_bytes": peak_memory_bytes()}
    )


def out_of_fold_dice(candidates: Candidates, work: _Work, *, deadline: float | None = None) -> OutOfFoldDice:
    """Score every weight vector on every fold's held-out cases.

    Under a deadline no case is begun that would leave too little time for the test cases; one is scored in any event.
    """
    vectors = weight_vectors(len(candidates.trials))
    mixtures = np.array([np.array(counts) / sum(counts) for counts in vectors])
    plain: list[NDArray[np.float64]] = []
    largest: list[NDArray[np.float64]] = []
    planned = _out_of_fold_cases(candidates, work.data)
    members = {
        fold: work.load([candidates.members[trial, fold] for trial in candidates.trials]) for fold in candidates.folds
    }
    pace = _Pace(work.clock, work.clock(), len(candidates.trials))
    for number, (fold, case_id) in enumerate(planned):
        work.check_stop()
        if number and _must_end(deadline, pace, candidates, work):
            logger.warning("out-of-fold scoring ended early: cases=%d planned=%d", number, len(planned))
            break
        rows = _case_dice(members[fold], case_id, mixtures, work, pace)
        plain.append(rows[0])
        largest.append(rows[1])
    return OutOfFoldDice(vectors, np.stack(plain), np.stack(largest), len(planned))


def weight_vectors(configurations: int) -> tuple[Counts, ...]:
    """Return every selection of at most four configurations with replacement, each ratio once, single ones first."""
    found: dict[Counts, None] = {}
    for size in range(1, MAX_STEPS + 1):
        for chosen in itertools.combinations_with_replacement(range(configurations), size):
            found[_reduced([chosen.count(index) for index in range(configurations)])] = None
    return tuple(found)


def choose(table: OutOfFoldDice) -> Choice:
    """Select configurations greedily, then the classes that gain by keeping only their largest component."""
    scores = {counts: mean_dice(table.plain[:, row]) for row, counts in enumerate(table.counts)}
    counts = greedy_selection(scores)
    row = table.counts.index(counts)
    plain, largest = _class_dice(table.plain[:, row]), _class_dice(table.largest[:, row])
    helped = largest - plain > COMPONENT_GAIN
    singles = [score for counts, score in scores.items() if sum(counts) == 1]
    return Choice(
        counts=counts,
        largest_component=tuple(int(index) + 1 for index in np.flatnonzero(helped)),
        dice=tuple(np.where(helped, largest, plain).tolist()),
        best_single_dice=max(singles),
    )


def greedy_selection(scores: dict[Counts, float]) -> Counts:
    """Return the best selection on the path that adds, four times at most, what helps most, from the best single on.

    Args:
        scores: Of every reduced weight vector; among equals the one named first wins.
    """
    singles = [counts for counts in scores if sum(counts) == 1]
    best = max(singles, key=lambda counts: scores[counts])
    path = [list(best)]
    while sum(path[-1]) < MAX_STEPS:
        steps = [[count + (index == added) for index, count in enumerate(path[-1])] for added in range(len(path[-1]))]
        path.append(max(steps, key=lambda step: scores[_reduced(step)]))
    selections = [_reduced(step) for step in path]
    return max(selections, key=lambda counts: scores[counts])


def mean_dice(dice: NDArray[np.float64]) -> float:
    """Return the mean over the classes of each one's mean over the cases that have it; 0 if none does."""
    per_class = _class_dice(dice)
    known = per_class[~np.isnan(per_class)]
    return float(known.mean()) if len(known) else 0.0


def _class_dice(dice: NDArray[np.float64]) -> NDArray[np.float64]:
    known = ~np.isnan(dice)
    counted = known.sum(axis=0)
    total = np.where(known, dice, 0).sum(axis=0)
    return np.where(counted > 0, total / np.maximum(counted, 1), np.nan)


def _reduced(counts: Sequence[int]) -> Counts:
    divisor = gcd(*counts)
    return tuple(count // divisor for count in counts)


def _out_of_fold_cases(candidates: Candidates, data: StudyData) -> list[tuple[int, str]]:
    """Return fold and case, evenly spaced over each fold and taking turns, so that an early end is fair to all."""
    columns = []
    for fold in candidates.folds:
        ids = data.split.validation(fold)
        count = min(MAX_CASES_PER_FOLD, len(ids))
        columns.append([(fold, ids[index * len(ids) // count]) for index in range(count)])
    turns = itertools.zip_longest(*columns)
    return [entry for turn in turns for entry in turn if entry is not None]


def _must_end(deadline: float | None, pace: _Pace, candidates: Candidates, work: _Work) -> bool:
    """Whether another case and then the test with all members, at the pace so far, would miss the deadline."""
    if deadline is None:
        return False
    members = sum(len(candidates.of_trial(trial)) for trial in candidates.trials)
    return pace.end([pace.networks] + [members] * len(work.data.split.test)) > deadline


def _case_dice(
    members: Sequence[LoadedMember], case_id: str, mixtures: np.ndarray, work: _Work, pace: _Pace
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Dice (weight vectors, foreground classes), and the same with each class's largest component only."""
    volume, label = work.read(case_id)
    maps = scratch_array((len(mixtures), *label.shape), np.uint8)
    singles = np.eye(len(members))
    slabs = probability_slabs(
        members, volume, case_id=case_id, mixtures=singles, precision=work.precision, check_stop=work.check_stop
    )
    for start, probabilities_OKXYZ in pace.timed(slabs):
        for prediction, weights in zip(maps, mixtures.astype(np.float32), strict=True):
            mixed_KXYZ = np.tensordot(weights, probabilities_OKXYZ, axes=1)
            prediction[start : start + mixed_KXYZ.shape[1]] = mixed_KXYZ.argmax(axis=0)
    classes = range(1, len(work.data.dataset.labels))
    plain, largest = [], []
    for prediction in maps:
        plain.append(_dice_row(prediction, label, classes))
        kept = keep_largest_components(prediction, classes, check_stop=work.check_stop)
        largest.append(_dice_row(kept, label, classes))
    return np.array(plain), np.array(largest)


def _dice_row(prediction: np.ndarray, label: np.ndarray, classes: Sequence[int]) -> list[float]:
    """Return Dice of each class, NaN if neither has it; the memory is that of a slab, whose counts are 64-bit."""
    count = len(classes) + 1
    counts_KK = np.zeros((count, count), np.int64)
    planes = max(1, _COUNTED_VOXELS // prod(label.shape[1:]))
    for start in range(0, len(label), planes):
        slab = slice(start, start + planes)
        pairs = label[slab].astype(np.int64) * count + prediction[slab]
        counts_KK += np.bincount(pairs.ravel(), minlength=count**2).reshape(count, count)
    return [float("nan") if dice is None else dice for dice in class_dice(counts_KK)]


def _weighted_members(candidates: Candidates, counts: Counts) -> tuple[EnsembleMember, ...]:
    chosen = []
    for trial, count in zip(candidates.trials, counts, strict=True):
        members = candidates.of_trial(trial)
        weight = count / sum(counts) / len(members)
        chosen += [
            EnsembleMember(
                run_id=member.run_id,
                trial=member.trial,
                fold=member.fold,
                weight=weight,
                checkpoint=member.checkpoint,
            )
            for member in members
            if count
        ]
    return tuple(chosen)


def _test(ensemble: EnsembleResult, work: _Work) -> tuple[CaseScores, ...]:
    """Score the test cases; pictures of the worst ones go to the store."""
    if not work.data.split.test:
        return ()
    members = work.load(ensemble.members)
    scores: dict[str, CaseScores] = {}
    worst: list[tuple[float, str, bytes]] = []
    for case_id in work.data.split.test:
        work.check_stop()
        scores[case_id], badness, render = _test_case(members, ensemble, case_id, work)
        if len(worst) < WORST_CASES or badness > worst[0][0]:
            heapq.heappush(worst, (badness, case_id, render()))
            if len(worst) > WORST_CASES:
                heapq.heappop(worst)
    for _, case_id, picture in worst:
        key = f"ensemble/overlays/{case_id}.png"
        work.store.put(key, picture)
        scores[case_id] = scores[case_id].model_copy(update={"overlay": key})
    return tuple(scores.values())


def _test_case(
    members: Sequence[LoadedMember], ensemble: EnsembleResult, case_id: str, work: _Work
) -> tuple[CaseScores, float, Callable[[], bytes]]:
    """Return the case's scores, how bad they are, and what draws its overlay."""
    volume, label = work.read(case_id)
    weights = np.array([[member.weight for member in ensemble.members]])
    prediction = predict_label(
        members, volume, case_id=case_id, weights=weights, precision=work.precision, check_stop=work.check_stop
    )
    kept = class_indices(work.data, ensemble.largest_component)
    prediction = keep_largest_components(prediction, kept, check_stop=work.check_stop)
    values = sorted(work.data.dataset.labels)
    found = case_scores(prediction, label, values=_scored_classes(work), spacing_mm=volume.spacing_mm)
    by_value = {values[index]: score for index, score in found.items()}
    scores = CaseScores(
        case=case_id,
        dice={value: score.dice for value, score in by_value.items()},
        hd95_mm={value: score.hd95_mm for value, score in by_value.items()},
        surface_dice={value: score.surface_dice for value, score in by_value.items()},
    )
    known = [score.dice for score in found.values() if score.dice is not None]
    return (
        scores,
        1 - sum(known) / len(known) if known else 0.0,
        lambda: render_overlay(volume.voxels[0], label, prediction, spacing_mm=volume.spacing_mm),
    )


def _scored_classes(work: _Work) -> Iterator[int]:
    """Yield the class indices, heeding a stop before each: the surfaces of a large structure take seconds."""
    for index in range(1, len(work.data.dataset.labels)):
        work.check_stop()
        yield index
