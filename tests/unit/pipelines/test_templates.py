from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from automonai.cluster_steps import StudyParameters
from automonai.spec import SamplerName
from pipelines import predict_template, study_template, study_workflow, train_template
from pipelines.__main__ import documents
from pipelines.cron import nightly_study
from pipelines.study import INSTANCE_LABEL

Template = dict[str, Any]


@pytest.fixture(scope="module")
def study() -> Template:
    template: Template = study_template().to_dict()
    return template


def steps(template: Template) -> dict[str, Template]:
    return {entry["name"]: entry for entry in template["spec"]["templates"] if "container" in entry}


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_what_is_written_is_what_hera_makes(path: Path) -> None:
    assert path.read_text() == documents()[path], "stale: run 'python -m pipelines'"


def test_the_form_has_the_parameters_of_the_contract(study: Template) -> None:
    parameters = study["spec"]["arguments"]["parameters"]
    assert study["metadata"]["name"] == "automonai-study"
    assert [parameter["name"] for parameter in parameters] == [
        "dataset", "name", "budget", "sampler", "parallel-runs", "gpus-per-run", "spec",
    ]  # fmt: skip
    assert all(parameter["description"] and "value" in parameter for parameter in parameters)


def test_the_form_offers_every_sampler(study: Template) -> None:
    sampler = next(entry for entry in study["spec"]["arguments"]["parameters"] if entry["name"] == "sampler")
    assert sampler["enum"] == [name.value for name in SamplerName]
    assert sampler["value"] in sampler["enum"]


def test_every_parameter_of_the_form_is_one_that_the_steps_read(study: Template) -> None:
    names = {parameter["name"].replace("-", "_") for parameter in study["spec"]["arguments"]["parameters"]}
    assert names == set(StudyParameters.model_fields)


def test_the_steps_come_one_after_the_other_and_the_exit_step_always(study: Template) -> None:
    entry = next(entry for entry in study["spec"]["templates"] if entry["name"] == study["spec"]["entrypoint"])
    assert [[step["name"] for step in group] for group in entry["steps"]] == [
        ["check"],
        ["search"],
        ["refit"],
        ["report"],
    ]
    assert study["spec"]["onExit"] == "finish"


def test_only_the_steps_that_touch_jobs_run_as_the_controller(study: Template) -> None:
    accounts = {name: entry["serviceAccountName"] for name, entry in steps(study).items()}
    assert accounts == {
        "check": "@@stepAccount@@",
        "search": "@@controllerAccount@@",
        "refit": "@@controllerAccount@@",
        "report": "@@stepAccount@@",
        "finish": "@@controllerAccount@@",
    }


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("check", "[-1, 137, 143]"),
        ("search", "[-1, 75, 137, 143]"),
        ("refit", "[-1, 75, 137, 143]"),
        ("report", "[-1, 75, 137, 143]"),
        ("finish", "[-1, 75, 137, 143]"),
    ],
)
def test_a_step_is_repeated_after_a_disruption_and_after_the_check_when_a_service_was_away(
    study: Template, name: str, codes: str
) -> None:
    retry = steps(study)[name]["retryStrategy"]
    assert retry["retryPolicy"] == "Always"
    repeated, _, vain = retry["expression"].partition(" && ")
    assert repeated == f"(lastRetry.status == 'Error' || asInt(lastRetry.exitCode) in {codes})"
    assert vain == f"!(lastRetry.message matches '{IN_VAIN}')"


IN_VAIN = "^[a-z]+: OOMKilled|^Error applying PodSpecPatch|^pods .[a-z0-9.-]+. is forbidden: violates PodSecurity"


