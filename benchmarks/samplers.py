"""The samplers against each other on a stand-in for trainings: regret at equal epochs, as a Markdown table.

The stand-in is a function over the default space with a known best value 0. Its effects follow the source
work's one-dimensional searches (convolution type, multiplier, channels and loss matter most), a large network
learns more slowly, so that rankings change on the way up, and every training has its own seed's noise, which
lasts, and noise that shrinks with the epochs. `python benchmarks/samplers.py [--repeats 24] [--narrow]`, under
three minutes on two free cores; --narrow searches five of the ten dimensions.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.stats import mannwhitneyu

from automonai.domain.bracket import hyperband_bracket, promoted, rung_budgets
from automonai.domain.configuration import Configuration
from automonai.domain.run import Origin
from automonai.domain.seeds import derive_seed
from automonai.search import History, Observation, Proposal, Sampler, SearchSpace, search_space
from automonai.search.bohb import BohbSampler, _contained, _Job
from automonai.search.encoding import config_space, decode, encode
from automonai.search.random_search import RandomSampler
from automonai.spec import DEFAULT_SPACE, SearchSpec

RUNGS = rung_budgets(5, 200, 3)
CHECKPOINTS = (1, 4, 8)
"""After so many brackets the incumbent is looked at; 4 are one cycle of HyperBand."""
_NARROW = ("depth", "channels", "channel_multiplier", "convolution", "loss")
_EFFECTS: dict[str, dict[object, float]] = {
    "convolution": {"3d": 0.0, "2d": 0.05},
    "loss": {
        "dice_ce": 0.01,
        "dice_topk": 0.0,
        "dice_focal": 0.03,
        "dice": 0.05,
        "dice_hausdorff": 0.07,
        "generalised_dice": 0.12,
    },
    "normalisation": {"zscore": 0.005, "percentile_zscore": 0.0, "minmax": 0.01, "none": 0.03},
    "resampling": {"none": 0.0, "mean": 0.005, "median": 0.005},
    "first_stride": {1: 0.0, 2: 0.01},
    "flips": {"none": 0.0, "left_right": 0.006, "all": 0.016},
}


def final_loss(configuration: Configuration) -> float:
    """Return what a configuration comes to without end and without noise; the best one's is 0."""
    effects = sum(values[getattr(configuration, name)] for name, values in _EFFECTS.items())
    width = abs(math.log2(configuration.channels / 32)) * 0.012
    growth = (configuration.channel_multiplier - 2.0) ** 2 * 0.05
    depth = abs(configuration.depth - 4) * 0.008 + abs(configuration.convolutions_per_layer - 2) * 0.006
    return effects + width + growth + depth


def observed_loss(configuration: Configuration, epochs: int, *, repeat: int) -> float:
    """Return the validation loss after some epochs of one training."""
    digest = hashlib.sha256(configuration.model_dump_json().encode()).hexdigest()
    lasting = np.random.default_rng(derive_seed(repeat, digest)).normal(0, 0.004)
    passing = np.random.default_rng(derive_seed(repeat, digest, epochs)).normal(0, 0.04 / math.sqrt(epochs))
    size = math.log2(configuration.channels) / 7 + configuration.depth / 6 + configuration.channel_multiplier / 3
    slowness = 4 + 6 * size
    return float(0.1 + final_loss(configuration) + 0.6 * math.exp(-epochs / slowness) + lasting + passing)


class StockBohb:
    """HpBandSter's generator as it comes, behind our port; only its global generator is seeded."""

    def __init__(self, space: SearchSpace, *, seed: int) -> None:
        """Store the space and the seed."""
        self._space = space
        self._seed = seed

    def propose(self, history: History, *, index: int, budget_epochs: int) -> Proposal | None:
        from hpbandster.optimizers.config_generators.bohb import BOHB

        seed = derive_seed(self._seed, index)
        with _contained(seed):
            generator = BOHB(config_space(self._space, seed=seed), logger=_silent())
            by_budget = sorted(history.observations, key=lambda item: (item.budget_epochs, item.trial))
            for position, item in enumerate(by_budget, start=1):
                last = position == len(by_budget) or by_budget[position].budget_epochs != item.budget_epochs
                kwargs = {"budget": item.budget_epochs, "config": encode(self._space, item.configuration)}
                generator.new_result(_Job(kwargs, {"loss": item.loss}), update_model=last)
            values, info = generator.get_config(budget_epochs)
        origin = Origin.MODEL if info["model_based_pick"] else Origin.RANDOM
        return Proposal(configuration=decode(self._space, values), origin=origin)


def _silent() -> logging.Logger:
    logger = logging.Logger("stock")
    logger.addHandler(logging.NullHandler())
    return logger


@dataclass(frozen=True)
class Outcome:
    """The regret of the incumbent at each checkpoint, and where the proposals came from."""

    method: str
    regrets: tuple[float, ...]
    origins: Counter[Origin]
    seconds: float


