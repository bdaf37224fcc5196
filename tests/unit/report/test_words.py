import pytest

from automonai.domain.configuration import HYPERPARAMETERS, Configuration
from automonai.domain.run import FailureReason, Origin
from automonai.report.words import (
    FAILURE_WORDS,
    HYPERPARAMETER_WORDS,
    ORIGIN_WORDS,
    SAMPLER_WORDS,
    counted,
    describe,
    duration,
    memory,
    value_words,
)
from automonai.spec import DEFAULT_SPACE, Choice, SamplerName


def test_every_hyperparameter_origin_failure_and_sampler_has_plain_words():
    assert set(HYPERPARAMETER_WORDS) == set(HYPERPARAMETERS)
    assert set(ORIGIN_WORDS) == set(Origin)
    assert set(FAILURE_WORDS) == set(FailureReason)
    assert set(SAMPLER_WORDS) == set(SamplerName)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0.0 s"),
        (0.0395, "40 ms"),
        (0.0996, "0.1 s"),
        (0.4, "0.4 s"),
        (59.7, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.8, "1 h 00 min"),
        (3900, "1 h 05 min"),
        (86399, "1 d 00 h"),
        (180000, "2 d 02 h"),
    ],
)
def test_a_duration_is_told_in_the_units_that_matter(seconds, words):
    assert duration(seconds) == words


def test_counts_agree_with_their_noun():
    assert [counted(1, "patch"), counted(2, "patch"), counted(1200, "epoch")] == [
        "1 patch",
        "2 patches",
        "1,200 epochs",
    ]


def test_memory_is_told_in_gibibytes_or_mebibytes():
    assert [memory(3 * 2**29), memory(5 * 2**20)] == ["1.5 GiB", "5 MiB"]


@pytest.mark.parametrize("name", [name for name, entry in DEFAULT_SPACE.items() if isinstance(entry, Choice)])
def test_every_choice_of_the_default_space_can_be_described(name):
    for value in DEFAULT_SPACE[name].values:
        assert all(describe(Configuration(**{name: value})))
        assert len(value_words(name, value)) <= 15


def test_a_configuration_is_described_with_its_own_values():
    text = " ".join(describe(Configuration(depth=5, convolution="2d", loss="dice_topk", batch_size=4, patch_scale=0.5)))
    assert "5 resolution levels" in text
    assert "slice by slice" in text
    assert "top-k" in text
    assert "4 patches, whose sides are 0.5 times" in text
