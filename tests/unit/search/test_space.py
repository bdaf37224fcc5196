import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automonai.domain.configuration import Configuration
from automonai.errors import SpecError
from automonai.search import search_space, standard_configuration
from automonai.search.encoding import config_space, decode, encode
from automonai.spec import Choice, IntegerRange, Ordered, RealRange, SearchSpec

DEFAULT = search_space(SearchSpec())
LOGARITHMIC = search_space(
    SearchSpec(
        space={
            "learning_rate": RealRange(type="real", low=1e-5, high=1e-1, log=True),
            "channels": IntegerRange(type="integer", low=1, high=256, log=True),
        }
    )
)


def test_the_default_space_holds_the_standard_configuration_of_the_package() -> None:
    assert DEFAULT.standard == Configuration()
    assert DEFAULT.contains(Configuration())


def test_what_the_space_does_not_name_keeps_the_standards_value() -> None:
    space = search_space(
        SearchSpec(space={"depth": IntegerRange(type="integer", low=2, high=4)}, standard={"batch_size": 2})
    )
    assert set(space.dimensions) == {"depth"}
    assert space.draw(0).batch_size == 2
    assert not space.contains(Configuration(batch_size=8))


def test_a_fixed_value_is_the_standards_value() -> None:
    assert standard_configuration(SearchSpec(space={"loss": "dice"})).loss == "dice"


@pytest.mark.parametrize(
    ("entries", "standard", "message"),
    [
        ({"deth": 3}, {}, "search.space.deth: there is no hyperparameter 'deth'; known: depth, channels"),
        ({}, {"lr": 0.1}, "search.standard.lr: there is no hyperparameter"),
        ({"depth": 99}, {}, r"search.space.depth: depth: .*less than or equal to 8 \(found 99\)"),
        ({"depth": "3"}, {}, r"search.space.depth: found '3' \(str\), expected it as 3"),
        ({"depth": True}, {}, "search.space.depth: depth: expected another kind of value than true"),
        ({"loss": "focal"}, {}, "search.space.loss: loss: .*'dice_focal'.*found 'focal'"),
        (
            {"depth": IntegerRange(type="integer", low=2, high=12)},
            {},
            "search.space.depth.high: .*less than or equal to 8",
        ),
        (
            {"depth": RealRange(type="real", low=2, high=6)},
            {},
            "search.space.depth: .*valid integer",
        ),
        (
            {"channels": Ordered(type="ordinal", values=(16, 32, 16))},
            {},
            "search.space.channels.values: 16 is there twice",
        ),
        (
            {"loss": Choice(type="categorical", values=("dice_ce", "mse"))},
            {},
            r"search.space.loss.values\[1\]: .*found 'mse'",
        ),
        (
            {"loss": Choice(type="categorical", values=("dice", "dice_topk"))},
            {},
            "search.standard.loss: 'dice_ce' is not in {dice, dice_topk}",
        ),
        (
            {"batch_size": IntegerRange(type="integer", low=1, high=8)},
            {},
            "search.standard.batch_size: None is not in 1 to 8; name in search.standard a value",
        ),
        ({"depth": 3}, {"depth": 4}, "search.standard.depth: 4 contradicts search.space.depth.*fixes it at 3"),
    ],
)
def test_a_broken_space_is_refused_with_its_field(
    entries: dict[str, object], standard: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        search_space(SearchSpec(space=entries, standard=standard))


def test_a_space_in_which_nothing_varies_has_one_point() -> None:
    space = search_space(SearchSpec(space={"depth": 3}))
    assert space.size == 1
    assert space.draw(0) == space.standard


@pytest.mark.parametrize("space", [DEFAULT, LOGARITHMIC], ids=["default", "logarithmic"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_a_drawn_configuration_lies_in_the_space_and_equals_itself_after_json(space, seed) -> None:  # type: ignore[no-untyped-def]
    configuration = space.draw(seed)
    assert space.contains(configuration)
    assert Configuration.model_validate_json(configuration.model_dump_json()) == configuration


@pytest.mark.parametrize("space", [DEFAULT, LOGARITHMIC], ids=["default", "logarithmic"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_the_encoding_for_config_space_loses_nothing(space, seed) -> None:  # type: ignore[no-untyped-def]
    from ConfigSpace import Configuration as Encoded

    configuration = space.draw(seed)
    encoded = Encoded(config_space(space), encode(space, configuration))
    from_vector = Encoded(config_space(space), vector=encoded.get_array())
    assert decode(space, dict(from_vector)) == configuration
    assert all(type(value) in (int, float, str) for value in space.values(configuration).values())


def test_the_ends_of_a_logarithmic_range_of_integers_are_drawn_as_often_as_its_scale_says() -> None:
    draws = [LOGARITHMIC.draw(seed).channels for seed in range(3000)]
    share_below_16 = sum(channels < 16 for channels in draws) / len(draws)
    expected = math.log(15.5 / 0.5) / math.log(256.5 / 0.5)
    assert share_below_16 == pytest.approx(expected, abs=0.03)
    assert {1, 2, 3} <= set(draws)
    assert max(draws) <= 256


def test_a_range_with_many_digits_holds_its_own_draws() -> None:
    space = search_space(
        SearchSpec(
            space={"channel_multiplier": RealRange(type="real", low=1.23456789, high=1.23458999)},
            standard={"channel_multiplier": 1.234577},
        )
    )
    assert all(space.contains(space.draw(seed)) for seed in range(20))


def test_a_range_of_one_value_in_the_digits_that_are_kept_is_refused() -> None:
    entry = RealRange(type="real", low=0.0010000001, high=0.0010000002)
    with pytest.raises(SpecError, match=r"learning_rate: .* are one value in the 6 digits .*; write that value alone"):
        search_space(SearchSpec(space={"learning_rate": entry}))


def test_what_is_left_of_a_small_space_is_found_and_then_nothing() -> None:
    space = search_space(
        SearchSpec(
            space={
                "depth": IntegerRange(type="integer", low=2, high=6),
                "flips": Choice(type="categorical", values=("none", "left_right", "all")),
            }
        )
    )
    known: set[Configuration] = set()
    for seed in range(15):
        new = space.draw_new(seed, known=known)
        assert new is not None
        known.add(new)
    assert len(known) == space.size == 15
    assert space.draw_new(99, known=known) is None
