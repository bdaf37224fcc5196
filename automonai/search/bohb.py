"""BOHB (Falkner et al. 2018) by HpBandSter's configuration generator, asked and told, and mended.

The mends, each with its test:

- Values are plain Python ones (`encoding`).
- The density of a choice knows how many choices there are, and its bandwidth stays below the kernel's bound
  (`_Density`): stock models prefer values that the good configurations do not have.
- Every draw is seeded, and numpy's global generator is put back as it was.
- A model that fails makes a proposal of origin FALLBACK with the reason, never one that looks like any other.
- What the infrastructure lost is not in the history, so it does not count as a bad configuration.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automonai.domain.configuration import Configuration
from automonai.domain.run import Origin
from automonai.domain.seeds import derive_seed
from automonai.errors import SpecError
from automonai.search.encoding import config_space, decode, encode
from automonai.search.sampler import History, Observation, Proposal, propose_standard
from automonai.search.space import SearchSpace

with warnings.catch_warnings():
    # HpBandSter 0.7.4 has invalid escape sequences and imports what its dependencies call deprecated.
    warnings.simplefilter("ignore")
    from hpbandster.optimizers.config_generators.bohb import BOHB

_REDRAWS = 20
_CANDIDATES = 64
"""HpBandSter's default: the best of so many draws from the good density is proposed."""


class BohbSampler:
    """Draws from a model of the good configurations once one budget has enough results, else at random.

    The model is built anew from the history at each proposal, so an interrupted study goes on as it would.
    """

    def __init__(self, space: SearchSpace, *, seed: int, random_fraction: float = 1 / 3) -> None:
        """Store the space, the study's seed and the share of random draws although there is a model.

        Raises:
            SpecError: If nothing varies in the space, or its library cannot tell the ends of a range apart.
        """
        if not space.dimensions:
            raise SpecError(
                "search.space: every hyperparameter is fixed, BOHB needs one that varies; "
                "give one a range or choices, or set search.sampler to random"
            )
        try:
            config_space(space)
        except ValueError as error:
            raise SpecError(f"search.space: {error}; give the range other ends") from error
        self._space = space
        self._seed = seed
        self._random_fraction = random_fraction

    def propose(self, history: History, *, index: int, budget_epochs: int) -> Proposal | None:
        standard = propose_standard(self._space.standard, history, index=index)
        if standard is not None:
            return standard
        seed = derive_seed(self._seed, "proposal", index)
        try:
            model = _fit(self._space, history, seed=seed)
            if model is None:
                return self._random(history, seed, Origin.WARM_UP)
            if np.random.default_rng(derive_seed(seed, "fraction")).random() < self._random_fraction:
                return self._random(history, seed, Origin.RANDOM)
            return self._from_model(model, history, seed)
        except _ModelError as error:
            return self._random(history, seed, Origin.FALLBACK, note=str(error))

    def _random(self, history: History, seed: int, origin: Origin, *, note: str = "") -> Proposal | None:
        configuration = self._space.draw_new(seed, known=history.configurations)
        if configuration is None:
            return None
        return Proposal(configuration=configuration, origin=origin, note=note)

    def _from_model(self, model: _Model, history: History, seed: int) -> Proposal | None:
        known = history.configurations
        for attempt in range(_REDRAWS):
            # In a space of few points the best of many candidates is a known one again and again.
            candidates = max(1, _CANDIDATES >> attempt)
            configuration = model.draw(derive_seed(seed, "model", attempt), candidates=candidates)
            if configuration not in known:
                return Proposal(
                    configuration=configuration,
                    origin=Origin.MODEL,
                    model_budget_epochs=model.budget_epochs,
                )
        note = f"the model of {model.budget_epochs} epochs proposed only configurations that are known"
        return self._random(history, seed, Origin.RANDOM, note=note)


class _ModelError(Exception):
    """The model could not be built or drawn from."""


