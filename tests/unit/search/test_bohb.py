"""BOHB models, and each mend of HpBandSter is there: see the list in automonai/search/bohb.py."""

import logging
import math
import warnings
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from automonai.domain.run import Origin
from automonai.errors import SpecError
from automonai.search import History, Observation, search_space
from automonai.search.bohb import BohbSampler, _contained, _Density, _fit, _Job
from automonai.search.encoding import config_space, encode
from automonai.spec import Choice, IntegerRange, Ordered, SearchSpec

SPACE = search_space(SearchSpec())
GOOD_LOSSES = ("dice_ce", "dice_topk")
ENOUGH = 2 * (len(SPACE.dimensions) + 1)


def results(count: int, *, budget_epochs: int = 7, seed: int = 0, first_trial: int = 0) -> list[Observation]:
    """Return results of which only the loss function matters: two of its six values are good."""
    noise = np.random.default_rng(seed).uniform(0, 0.02, count)
    return [
        Observation(
            trial=first_trial + number,
            configuration=(configuration := SPACE.draw(1000 * seed + number)),
            budget_epochs=budget_epochs,
            loss=(0.1 if configuration.loss in GOOD_LOSSES else 0.4) + float(noise[number]),
        )
        for number in range(count)
    ]


def history(*groups: list[Observation]) -> History:
    return History(observations=tuple(item for group in groups for item in group))


def sampler(**options: float) -> BohbSampler:
    return BohbSampler(SPACE, seed=3, random_fraction=options.get("random_fraction", 0.0))


def test_without_enough_results_it_warms_up() -> None:
    proposal = sampler().propose(history(results(ENOUGH - 1)), index=30, budget_epochs=7)
    assert proposal is not None
    assert proposal.origin is Origin.WARM_UP
    assert proposal.model_budget_epochs is None


def test_with_enough_results_on_one_budget_it_models_that_budget() -> None:
    proposal = sampler().propose(history(results(ENOUGH)), index=30, budget_epochs=7)
    assert proposal is not None
    assert (proposal.origin, proposal.model_budget_epochs) == (Origin.MODEL, 7)


def test_results_spread_over_budgets_do_not_add_up_to_a_model() -> None:
    spread = history(results(ENOUGH - 1), results(ENOUGH - 1, budget_epochs=22, seed=1))
    proposal = sampler().propose(spread, index=60, budget_epochs=7)
    assert proposal is not None
    assert proposal.origin is Origin.WARM_UP


@pytest.mark.parametrize("higher_first", [True, False])
def test_the_model_is_that_of_the_largest_budget_with_enough_results(higher_first: bool) -> None:
    groups = [
        results(ENOUGH + 9),
        results(ENOUGH, budget_epochs=22, seed=1),
        results(9, budget_epochs=67, seed=2),
    ]
    proposal = sampler().propose(history(*(reversed(groups) if higher_first else groups)), index=90, budget_epochs=7)
    assert proposal is not None
    assert proposal.model_budget_epochs == 22


def test_a_share_of_proposals_is_random_although_there_is_a_model() -> None:
    known = history(results(ENOUGH))
    origins = Counter(
        proposal.origin
        for index in range(30, 48)
        if (proposal := sampler(random_fraction=1 / 3).propose(known, index=index, budget_epochs=7))
    )
    assert set(origins) == {Origin.MODEL, Origin.RANDOM}
    assert 2 <= origins[Origin.RANDOM] <= 10


def test_the_order_in_which_runs_ended_does_not_matter() -> None:
    observed = results(ENOUGH + 5)
    forward = sampler().propose(history(observed), index=40, budget_epochs=7)
    assert sampler().propose(history(observed[::-1]), index=40, budget_epochs=7) == forward


def good_share(known: History, *, draws: int = 14) -> float:
    proposals = [sampler().propose(known, index=index, budget_epochs=7) for index in range(50, 50 + draws)]
    assert all(proposal and proposal.origin is Origin.MODEL for proposal in proposals)
    return sum(proposal is not None and proposal.configuration.loss in GOOD_LOSSES for proposal in proposals) / draws


