"""What a user writes into the form of a study becomes its spec."""

from __future__ import annotations

import pytest
import yaml

from automonai.errors import SpecError
from automonai.parameters import StudyParameters, study_spec

FORM = StudyParameters(
    dataset="s3://b/datasets/brain", name="brain", budget="1h", sampler="bohb", parallel_runs="2", gpus_per_run="1"
)


def form(**changed: str) -> StudyParameters:
    return FORM.model_copy(update=changed)


def test_a_form_becomes_a_spec() -> None:
    spec = study_spec(form(budget="30 epochs", sampler="hyperband", parallel_runs="4"), "s3://b")
    assert spec.name == "brain"
    assert spec.store == "s3://b/studies"
    assert (spec.budget.epochs, spec.budget.time, spec.budget.iterations) == (30, None, None)
    assert spec.search.sampler.value == "hyperband"
    assert spec.execution.max_parallel_runs == 4


@pytest.mark.parametrize(("text", "field", "value"), [("1h", "time", 3600.0), ("3 iterations", "iterations", 3)])
def test_a_budget_is_a_time_epochs_or_iterations(text: str, field: str, value: float) -> None:
    assert getattr(study_spec(form(budget=text), "s3://b").budget, field) == value


def test_what_a_whole_spec_states_goes_before_the_form() -> None:
    whole = {
        "name": "other",
        "dataset": "s3://b/datasets/other",
        "store": "./elsewhere",
        "budget": {"iterations": 3, "max_epochs": 27},
        "search": {"seed": 7, "sampler": "grid"},
        "execution": {"max_parallel_runs": 8},
    }
    spec = study_spec(form(spec=yaml.safe_dump(whole)), "s3://b")
    assert (spec.name, spec.dataset, spec.store) == ("other", "s3://b/datasets/other", "s3://b/studies")
    assert (spec.budget.iterations, spec.budget.time, spec.budget.max_epochs) == (3, None, 27)
    assert (spec.search.seed, spec.search.sampler.value, spec.execution.max_parallel_runs) == (7, "grid", 8)


def test_the_form_fills_what_a_whole_spec_leaves_open() -> None:
    spec = study_spec(form(spec="budget: {max_epochs: 27}\nsearch: {seed: 7}\ndataset: ./local\n"), "s3://b")
    assert (spec.budget.time, spec.budget.max_epochs, spec.search.sampler.value) == (3600.0, 27, "bohb")
    assert spec.dataset == "s3://b/datasets/brain"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"budget": "soon"}, "parameter budget 'soon': write a time"),
        ({"budget": ""}, "parameter budget is empty"),
        ({"sampler": "magic"}, "parameter sampler is 'magic'; expected one of bohb, hyperband"),
        ({"parallel_runs": "0"}, "parameter parallel-runs is '0'; expected a whole number of at least 1"),
        ({"parallel_runs": "many"}, "parameter parallel-runs is 'many'"),
        ({"name": ""}, "parameter name is empty"),
        ({"name": "My Brain"}, "name: must be lower-case letters, digits and hyphens"),
        ({"dataset": ""}, "parameter dataset is empty"),
        ({"dataset": "./folder"}, "dataset ./folder: expected s3://BUCKET/datasets/NAME"),
        ({"spec": "["}, "parameter spec is neither YAML nor JSON"),
        ({"spec": "- 1"}, "parameter spec: expected a mapping of settings, found list"),
        ({"spec": "budget: 3"}, "budget: Input should be"),
        ({"spec": "surch: {}"}, "surch: there is no such setting"),
    ],
)
def test_a_faulty_parameter_is_named_with_what_was_expected(changed: dict[str, str], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        study_spec(form(**changed), "s3://b")
    assert words in str(caught.value)
