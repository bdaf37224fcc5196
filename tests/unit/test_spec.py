import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automonai.errors import SpecError
from automonai.spec import DEFAULT_SPACE, StudySpec, load_spec, parse_duration, parse_spec

MINIMAL = {"name": "a", "dataset": "data", "budget": {"epochs": 90}}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90),
        (1.5, 1.5),
        ("90", 90),
        ("45s", 45),
        ("20m", 1200),
        ("20min", 1200),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1 h 30 m", 5400),
        ("0.5H", 1800),
        ("2d", 172_800),
    ],
)
def test_a_duration_is_read_in_seconds(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "h", "1x", "30m1h", "-5", "0", "1h 30", "nan", 0, -1, float("inf"), True, [1], 10**400]
)
def test_what_is_no_duration_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@given(st.integers(0, 9), st.integers(0, 99), st.integers(0, 99), st.integers(1, 99))
def test_the_parts_of_a_duration_add_up(days: int, hours: int, minutes: int, seconds: int) -> None:
    text = f"{days}d{hours}h{minutes}m{seconds}s"
    assert parse_duration(text) == 86400 * days + 3600 * hours + 60 * minutes + seconds


def test_the_default_space_is_the_source_works_and_two_more() -> None:
    assert list(parse_spec(MINIMAL).search.space) == list(DEFAULT_SPACE)
    assert len(DEFAULT_SPACE) == 10


def test_a_spec_survives_json() -> None:
    spec = parse_spec({**MINIMAL, "search": {"space": {**DEFAULT_SPACE, "depth": 3}}})
    assert StudySpec.model_validate_json(spec.model_dump_json()) == spec
    assert parse_spec(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {}}, "budget: .*at least one of iterations, epochs and time"),
        ({"budget": {"epochs": 9, "min_epochs": 50, "max_epochs": 20}}, "min_epochs .50. is above max_epochs"),
        ({"budget": {"epochs": 9, "eta": 1}}, r"budget.eta: .*greater than or equal to 2 \(found 1\)"),
        ({"budget": {"time": "soon"}}, "budget.time: .*'soon' is not a duration"),
        ({"name": "My Study"}, "name: must be lower-case letters"),
        ({"bugdet": 1}, "bugdet: there is no such setting"),
        ({"version": 2}, "version: Input should be 1"),
    ],
)
def test_a_broken_spec_names_its_field(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec({**MINIMAL, **changes})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "integer", "low": 5, "high": 2}, r"integer: .*low \(5\) must be below high \(2\)"),
        ({"type": "real", "low": 0, "high": 1, "log": True}, "real: .*must start above 0, not at 0"),
        ({"type": "real", "low": 0, "high": float("inf")}, "real: .*must be finite"),
        ({"type": "categorical", "values": ["dice"]}, "categorical.values: .*at least 2 items"),
        ({"type": "integr", "low": 1, "high": 2}, "expected one fixed value, or a mapping with type: integer"),
        ({"low": 1, "high": 2}, "expected one fixed value, or a mapping with type: integer"),
        ([1, 2], "expected one fixed value"),
        (None, "expected one fixed value"),
    ],
)
def test_a_broken_entry_of_the_space_gives_one_message_about_what_was_meant(entry: object, message: str) -> None:
    with pytest.raises(SpecError, match=rf"spec: search.space.depth[.:] ?{message}") as caught:
        parse_spec({**MINIMAL, "search": {"space": {"depth": entry}}})
    assert ";" not in str(caught.value).replace("; to fix", "")