def stock_good_share(observed: list[Observation], *, draws: int = 14) -> float:
    """Return the share of good losses that HpBandSter's generator, used as it is, draws from its model."""
    with _contained(0):
        from hpbandster.optimizers.config_generators.bohb import BOHB

        generator = BOHB(config_space(SPACE), random_fraction=0, logger=logging.Logger("stock"))
        for item in observed:
            config = encode(SPACE, item.configuration)
            generator.new_result(_Job({"budget": 7, "config": config}, {"loss": item.loss}))
        losses = SPACE.dimensions["loss"]
        assert isinstance(losses, Choice)
        drawn = [losses.values[int(generator.get_config(7)[0]["loss"])] for _ in range(draws)]
    return sum(loss in GOOD_LOSSES for loss in drawn) / draws


def test_the_mended_model_picks_the_good_choices_and_the_stock_model_shuns_them() -> None:
    observed = results(40)
    # Drawn at random, a third of the proposals would have one of the two good losses of six.
    assert good_share(history(observed)) > 0.6
    assert stock_good_share(observed) < 1 / 3


def densities(known: History) -> tuple[_Density, ...]:
    model = _fit(SPACE, known, seed=0)
    assert model is not None
    (entry,) = model.generator.kde_models.values()
    return (entry["good"], entry["bad"])


def test_the_bandwidth_of_a_choice_stays_at_half_the_kernels_bound() -> None:
    clipped = 0
    for density in densities(history(results(40))):
        bound = (density.choices - 1) / (2 * np.maximum(density.choices, 1))
        is_choice = density.choices > 0
        assert (density.bw[is_choice] <= bound[is_choice]).all()
        clipped += int((density.bw[is_choice] == bound[is_choice]).sum())
    assert clipped >= 4, "the rule of thumb exceeds the bound on a space like ours; is the clip still needed?"


def column(values: list[float], others: int = 0) -> NDArray[np.float64]:
    return np.array([[value] + [0.5] * others for value in values])


def test_a_choice_that_no_configuration_has_is_less_dense_than_one_that_all_have() -> None:
    # Worked out by hand: c = 6, bandwidth min(1, 5/12); 1 - 5/12 against (5/12) / 5.
    density = _Density.mended(column([2, 2, 2, 2]), np.array([1.0]), np.array([6]))
    assert density.pdf([2]) == pytest.approx(7 / 12)
    assert density.pdf([3]) == pytest.approx(1 / 12)


def test_the_density_of_a_choice_sums_to_one() -> None:
    density = _Density.mended(column([0, 2, 2, 5]), np.array([0.3]), np.array([6]))
    assert sum(density.pdf([choice]) for choice in range(6)) == pytest.approx(1)


def test_the_density_of_a_range_equals_that_of_statsmodels() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from statsmodels.nonparametric.kernel_density import KDEMultivariate

        data = np.random.default_rng(0).random((9, 3))
        reference = KDEMultivariate(data=data, var_type="ccc", bw="normal_reference")
    density = _Density.mended(data, reference.bw, np.zeros(3, dtype=int))
    assert density.pdf([0.2, 0.4, 0.9]) == pytest.approx(float(reference.pdf([0.2, 0.4, 0.9])))


def test_infinite_losses_count_as_the_worst() -> None:
    observed = [
        item if item.configuration.loss in GOOD_LOSSES else item.model_copy(update={"loss": math.inf})
        for item in results(40)
    ]
    assert good_share(history(observed), draws=10) >= 0.6


def fail(*_: object, **__: object) -> float:
    raise ValueError("forced")


def test_an_error_while_the_model_is_built_is_a_fallback_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import statsmodels.nonparametric.kernel_density as kernel_density

    monkeypatch.setattr(kernel_density.KDEMultivariate, "_normal_reference", fail)
    proposal = sampler().propose(history(results(ENOUGH)), index=30, budget_epochs=7)
    assert proposal is not None
    assert proposal.origin is Origin.FALLBACK
    assert proposal.note == "the model of 7 epochs could not be built: ValueError: forced"


