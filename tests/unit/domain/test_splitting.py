from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from automonai.domain.splitting import make_split, parse_split
from automonai.errors import SpecError

IDS = [f"case_{number:03d}" for number in range(20)]


@settings(max_examples=50)
@given(count=st.integers(1, 60), test=st.floats(0, 0.95), folds=st.integers(2, 8), seed=st.integers(0, 2**32))
def test_a_split_is_a_partition_into_even_folds_or_says_how_many_cases_it_needs(
    count: int, test: float, folds: int, seed: int
) -> None:
    ids = [f"c{number}" for number in range(count)]
    try:
        split = make_split(ids, test=test, folds=folds, seed=seed)
    except SpecError as error:
        needed = int(str(error).split("at least ")[1].split()[0])
        assert needed > count
        make_split([f"c{number}" for number in range(needed)], test=test, folds=folds, seed=seed)
        with pytest.raises(SpecError):
            make_split([f"c{number}" for number in range(needed - 1)], test=test, folds=folds, seed=seed)
        return
    assert sorted([*split.test, *split.development]) == sorted(ids)
    sizes = [len(fold) for fold in split.folds]
    assert len(sizes) == folds
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert bool(split.test) == (test > 0)


def test_the_split_depends_on_the_seed_but_not_on_the_order_of_the_cases() -> None:
    shuffled = random.Random(1).sample(IDS, len(IDS))
    split = make_split(IDS, test=0.2, folds=4, seed=3)
    assert make_split(shuffled, test=0.2, folds=4, seed=3) == split
    assert make_split(IDS, test=0.2, folds=4, seed=4) != split
    assert (len(split.test), [len(fold) for fold in split.folds]) == (4, [4, 4, 4, 4])


def test_the_split_of_a_seed_never_changes() -> None:
    split = make_split(IDS, test=0.2, folds=4, seed=0)
    assert split.test == ("case_015", "case_017", "case_018", "case_019")


def test_ids_that_come_twice_are_refused() -> None:
    with pytest.raises(SpecError, match="more than once: a"):
        make_split(["a", "a", "b"], test=0, folds=2, seed=0)


@pytest.mark.parametrize(
    ("where", "dump"), [("s.json", lambda d: json.dumps(d, indent="\t")), ("s3://b/s.yaml", yaml.safe_dump)]
)
def test_a_users_split_is_read_from_json_or_yaml(where: str, dump: Callable[[object], str]) -> None:
    document = {"test": IDS[:2], "folds": [IDS[2:10], IDS[10:]]}
    split = parse_split(dump(document).encode(), IDS, where=where)
    assert split.test == tuple(IDS[:2])
    assert split.folds == (tuple(IDS[2:10]), tuple(IDS[10:]))


def test_a_users_split_may_leave_out_the_test_set() -> None:
    assert parse_split(b"folds: [[a], [b]]", ["a", "b"], where="s.yaml").test == ()


def test_unknown_repeated_and_missing_ids_are_all_named() -> None:
    with pytest.raises(SpecError) as caught:
        parse_split(b"test: [a]\nfolds: [[a, b], [x]]", ["a", "b", "c"], where="s.yaml")
    for part in ("unknown case: x", "listed more than once: a", "missing from the split: c"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"folds: 3", b"folds: [[a]]", b"folds: [[a], []]", b"folds: [[1], [2]]", b"fold: [[a], [b]]"),
        *(b"{", b"test: a", b"\xff{"),
    ],
)
@pytest.mark.parametrize("where", ["s.yaml", "s.json"])
def test_a_split_of_another_form_is_refused(content: bytes, where: str) -> None:
    with pytest.raises(SpecError, match=where):
        parse_split(content, ["a", "b"], where=where)
