from collections import Counter

from automonai.domain.configuration import Configuration
from automonai.domain.run import Origin
from automonai.search import History, make_sampler
from automonai.spec import Choice, IntegerRange, RealRange, SamplerName, SearchSpec

SPEC = SearchSpec(
    sampler=SamplerName.GRID,
    grid_points=3,
    space={
        "depth": IntegerRange(type="integer", low=2, high=6),
        "convolution": Choice(type="categorical", values=("2d", "3d")),
        "learning_rate": RealRange(type="real", low=1e-4, high=1e-2, log=True),
    },
)


def walk(spec: SearchSpec, count: int = 10_000) -> list[Configuration]:
    sampler, history = make_sampler(spec), History()
    for index in range(count):
        proposal = sampler.propose(history, index=index, budget_epochs=9)
        if proposal is None:
            break
        assert proposal.origin is (Origin.STANDARD if index == 0 else Origin.GRID)
        history = History(pending=(*history.pending, proposal.configuration))
    return list(history.pending)


def test_the_grid_is_the_full_factorial_after_the_standard_and_then_ends() -> None:
    _, *grid = walk(SPEC)
    expected = {(d, c, r) for d in (2, 4, 6) for c in ("2d", "3d") for r in (1e-4, 1e-3, 1e-2)}
    assert {(c.depth, str(c.convolution), c.learning_rate) for c in grid} == expected
    assert len(grid) == 18


def test_a_standard_on_the_grid_is_not_repeated() -> None:
    on_grid = SPEC.model_copy(update={"standard": {"depth": 4, "learning_rate": 1e-3}})
    assert len(walk(on_grid)) == 18


def test_the_first_points_cover_every_value_about_equally() -> None:
    _, *first = walk(SPEC, 7)
    assert max(Counter(c.depth for c in first).values()) <= 3
    assert max(Counter(c.convolution for c in first).values()) <= 4


def test_more_points_than_a_range_of_integers_has_take_each_once() -> None:
    spec = SearchSpec(
        sampler=SamplerName.GRID,
        grid_points=9,
        space={"depth": IntegerRange(type="integer", low=2, high=4)},
    )
    assert {c.depth for c in walk(spec)} == {2, 3, 4}


def test_a_space_without_variety_is_its_standard_alone() -> None:
    assert walk(SearchSpec(sampler=SamplerName.GRID, space={"depth": 3})) == [Configuration(depth=3)]


def test_a_grid_of_a_hundred_thousand_points_starts_at_once() -> None:
    assert len(walk(SearchSpec(sampler=SamplerName.GRID, grid_points=5), 20)) == 20