def test_an_error_that_hpbandster_swallows_is_a_fallback_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import scipy.stats

    monkeypatch.setattr(scipy.stats.truncnorm, "rvs", fail)
    proposal = sampler().propose(history(results(ENOUGH)), index=30, budget_epochs=7)
    assert proposal is not None
    assert proposal.origin is Origin.FALLBACK
    assert proposal.note.startswith("the model of 7 epochs failed: ")
    assert SPACE.contains(proposal.configuration)


def test_an_error_in_the_density_is_a_fallback_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Density, "pdf", fail)
    proposal = sampler().propose(history(results(ENOUGH)), index=30, budget_epochs=7)
    assert proposal is not None
    assert (proposal.origin, proposal.note) == (
        Origin.FALLBACK,
        "the model of 7 epochs failed: ValueError: forced",
    )


def test_numpys_global_generator_is_left_as_it_was() -> None:
    np.random.seed(42)  # noqa: NPY002
    before = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    sampler().propose(history(results(ENOUGH)), index=30, budget_epochs=7)
    assert (np.random.get_state(legacy=False)["state"]["key"] == before).all()  # noqa: NPY002


def test_numpys_global_generator_does_not_change_a_proposal() -> None:
    known = history(results(ENOUGH))
    np.random.seed(1)  # noqa: NPY002
    first = sampler().propose(known, index=30, budget_epochs=7)
    np.random.seed(2)  # noqa: NPY002
    assert sampler().propose(known, index=30, budget_epochs=7) == first


def test_a_model_that_knows_only_tried_configurations_says_so_and_takes_what_is_left() -> None:
    space = search_space(
        SearchSpec(
            space={
                "depth": IntegerRange(type="integer", low=2, high=4),
                "flips": Choice(type="categorical", values=("none", "all")),
            }
        )
    )
    every = sorted({space.draw(seed) for seed in range(100)}, key=lambda c: (c.depth, c.flips))
    assert len(every) == space.size == 6
    *tried, _, last = every
    known = History(
        observations=tuple(
            Observation(trial=n, configuration=tried[n % 4], budget_epochs=7, loss=n / 10) for n in range(12)
        ),
        pending=(every[4],),
    )
    bohb = BohbSampler(space, seed=0, random_fraction=0.0)
    proposal = bohb.propose(known, index=12, budget_epochs=7)
    assert proposal is not None
    assert proposal.configuration == last
    exhausted = known.model_copy(update={"pending": (every[4], last)})
    assert bohb.propose(exhausted, index=13, budget_epochs=7) is None


def test_a_small_space_goes_on_being_modelled_when_its_best_points_are_known() -> None:
    space = search_space(
        SearchSpec(
            space={
                "channels": Ordered(type="ordinal", values=(16, 32)),
                "batch_size": IntegerRange(type="integer", low=1, high=64, log=True),
            },
            standard={"batch_size": 2},
        )
    )
    known = History(
        observations=tuple(
            Observation(trial=n, configuration=space.draw(n), budget_epochs=7, loss=(7 * n) % 12) for n in range(12)
        )
    )
    bohb = BohbSampler(space, seed=0, random_fraction=0.0)
    proposals = [bohb.propose(known, index=index, budget_epochs=7) for index in range(20, 26)]
    assert [proposal and proposal.origin for proposal in proposals] == [Origin.MODEL] * 6


def test_a_range_that_its_library_cannot_draw_from_is_refused_before_the_study_begins() -> None:
    learning_rate = {"type": "real", "low": 1e-15, "high": 1.0, "log": True}
    with pytest.raises(SpecError, match="search.space: .*; give the range other ends"):
        BohbSampler(search_space(SearchSpec(space={"learning_rate": learning_rate})), seed=0)


def test_a_space_in_which_nothing_varies_is_refused() -> None:
    with pytest.raises(SpecError, match="BOHB needs one that varies"):
        BohbSampler(search_space(SearchSpec(space={"depth": 3})), seed=0)
