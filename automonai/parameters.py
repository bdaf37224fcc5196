"""A study's form: from the parameters of a workflow, which are texts, to the StudySpec that they mean."""

from __future__ import annotations

import shlex

from pydantic import ValidationError

from automonai.documents import parse_yaml
from automonai.domain.configuration import Configuration
from automonai.domain.records import Record
from automonai.errors import SpecError
from automonai.spec import SamplerName, StudySpec, explain, parse_limit, parse_spec
from automonai.storage.opening import is_remote, join_location

STUDIES = "studies"


class StudyParameters(Record):
    """A workflow's parameters as its form gives them: texts, empty where nothing was said."""

    dataset: str = ""
    name: str = ""
    budget: str = ""
    """A time, epochs or iterations."""
    sampler: str = ""
    parallel_runs: str = ""
    gpus_per_run: str = ""
    spec: str = ""
    """A whole StudySpec as YAML; what it states goes before the others."""


def study_spec(parameters: StudyParameters, store: str) -> StudySpec:
    """Return the spec that a workflow's parameters mean.

    Args:
        parameters: As the form gives them.
        store: Bucket or folder; the study lies in its `studies/`, whatever the spec says.

    Raises:
        SpecError: Naming the parameter or the spec's field that is wrong.
    """
    if not store:
        raise SpecError("AUTOMONAI_STORE is not set: it names the bucket of datasets and studies, as s3://BUCKET")
    document = _parsed(parameters.spec)
    _fill(document, "name", parameters.name)
    dataset = document.get("dataset")
    if not dataset or (parameters.dataset and not is_remote(str(dataset))):
        document["dataset"] = parameters.dataset  # a spec that was made on one machine may name its folder
    document["store"] = join_location(store, STUDIES)
    _fill_sections(document, parameters)
    for field in ("name", "dataset"):
        if not document.get(field):
            raise SpecError(f"parameter {field} is empty; state it, or write it into the parameter spec")
    spec = parse_spec(document, where="parameters")
    if is_remote(store):
        refuse_local_dataset(spec)
    return spec


def refuse_local_dataset(spec: StudySpec) -> None:
    """Refuse a spec whose dataset a cluster cannot reach.

    Raises:
        SpecError: If it is not in a bucket.
    """
    if not is_remote(spec.dataset):
        raise SpecError(
            f"dataset {spec.dataset}: expected s3://BUCKET/datasets/NAME; put it there by"
            f" 'automonai data push {shlex.quote(spec.dataset)} s3://BUCKET/datasets/NAME'"
        )


def parse_configuration(document: object, *, where: str) -> Configuration:
    """Return the configuration of a parsed document, None for an empty one; what it does not name is the standard's.

    Raises:
        SpecError: Naming each hyperparameter that is wrong.
    """
    try:
        return Configuration.model_validate(document if document is not None else {})
    except ValidationError as error:
        raise SpecError(f"{where}: {explain(error)}") from error


def _parsed(text: str) -> dict[str, object]:
    document = parse_yaml(text, where="parameter spec") or {}
    if not isinstance(document, dict):
        raise SpecError(f"parameter spec: expected a mapping of settings, found {type(document).__name__}")
    return document


def _fill_sections(document: dict[str, object], parameters: StudyParameters) -> None:
    """Put what the form says where the spec says nothing."""
    search = _section(document, "search")
    if parameters.sampler:
        allowed = [sampler.value for sampler in SamplerName]
        if parameters.sampler not in allowed:
            raise SpecError(f"parameter sampler is '{parameters.sampler}'; expected one of {', '.join(allowed)}")
        _fill(search, "sampler", parameters.sampler)
    execution = _section(document, "execution")
    if parameters.parallel_runs:
        parallel = whole_number("parallel-runs", parameters.parallel_runs, at_least=1)
        _fill(execution, "max_parallel_runs", parallel)
    budget = _section(document, "budget")
    if parameters.budget:
        try:
            limit = parse_limit(parameters.budget)
        except SpecError as error:
            raise SpecError(f"parameter {error}") from error
        has_limit = any(budget.get(field) is not None for field in ("time", "epochs", "iterations"))
        if not has_limit:
            budget |= {"time": limit.time, "epochs": limit.epochs, "iterations": limit.iterations}
    if not parameters.budget and not budget:
        raise SpecError("parameter budget is empty; write a time like 1h or 20m, '30 epochs' or '3 iterations'")


def _section(document: dict[str, object], name: str) -> dict[str, object]:
    """Return a copy of a section, put into the document in its place; what is no section is left to `parse_spec`."""
    section = document.get(name)
    if section is not None and not isinstance(section, dict):
        return {}
    document[name] = copied = dict(section or {})
    return copied


def _fill(document: dict[str, object], field: str, value: object) -> None:
    if value and document.get(field) is None:
        document[field] = value


def whole_number(parameter: str, text: str, *, at_least: int) -> int:
    """Return a parameter's number.

    Raises:
        SpecError: If it is none, or too small.
    """
    if not text.strip().isdecimal() or int(text) < at_least:
        raise SpecError(f"parameter {parameter} is '{text}'; expected a whole number of at least {at_least}")
    return int(text)