def test_every_broken_field_is_named_at_once() -> None:
    with pytest.raises(SpecError, match="split.folds.*; budget.eta") as caught:
        parse_spec({**MINIMAL, "split": {"folds": 1}, "budget": {"epochs": 9, "eta": 1}})
    assert caught.value.__cause__ is not None


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_read_and_overrides_replace_what_it_says(tmp_path: Path) -> None:
    file = write(tmp_path / "s.yaml", "name: a\ndataset: d\nbudget: {epochs: 90}\nsearch: {seed: 1}\n")
    overrides = ("search.seed=8", "search.space.depth=3", "budget.time=1h", "refit.members=2")
    spec = load_spec(file, overrides)
    assert (spec.search.seed, spec.search.space, spec.budget.time) == (8, {"depth": 3}, 3600)
    assert spec.refit.members == 2


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("- 1", (), "expected a mapping of settings, found list"),
        ("", (), "expected a mapping of settings, found NoneType"),
        ("a: [", (), "is neither YAML nor JSON"),
        ("name: a", ("search.seed",), "write it as section.field=value"),
        ("name: a", ("name.x=1",), "name is a single value, it has no fields"),
        ("name: a", ("search.seed=[",), "the value is neither YAML nor JSON"),
    ],
)
def test_a_file_or_override_that_cannot_be_read_says_why(
    tmp_path: Path, text: str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        load_spec(write(tmp_path / "s.yaml", text), overrides)


def test_a_missing_file_and_one_that_is_no_text_say_so(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        load_spec(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="cannot be read: .*invalid start byte"):
        load_spec(tmp_path / "binary.yaml")


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 5000])
def test_what_python_cannot_hold_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.yaml").write_text(f"name: {text}")
    with pytest.raises(SpecError, match="study.yaml is neither YAML nor JSON"):
        load_spec(tmp_path / "study.yaml")
    (tmp_path / "study.yaml").write_text("name: a\n")
    with pytest.raises(SpecError, match="search.seed=.*: the value is neither YAML nor JSON"):
        load_spec(tmp_path / "study.yaml", (f"search.seed={text}",))


def test_losses_of_different_kinds_are_not_compared() -> None:
    document = {"name": "test", "dataset": "d", "budget": {"iterations": 1}, "search": {"objective": "loss"}}
    with pytest.raises(SpecError, match=r"search.objective is loss, and search.space.loss varies"):
        parse_spec(document)
    document["search"] = {
        "objective": "loss",
        "space": {"loss": "dice", "depth": {"type": "integer", "low": 2, "high": 3}},
    }
    assert parse_spec(document).search.objective == "loss"


def test_a_json_file_may_be_indented_with_tabs(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    document = {"name": "test", "dataset": "d", "budget": {"iterations": 1}}
    path.write_text(json.dumps(document, indent="\t"))
    assert load_spec(path).name == "test"
    path.write_text("name: test")
    with pytest.raises(SpecError, match="is no JSON"):
        load_spec(path)


def test_a_place_in_the_home_folder_is_meant_as_a_shell_means_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    document = {"name": "test", "dataset": "~/data", "store": "~/studies", "budget": {"iterations": 1}}
    spec = parse_spec(document)
    assert (spec.dataset, spec.store) == ("/home/me/data", "/home/me/studies")
    assert parse_spec(document | {"dataset": "s3://bucket/~a"}).dataset == "s3://bucket/~a"


def test_a_section_that_a_file_leaves_empty_may_be_set(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: a\ndataset: d\nbudget: {time: 1h}\nexecution:\n")
    assert load_spec(tmp_path / "study.yaml", ("execution.threads=2",)).execution.threads == 2


@pytest.mark.parametrize(
    ("sampler", "epochs", "is_enough"),
    [("bohb", 7, True), ("bohb", 6, False), ("grid", 200, True), ("random", 199, False)],
)
def test_a_budget_of_epochs_suffices_for_a_run(sampler: str, epochs: int, is_enough: bool) -> None:
    document = {"name": "a", "dataset": "d", "search": {"sampler": sampler}, "budget": {"epochs": epochs}}
    if is_enough:
        assert parse_spec(document).budget.epochs == epochs
        return
    with pytest.raises(SpecError, match=rf"budget.epochs \({epochs}\) does not suffice for one run, which takes"):
        parse_spec(document)


@pytest.mark.parametrize(
    "change",
    [
        {"budget": {"iterations": True}},
        {"execution": {"max_parallel_runs": True}},
        {"search": {"seed": True}},
        {"training": {"validation_cases": True}},
        {"refit": {"tolerance": True}},
        {"split": {"test": False}},
    ],
)
def test_true_and_false_are_no_numbers(change: dict[str, dict[str, bool]]) -> None:
    ((section, fields),) = change.items()
    ((field, value),) = fields.items()
    with pytest.raises(SpecError, match=rf"{section}.*{field}.* than {str(value).lower()}"):
        parse_spec({**MINIMAL, **change})


def test_true_and_false_are_what_a_switch_wants() -> None:
    assert parse_spec({**MINIMAL, "execution": {"compile": True}}).execution.compile is True