def halving(sampler: Sampler, *, repeat: int) -> tuple[tuple[float, ...], Counter[Origin]]:
    """Return regrets and origins of HyperBand's brackets with this sampler."""
    history, regrets = History(), []
    origins: Counter[Origin] = Counter()
    configurations: dict[int, Configuration] = {}
    for index in range(max(CHECKPOINTS)):
        bracket = hyperband_bracket(index, RUNGS, 3)
        trials = range(len(configurations), len(configurations) + bracket.sizes[0])
        survivors: tuple[int, ...] = ()
        for rung, budget in enumerate(bracket.budgets_epochs):
            losses: dict[int, float] = {}
            for trial in survivors if rung else trials:
                if not rung:
                    proposal = sampler.propose(history, index=trial, budget_epochs=budget)
                    assert proposal is not None
                    configurations[trial] = proposal.configuration
                    origins[proposal.origin] += 1
                losses[trial] = observed_loss(configurations[trial], budget, repeat=repeat)
                history = _observe(history, trial, configurations[trial], budget, losses[trial])
            survivors = promoted(losses, bracket.sizes[rung + 1]) if rung + 1 < len(bracket.sizes) else ()
        if index + 1 in CHECKPOINTS:
            regrets.append(_regret(history))
    return tuple(regrets), origins


def full_trainings(sampler: Sampler, *, repeat: int) -> tuple[tuple[float, ...], Counter[Origin]]:
    """Return regrets and origins of a search that trains everything to the end, for the same epochs."""
    history, regrets = History(), []
    origins: Counter[Origin] = Counter()
    for epochs in (_epochs(brackets) for brackets in CHECKPOINTS):
        for trial in range(len(history.observations), max(1, epochs // RUNGS[-1])):
            proposal = sampler.propose(history, index=trial, budget_epochs=RUNGS[-1])
            assert proposal is not None
            origins[proposal.origin] += 1
            loss = observed_loss(proposal.configuration, RUNGS[-1], repeat=repeat)
            history = _observe(history, trial, proposal.configuration, RUNGS[-1], loss)
        regrets.append(_regret(history))
    return tuple(regrets), origins


def _observe(history: History, trial: int, configuration: Configuration, budget: int, loss: float) -> History:
    item = Observation(trial=trial, configuration=configuration, budget_epochs=budget, loss=loss)
    return History(observations=(*history.observations, item))


def _regret(history: History) -> float:
    best = min(history.observations, key=lambda item: (-item.budget_epochs, item.loss))
    return final_loss(best.configuration)


def _epochs(brackets: int) -> int:
    return sum(hyperband_bracket(index, RUNGS, 3).epochs_continued for index in range(brackets))


Search = Callable[..., tuple[tuple[float, ...], Counter[Origin]]]
_METHODS: dict[str, tuple[Search, Callable[..., Sampler]]] = {
    "random search": (full_trainings, RandomSampler),
    "HyperBand": (halving, RandomSampler),
    "BOHB, stock HpBandSter": (halving, StockBohb),
    "BOHB, mended": (halving, BohbSampler),
}


def run(task: tuple[str, int, bool]) -> Outcome:
    """Run one repeat of one method, on the default space or the narrow one."""
    method, repeat, narrow = task
    search, sampler = _METHODS[method]
    # A poor standard configuration: the stand-in's own is good, which would hide the samplers.
    poor = {"loss": "generalised_dice", "convolution": "2d", "channels": 8, "channel_multiplier": 0.5}
    names = _NARROW if narrow else tuple(DEFAULT_SPACE)
    space = search_space(SearchSpec(space={name: DEFAULT_SPACE[name] for name in names}, standard=poor))
    start = time.perf_counter()
    regrets, origins = search(sampler(space, seed=repeat), repeat=repeat)
    return Outcome(method, regrets, origins, time.perf_counter() - start)


def _p_value(first: list[float], second: list[float]) -> float:
    return float(mannwhitneyu(np.asarray(first), np.asarray(second)).pvalue)


def table(outcomes: list[Outcome]) -> str:
    """Return the Markdown table: median regret (quartiles) and two-sided Mann-Whitney p against HyperBand."""
    heads = [f"{_epochs(brackets):,} epochs" for brackets in CHECKPOINTS]
    lines = [f"| method | {' | '.join(heads)} | p, last column | from a model | seconds |", "|---" * 7 + "|"]
    by_method = {name: [item for item in outcomes if item.method == name] for name in _METHODS}
    reference = [item.regrets[-1] for item in by_method["HyperBand"]]
    for name, items in by_method.items():
        cells = []
        for column in zip(*(item.regrets for item in items), strict=True):
            low, median, high = np.percentile(column, (25, 50, 75))
            cells.append(f"{median:.3f} ({low:.3f} to {high:.3f})")
        p = _p_value([item.regrets[-1] for item in items], reference)
        origins = sum((item.origins for item in items), Counter[Origin]())
        share = origins[Origin.MODEL] / origins.total()
        seconds = sum(item.seconds for item in items) / len(items)
        p_text = "" if name == "HyperBand" else f"{p:.1e}"
        lines.append(f"| {name} | {' | '.join(cells)} | {p_text} | {share:.0%} | {seconds:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Run all repeats and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--narrow", action="store_true")
    options = parser.parse_args()
    start = time.perf_counter()
    with ProcessPoolExecutor(options.processes) as pool:
        tasks = product(_METHODS, range(options.repeats), (options.narrow,))
        outcomes = list(pool.map(run, tasks, chunksize=1))
    print(table(outcomes))
    versus = [
        [item.regrets[-1] for item in outcomes if item.method == name]
        for name in ("BOHB, mended", "BOHB, stock HpBandSter")
    ]
    print(
        f"\n{options.repeats} repeats. Median regret (quartiles) of the incumbent, 0 is the best of the space; "
        f"p by Mann-Whitney against HyperBand. Mended against stock: p = {_p_value(*versus):.1e}. "
        f"Fallbacks: {sum(item.origins[Origin.FALLBACK] for item in outcomes)}. "
        f"{time.perf_counter() - start:.0f} s."
    )


if __name__ == "__main__":
    main()
