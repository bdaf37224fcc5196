from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from automonai.domain.splitting import make_split, read_split
from automonai.errors import SpecError

IDS = [f"case_{number:03d}" for number in range(20)]


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
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
    ("name", "dump"), [("s.json", lambda d: json.dumps(d, indent="\t")), ("s.yaml", yaml.safe_dump)]
)
def test_a_users_split_is_read_from_json_or_yaml(tmp_path: Path, name: str, dump: object) -> None:
    document = {"test": IDS[:2], "folds": [IDS[2:10], IDS[10:]]}
    (tmp_path / name).write_text(dump(document))  # type: ignore[operator]
    split = read_split(tmp_path / name, IDS)
    assert split.test == tuple(IDS[:2])
    assert split.folds == (tuple(IDS[2:10]), tuple(IDS[10:]))


def test_a_users_split_may_leave_out_the_test_set(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("folds: [[a], [b]]")
    assert read_split(tmp_path / "s.yaml", ["a", "b"]).test == ()


def test_unknown_repeated_and_missing_ids_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("test: [a]\nfolds: [[a, b], [x]]")
    with pytest.raises(SpecError) as caught:
        read_split(tmp_path / "s.yaml", ["a", "b", "c"])
    for part in ("unknown case: x", "listed more than once: a", "missing from the split: c"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "folds: 3", "folds: [[a]]", "folds: [[a], []]", "folds: [[1], [2]]", "fold: [[a], [b]]", "{", "test: a"],
)
def test_a_split_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(SpecError, match=r"s\.yaml"):
        read_split(tmp_path / "s.yaml", ["a", "b"])


def test_a_split_file_that_is_missing_or_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(b"\xff{")
    for name in ("s.json", "none.json"):
        with pytest.raises(SpecError, match=name):
            read_split(tmp_path / name, ["a"])
