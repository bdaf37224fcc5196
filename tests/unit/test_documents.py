"""YAML as people mean it: numbers are numbers, and times and dates are texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automonai.documents import dump_yaml, parse_file, parse_yaml
from automonai.errors import SpecError

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False),
    st.text("0123456789eE+-.:_abonfty", max_size=12),
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("[1e-4, 1.5e3]", [0.0001, 1500.0]),
        ("010", 10),
        ("-3", -3),
        (".5", 0.5),
        ("1:30", "1:30"),
        ("2021-01-05", "2021-01-05"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("", None),
        ('"2024"', "2024"),
    ],
)
def test_a_scalar_is_what_it_looks_like(text: str, value: object) -> None:
    found = parse_yaml(text, where="here")
    assert (found, type(found)) == (value, type(value))


@given(st.dictionaries(st.text("abc", min_size=1), st.one_of(SCALARS, st.lists(SCALARS, max_size=3)), max_size=4))
def test_what_is_written_is_read_as_it_was(document: dict[str, object]) -> None:
    assert parse_yaml(dump_yaml(document), where="here") == document


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("a.yaml", "budget: {iterations: 1}\nname: a\nbudget: {time: 1h}\n", "budget"),
        ("a.yaml", "budget: {time: 1h, time: 2h}\n", "time"),
        ("a.json", '{"depth": 3, "depth": 4}', "depth"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(name: str, text: str, key: str) -> None:
    with pytest.raises(SpecError, match=f"^{name}: '{key}' is given twice"):
        parse_file(text, name=name)


@pytest.mark.parametrize("text", ["name: {{ study }}", "{[a]: 1}", "? [1, 2]\n: 3"])
def test_a_key_that_is_no_text_is_told(text: str) -> None:
    with pytest.raises(SpecError, match="is neither YAML nor JSON"):
        parse_yaml(text, where="a")


def test_what_was_merged_may_be_merged_again() -> None:
    text = "base: &b {a: 1}\nx: {mid: &m {<<: *b, a: 2}}\ntop: {<<: *m}\n"
    assert parse_yaml(text, where="a") == {"base": {"a": 1}, "x": {"mid": {"a": 2}}, "top": {"a": 2}}


def test_a_merged_mapping_may_be_overridden() -> None:
    text = "base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}\n"
    assert parse_file(text, name="a.yaml") == {"base": {"a": 1, "b": 2}, "more": {"a": 1, "b": 3}}