@dataclass(frozen=True)
class _Density:
    """A product-kernel density over [0, 1] ranges and positions of choices, as HpBandSter asks for it.

    Stock takes statsmodels' KDEMultivariate, which fails on choices in two ways. Its normal-reference rule
    on integer codes gives bandwidths above the Aitchison-Aitken kernel's bound of (c - 1) / c for c choices
    (statsmodels issue 3790, hpbandster issue 100), and it takes for c the number of *different values in the
    data*, so where all good configurations agree every other choice has infinite density. Here c is the
    space's, and the bandwidth at most half the bound: a choice in the data outweighs one that is not.

    Attributes:
        data: One row per configuration.
        bw: Bandwidth per dimension.
        choices: Number of choices per dimension, 0 for a range.
    """

    data: NDArray[np.float64]
    bw: NDArray[np.float64]
    choices: NDArray[np.int64]

    @classmethod
    def mended(cls, data: NDArray[np.float64], bw: NDArray[np.float64], choices: NDArray[np.int64]) -> _Density:
        bounds = np.where(choices > 0, (choices - 1) / (2 * np.maximum(choices, 1)), np.inf)
        return cls(data, np.minimum(bw, bounds), choices)

    def pdf(self, vector: list[float]) -> float:
        difference = self.data - np.asarray(vector, dtype=float)
        gaussian = np.exp(-0.5 * (difference / self.bw) ** 2) / (np.sqrt(2 * np.pi) * self.bw)
        other = self.bw / np.maximum(self.choices - 1, 1)
        aitchison_aitken = np.where(difference == 0, 1 - self.bw, other)
        kernels = np.where(self.choices > 0, aitchison_aitken, gaussian)
        return float(kernels.prod(axis=1).mean())


@dataclass(frozen=True)
class _Model:
    """HpBandSter's generator with one budget's model."""

    space: SearchSpace
    generator: BOHB
    errors: _ErrorRecorder
    budget_epochs: int

    def draw(self, seed: int, *, candidates: int) -> Configuration:
        """Return the best of so many configurations drawn from the good ones' density.

        Raises:
            _ModelError: If HpBandSter caught an error and drew at random instead.
        """
        self.errors.last = None
        self.generator.num_samples = candidates
        with _contained(seed):
            self.generator.configspace.seed(seed)
            values, info = self.generator.get_config(self.budget_epochs)
        if self.errors.last is not None or not info["model_based_pick"]:
            cause = f"{type(self.errors.last).__name__}: {self.errors.last}"
            raise _ModelError(f"the model of {self.budget_epochs} epochs failed: {cause}")
        return decode(self.space, values)


@dataclass(frozen=True)
class _Job:
    """A finished run in the form that HpBandSter's `new_result` reads."""

    kwargs: dict[str, object]
    result: dict[str, float]
    exception: None = None


class _ErrorRecorder(logging.Handler):
    """Keeps the error that HpBandSter is handling when it logs: its bare `except` drops it afterwards."""

    last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.last = sys.exception()


def _fit(space: SearchSpace, history: History, *, seed: int) -> _Model | None:
    """Return the model of the largest budget that has enough results; None if none has.

    Raises:
        _ModelError: If building it fails.
    """
    recorder = _ErrorRecorder()
    logger = logging.Logger("hpbandster")  # outside the tree of loggers: what it says goes to the recorder only
    logger.addHandler(recorder)
    with _contained(seed):
        # Whether to draw at random is decided by the sampler, so that each origin is known.
        generator = BOHB(config_space(space, seed=seed), random_fraction=0, logger=logger)
        for budget in sorted({item.budget_epochs for item in history.observations}, reverse=True):
            # In the order of the trials, so that no answer depends on which run happened to end first.
            results = sorted(
                (item for item in history.observations if item.budget_epochs == budget),
                key=lambda item: item.trial,
            )
            try:
                _tell(generator, space, results)
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                cause = f"{type(error).__name__}: {error}"
                raise _ModelError(f"the model of {budget} epochs could not be built: {cause}") from error
            if budget in generator.kde_models:
                generator.kde_models[budget] = {
                    name: _Density.mended(kde.data, kde.bw, generator.vartypes)
                    for name, kde in generator.kde_models[budget].items()
                }
                return _Model(space, generator, recorder, budget)
    return None


def _tell(generator: BOHB, space: SearchSpace, results: list[Observation]) -> None:
    """Give the generator the results of one budget and let it model them after the last one."""
    for position, item in enumerate(results, start=1):
        kwargs = {"budget": item.budget_epochs, "config": encode(space, item.configuration)}
        generator.new_result(_Job(kwargs, {"loss": item.loss}), update_model=position == len(results))


@contextmanager
def _contained(seed: int) -> Iterator[None]:
    """Keep HpBandSter's warnings to itself and give it a seeded global generator, restored afterwards."""
    state = np.random.get_state()  # noqa: NPY002 -- HpBandSter and scipy under it draw from the global one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