@pytest.mark.parametrize(
    ("message", "is_in_vain"),
    [
        ("main: OOMKilled (exit code 137)", True),
        ("main: OOMKilled (exit code 137): the log's last lines", True),
        ("wait: OOMKilled (exit code 137)", True),
        ("Error applying PodSpecPatch", True),
        ('pods "brain-x7k2p-check-42" is forbidden: violates PodSecurity "restricted:latest": hostPath volumes', True),
        ('pods "brain-x7k2p-check-42" is forbidden: exceeded quota: limit', False),
        ("main: Error (exit code 137)", False),
        ("main: Error (exit code 75): Error applying PodSpecPatch", False),
        ("main: Error (exit code 143): run t0001 is lost:\nmain: OOMKilled (exit code 137)", False),
        ("Pod was rejected: Node has insufficient memory", False),
        ("", False),
    ],
)
def test_what_argo_says_of_a_pod_that_would_fail_again_is_told_from_all_else(message: str, is_in_vain: bool) -> None:
    assert bool(re.search(IN_VAIN, message)) is is_in_vain  # Go's and Python's regexps agree on this one


def test_a_release_decides_who_the_pods_run_as() -> None:
    for path, text in documents().items():
        if path.name.startswith("automonai-"):
            spec = yaml.safe_load(text)["spec"]
            assert spec["securityContext"] == "@@podSecurityContext@@"
            contexts = [entry["container"]["securityContext"] for entry in spec["templates"] if "container" in entry]
            assert not [context for context in contexts if "runAsUser" in context]


def test_one_study_has_one_workflow_at_a_time(study: Template) -> None:
    assert study["spec"]["synchronization"] == {"mutexes": [{"name": "automonai-study-{{workflow.parameters.name}}"}]}


def test_the_report_is_an_html_artifact_that_the_ui_shows(study: Template) -> None:
    (artifact,) = steps(study)["report"]["outputs"]["artifacts"]
    assert artifact["archive"] == {"none": {}}
    assert artifact["s3"]["key"].endswith(".html")


@pytest.mark.parametrize("text", documents().values(), ids=[path.name for path in documents()])
def test_a_mark_is_a_whole_scalar(text: str) -> None:
    assert re.findall(r"@@\w+@@", text) == re.findall(r"(?<=')@@\w+@@(?=')", text)


@pytest.mark.parametrize("text", documents().values(), ids=[path.name for path in documents()])
def test_every_mark_is_one_that_the_chart_replaces(text: str) -> None:
    chart = (Path(__file__).parents[3] / "charts" / "automonai" / "templates" / "_helpers.tpl").read_text()
    for mark in set(re.findall(r"@@(\w+)@@", text)):
        assert f'"{mark}" ' in chart


@pytest.mark.parametrize("make", [predict_template, train_template])
def test_gpu_pods_run_the_trainer(make: Any) -> None:
    (step,) = steps(make().to_dict()).values()
    assert step["container"]["image"] == "@@trainerImage@@"
    assert step["podSpecPatch"] == "@@trialPodPatch@@"


def test_a_submitted_study_states_nothing_but_the_templates_parameters() -> None:
    workflow = study_workflow(name="hippocampus", spec="name: hippocampus\n").to_dict()
    assert workflow["spec"] == {
        "arguments": {
            "parameters": [
                {"name": "name", "value": "hippocampus"},
                {"name": "spec", "value": "name: hippocampus\n"},
            ]
        },
        "workflowTemplateRef": {"name": "automonai-study"},
    }


@pytest.mark.parametrize(("instance_id", "labels"), [("", None), ("imaging", {INSTANCE_LABEL: "imaging"})])
def test_a_submitted_study_is_for_the_argo_of_that_instance_id(instance_id: str, labels: dict[str, str] | None) -> None:
    metadata = study_workflow(name="n", spec="", instance_id=instance_id).to_dict()["metadata"]
    assert metadata.get("labels") == labels


def test_the_nightly_example_passes_parameters_that_the_template_has(study: Template) -> None:
    known = {parameter["name"] for parameter in study["spec"]["arguments"]["parameters"]}
    passed = nightly_study().to_dict()["spec"]["workflowSpec"]["arguments"]["parameters"]
    assert {parameter["name"] for parameter in passed} <= known
