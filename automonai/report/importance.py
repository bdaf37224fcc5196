"""How much each hyperparameter matters: permutation importance of a random forest on held-out trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import GroupKFold

from automonai.domain.seeds import derive_seed
from automonai.domain.study import Study
from automonai.report.summarising import searched_names
from automonai.report.summary import Importance, Share
from automonai.spec import Choice, IntegerRange, Ordered, RealRange, Scalar, SpaceEntry

FEWEST_TRIALS = 12
FOLDS = 5
SHUFFLES = 20
TREES = 60

Matrix = NDArray[np.float64]


class _Predicts(Protocol):
    def predict(self, features: Matrix) -> Matrix: ...


@dataclass(frozen=True)
class _Table:
    """Completed runs of the search, a row each."""

    features: Matrix
    """The last column is the logarithm of the run's budget, so that a hyperparameter may matter early or late."""
    losses: Matrix
    """Differences from the mean of all runs of the same budget: else the length of training would drown the rest."""
    trials: NDArray[np.int64]
    columns: dict[str, list[int]]
    """Hyperparameter to its columns, of those that vary at all."""


def measure_importance(study: Study) -> Importance:
    """Return how much worse held-out results are predicted once one hyperparameter's values are shuffled.

    All budgets count together, each run by its difference from the mean of its budget; the runs of one trial are held
    out together, since they share most of their training. FAILED runs have no result and do not count.
    """
    table = _table(study)
    trials = len(set(table.trials.tolist()))
    missing = _why_missing(table, trials)
    if missing:
        return Importance(trials=trials, results=len(table.losses), explained=None, shares=(), missing=missing)
    seed = derive_seed(study.spec.search.seed, "report", "importance")
    explained, drops = _permutation_drops(table, seed)
    shares = [Share(name=name, mean=float(drop.mean()), std=float(drop.std(ddof=1))) for name, drop in drops.items()]
    return Importance(
        trials=trials,
        results=len(table.losses),
        explained=explained,
        shares=tuple(sorted(shares, key=lambda share: (-share.mean, share.name))),
        missing="",
    )


def _why_missing(table: _Table, trials: int) -> str:
    if trials < FEWEST_TRIALS:
        return f"Too few results: {FEWEST_TRIALS} configurations with a result are needed, there are {trials}."
    if not table.columns:
        return "No hyperparameter varied."
    if math.isclose(float(table.losses.min()), float(table.losses.max())):
        return "All results are equal."
    return ""


def _table(study: Study) -> _Table:
    rows = [
        (record.run, record.result.loss)
        for record in study.search_records()
        if record.result is not None and record.result.loss is not None and math.isfinite(record.result.loss)
    ]
    budgets = np.array([run.budget_epochs for run, _ in rows], dtype=float)
    configurations = [study.trials[run.trial].configuration for run, _ in rows]
    blocks = {
        name: _encoded(study.spec.search.space[name], [getattr(c, name) for c in configurations])
        for name in searched_names(study)
    }
    features, columns = _joined({name: block for name, block in blocks.items() if _varies(block)})
    return _Table(
        features=np.column_stack([*features, np.log(budgets)]),
        losses=_centred(np.array([loss for _, loss in rows], dtype=float), budgets),
        trials=np.array([run.trial for run, _ in rows], dtype=np.int64),
        columns=columns,
    )


def _centred(losses: Matrix, budgets: Matrix) -> Matrix:
    means = {budget: losses[budgets == budget].mean() for budget in set(budgets.tolist())}
    return np.array([loss - means[budget] for loss, budget in zip(losses, budgets.tolist(), strict=True)])


def _varies(block: Matrix) -> bool:
    return bool(len(block) and (block != block[0]).any())


def _joined(blocks: dict[str, Matrix]) -> tuple[list[Matrix], dict[str, list[int]]]:
    """Return the blocks, and which columns each has once they stand side by side."""
    columns: dict[str, list[int]] = {}
    start = 0
    for name, block in blocks.items():
        columns[name] = list(range(start, start + block.shape[1]))
        start += block.shape[1]
    return list(blocks.values()), columns


def _encoded(entry: SpaceEntry, values: Sequence[Scalar]) -> Matrix:
    encode = _encoder(entry)
    return np.array([encode(value) for value in values], dtype=float)


def _encoder(entry: SpaceEntry) -> Callable[[Scalar], list[float]]:
    """Return how one hyperparameter's value becomes columns: one if it has an order, else one per value."""
    match entry:
        case Choice(values=values):
            return lambda value: [float(value == other) for other in values]
        case Ordered(values=values):
            return lambda value: [float(values.index(value)) if value in values else _number(value)]
        case IntegerRange(log=True) | RealRange(log=True):
            return lambda value: [math.log(_number(value))]
        case _:
            return lambda value: [_number(value)]


def _number(value: Scalar) -> float:
    return float(value)


def _permutation_drops(table: _Table, seed: int) -> tuple[float, dict[str, Matrix]]:
    """Return the share of the variance explained on held-out trials, and per name what each shuffle takes away."""
    generator = np.random.default_rng(seed)
    error = 0.0
    shuffled = {name: np.zeros(SHUFFLES) for name in table.columns}
    for number, (train, held_out) in enumerate(_folds(table)):
        forest = RandomForestRegressor(n_estimators=TREES, min_samples_leaf=2, random_state=(seed + number) % 2**32)
        forest.fit(table.features[train], table.losses[train])
        features, losses = table.features[held_out], table.losses[held_out]
        error += float(((forest.predict(features) - losses) ** 2).sum())
        for name, errors in _shuffled_errors(forest, features, losses, table.columns, generator).items():
            shuffled[name] += errors
    variance = float(((table.losses - table.losses.mean()) ** 2).sum())
    return 1 - error / variance, {name: (errors - error) / variance for name, errors in shuffled.items()}


def _folds(table: _Table) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    return list(GroupKFold(FOLDS).split(table.features, table.losses, table.trials))


def _shuffled_errors(
    forest: _Predicts,
    features: Matrix,
    losses: Matrix,
    columns: dict[str, list[int]],
    generator: np.random.Generator,
) -> dict[str, Matrix]:
    """Return each name's squared errors, one per shuffle; one prediction for all, since calls cost more than rows."""
    copies = np.tile(features, (len(columns) * SHUFFLES, 1)).reshape(len(columns), SHUFFLES, *features.shape)
    for position, block in enumerate(columns.values()):
        for shuffle in range(SHUFFLES):
            order = generator.permutation(len(features))
            copies[position, shuffle][:, block] = features[order][:, block]
    predicted = forest.predict(copies.reshape(-1, features.shape[1]))
    errors = (predicted.reshape(len(columns), SHUFFLES, -1) - losses) ** 2
    return dict(zip(columns, errors.sum(axis=2), strict=True))
