"""The workflow templates as users reach them: by the form's REST call, a command line and pages of Argo's UI."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from real_cluster import (
    DATASET,
    SPEC,
    argo,
    eventually,
    kubectl,
    kubectl_json,
    phase,
    store_on_this_machine,
    submit,
    wait_for_end,
)

from automonai import api
from automonai.cli import main
from automonai.storage.opening import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

STUDY = "s3://automonai/studies/watched"
TRAINING = "s3://automonai/trainings/first"
FAULTY_DATASET = "s3://automonai/datasets/faulty"
SMALL = "{depth: 2, channels: 4}"
SPEC_OF_WATCHED = yaml.safe_load(SPEC) | {
    "name": "watched",
    "dataset": DATASET,
    "budget": {"iterations": 1, "min_epochs": 1, "max_epochs": 2, "eta": 2},
}
"""Two trials, one of them promoted, its two refits and the ensemble."""
ARGO_NAMESPACE, ARGO_SETTINGS = "argo", "workflow-controller-configmap"
NODE_ID = "workflows.argoproj.io/node-id"
FAULTS = {
    "budget": ({"budget": "1x"}, "parameter budget '1x': write a time like 1h or 20m"),
    "sampler": ({"sampler": "bhob"}, "parameter sampler is 'bhob'; expected one of bohb"),
    "parallel-runs": ({"parallel-runs": "many"}, "parameter parallel-runs is 'many'; expected a whole number"),
    "spec": ({"spec": "budget: {iterations: 2"}, "parameter spec is neither YAML nor JSON"),
    "space": ({"spec": "search: {space: {depht: 2}}"}, "there is no hyperparameter 'depht'"),
    "dataset": ({"dataset": "s3://automonai/datasets/none"}, "datasets/none: there is no dataset"),
    "cases": ({"dataset": FAULTY_DATASET}, "phantom_002: .*is no NIfTI image"),
}
"""Fault: what the form says, and what its first step answers."""


@pytest.fixture(scope="module")
def store(release: str) -> Iterator[str]:
    """Reach the release's store from here, and let Argo's server reach it; give the namespace.

    That server may run outside of the cluster, where services have no names: its settings get the store's address.
    """
    settings = kubectl_json("get", "configmap", "automonai-artifacts", "-n", release)
    address = kubectl_json("get", "service", "automonai-minio", "-n", release)["spec"]["clusterIP"]
    by_address = settings["data"]["automonai"].replace(f"automonai-minio.{release}.svc", address)
    with pytest.MonkeyPatch.context() as monkeypatch, store_on_this_machine(release, monkeypatch):
        monkeypatch.setenv("AUTOMONAI_NAMESPACE", release)
        _set_data("automonai-artifacts", release, {"automonai": by_address})
        yield release
        _set_data("automonai-artifacts", release, settings["data"])


@dataclass
class Watched:
    """A study that was started from a command line, and what was seen of it."""

    namespace: str
    workflow: str
    waiting: str = ""
    """What was told about a second workflow of the same study."""
    progress: dict[str, list[str]] = field(default_factory=lambda: {"search(0)": [], "refit(0)": []})
    """Of the controllers' nodes, each that was seen."""

    def node(self, name: str) -> dict[str, Any]:
        return node(self.namespace, self.workflow, name)


@pytest.fixture(scope="module")
def watched(store: str, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Start a study by 'automonai workflow submit' and look at it until it is over."""
    path = tmp_path_factory.mktemp("spec") / "study.yaml"
    path.write_text(yaml.safe_dump(SPEC_OF_WATCHED))
    assert main(["workflow", "submit", str(path)]) == 0
    (workflow,) = (item["metadata"]["name"] for item in _workflows(store) if _is_of_study(item, "watched"))
    seen = Watched(store, workflow)
    second = submit(store, {"dataset": DATASET, "name": "watched"})
    eventually(lambda: _message(store, second), "the second workflow says why it waits")
    seen.waiting = _message(store, second)
    kubectl("delete", "workflow", second, "-n", store)
    eventually(lambda: _has_ended(seen), "the study has ended", seconds=800, pause=1.0)
    return seen


@pytest.fixture(scope="module")
def answers(store: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Fill in the form with each of the faults; give the node of each workflow's first step once it has ended."""
    faulty = api.phantom(tmp_path_factory.mktemp("faulty") / "phantom", cases=8, shape=(24, 24, 20))
    (faulty / "imagesTr" / "phantom_002.nii.gz").write_bytes(b"no image")
    api.push_data(faulty, FAULTY_DATASET)
    workflows = {
        fault: submit(store, {"dataset": DATASET, "name": f"faulty-{fault}", **form})
        for fault, (form, _) in FAULTS.items()
    }
    for workflow in workflows.values():
        assert wait_for_end(store, workflow, seconds=300) == "Failed"
    return {fault: node(store, workflow, "check(0)") for fault, workflow in workflows.items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_form_fails_the_first_step_with_its_message(
    fault: str, answers: dict[str, dict[str, Any]]
) -> None:
    answer = answers[fault]
    assert answer["phase"] == "Failed"
    # At once, and not after the lines of Argo's own that surround a step's log.
    assert re.match(rf"main: Error \(exit code 2\): .{{0,60}}{FAULTS[fault][1]}", answer["message"]), answer["message"]


def test_a_fault_is_told_within_seconds(store: str, answers: dict[str, dict[str, Any]]) -> None:
    seconds = {fault: _seconds(store, answer) for fault, answer in answers.items()}
    assert max(seconds.values()) < 60, seconds  # all of them at once, on a machine that may have two cores


def test_a_second_workflow_of_a_study_waits_for_the_first(watched: Watched) -> None:
    assert "automonai-study-watched" in watched.waiting
    assert "lock" in watched.waiting


def test_the_progress_of_search_and_refit_is_their_runs_done_of_planned(watched: Watched) -> None:
    seen = {
        name: [tuple(int(number) for number in progress.split("/")) for progress in told]
        for name, told in watched.progress.items()
    }
    between = [done for told in seen.values() for done, planned in told if 0 < done < planned]
    assert between, f"only {watched.progress} was seen"
    assert {name: told[-1] for name, told in seen.items()} == {"search(0)": (3, 3), "refit(0)": (3, 3)}


def test_the_report_is_a_page_of_argos_server(watched: Watched) -> None:
    report = watched.node("report(0)")
    url = f"{os.environ['ARGO_URL']}/artifact-files/{watched.namespace}/workflows/{watched.workflow}"
    with urllib.request.urlopen(f"{url}/{report['id']}/outputs/report", timeout=30) as answer:  # noqa: S310
        assert answer.headers.get_content_type() == "text/html"
        page = answer.read().decode()
    assert "<svg" in page
    assert "watched" in page
    assert "<script" not in page


def test_a_steps_log_outlives_its_pod(watched: Watched) -> None:
    search = watched.node("search(0)")
    (log,) = (artifact for artifact in search["outputs"]["artifacts"] if artifact["name"] == "main-logs")
    text = open_store("s3://automonai").get(log["s3"]["key"]).decode()
    assert "trial-0000-epochs-0001-fold-0" in text


def test_a_study_in_a_bucket_is_looked_at_and_used_from_this_machine(
    watched: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = api.phantom(tmp_path / "new", cases=2, seed=5, shape=(24, 24, 20)) / "imagesTr"
    assert main(["status", STUDY]) == 0
    assert "the ensemble is chosen" in capsys.readouterr().out
    assert main(["runs", STUDY, "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)
    assert {run["state"] for run in runs} == {"complete"}
    assert main(["logs", STUDY, runs[0]["id"]]) == 0
    assert "validation_loss" in capsys.readouterr().out
    assert main(["report", STUDY]) == 0
    assert capsys.readouterr().out.strip() == f"{STUDY}/report.html"
    assert main(["predict", STUDY, str(images), "--output", str(tmp_path / "labels")]) == 0
    assert len(list((tmp_path / "labels").glob("*.nii.gz"))) == 2


def test_a_rendered_workflow_is_the_submitted_one(
    watched: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(SPEC_OF_WATCHED))
    assert main(["workflow", "render", str(path)]) == 0
    rendered = yaml.safe_load(capsys.readouterr().out)
    submitted = kubectl_json("get", "workflow", watched.workflow, "-n", watched.namespace)
    assert rendered["spec"] == submitted["spec"]


def test_a_training_without_a_search_and_its_predictions(store: str) -> None:
    form = {"dataset": DATASET, "output": TRAINING, "epochs": "2", "configuration": SMALL, "gpus": "1"}
    assert wait_for_end(store, submit(store, form, template="automonai-train"), seconds=300) == "Succeeded"
    form = {"study": TRAINING, "images": f"{DATASET}/imagesTr", "output": "s3://automonai/predictions/new"}
    assert wait_for_end(store, submit(store, form, template="automonai-predict"), seconds=300) == "Succeeded"
    labels = [key for key in open_store("s3://automonai/predictions/new").list() if key.endswith(".nii.gz")]
    assert len(labels) == 8


def test_faults_of_a_training_and_of_a_prediction_are_told_by_their_steps(store: str) -> None:
    form = {"dataset": DATASET, "output": "s3://automonai/trainings/none", "configuration": "{depht: 2}"}
    training = submit(store, {**form, "gpus": "0"}, template="automonai-train")
    form = {"study": "s3://automonai/trainings/none", "images": DATASET, "output": "s3://automonai/predictions/none"}
    prediction = submit(store, {**form, "gpus": "0"}, template="automonai-predict")
    for workflow, name, message in (
        (training, "train(0)", "parameter configuration: depht"),
        (prediction, "predict(0)", "s3://automonai/trainings/none: there is no study"),
    ):
        assert wait_for_end(store, workflow, seconds=300) == "Failed"
        assert f"(exit code 2): {message}" in node(store, workflow, name)["message"]


def test_what_is_written_for_gpus_is_a_number_or_nothing(store: str) -> None:
    """A submitter passes parameters: what would go on as part of the pod's patch makes no pod at all."""
    more = '0"}},"image":"localhost/another:1","env":[{"name":"A","value":"1"}],"x":{"y":{"z":"'
    form = {"study": TRAINING, "images": DATASET, "output": "s3://automonai/predictions/none", "gpus": more}
    workflow = submit(store, form, template="automonai-predict")
    assert wait_for_end(store, workflow, seconds=60) in ("Error", "Failed")
    pods = kubectl_json("get", "pods", "-n", store, "-l", f"workflows.argoproj.io/workflow={workflow}")["items"]
    assert pods == []


def test_all_works_where_users_may_start_installed_templates_only(watched: Watched, store: str) -> None:
    before = kubectl_json("get", "configmap", ARGO_SETTINGS, "-n", ARGO_NAMESPACE).get("data", {})
    _set_data(ARGO_SETTINGS, ARGO_NAMESPACE, before | {"workflowRestrictions": "templateReferencing: Strict\n"})
    try:
        eventually(lambda: _is_refused(store), "Argo refuses a workflow that brings its own template", pause=2.0)
        again = submit(store, {"name": "watched", "spec": yaml.safe_dump(SPEC_OF_WATCHED)})
        assert wait_for_end(store, again, seconds=300) == "Succeeded"
    finally:
        _set_data(ARGO_SETTINGS, ARGO_NAMESPACE, {"workflowRestrictions": None} | before)
        eventually(lambda: not _is_refused(store), "Argo takes other workflows again", pause=2.0)
    names = ("check(0)", "search(0)", "refit(0)", "report(0)", f"{again}.onExit(0)")
    assert {node(store, again, name)["phase"] for name in names} == {"Succeeded"}


def node(namespace: str, workflow: str, name: str) -> dict[str, Any]:
    """Return a workflow's node by the name that Argo's UI shows."""
    nodes = kubectl_json("get", "workflow", workflow, "-n", namespace)["status"]["nodes"].values()
    (found,) = (node for node in nodes if node["displayName"] == name)
    return dict(found)


def _has_ended(seen: Watched) -> bool:
    status = kubectl_json("get", "workflow", seen.workflow, "-n", seen.namespace).get("status", {})
    for entry in status.get("nodes", {}).values():
        told = seen.progress.get(entry["displayName"], [])
        if entry["displayName"] in seen.progress and told[-1:] != [entry.get("progress")]:
            told.append(entry["progress"])
    assert status.get("phase") not in ("Failed", "Error"), status
    return bool(status.get("phase") == "Succeeded")


def _is_refused(namespace: str) -> bool:
    """Whether Argo refuses a workflow with a template of its own; it only waits, and is deleted."""
    manifest = {
        "metadata": {"generateName": "own-template-"},
        "spec": {"entrypoint": "wait", "templates": [{"name": "wait", "suspend": {}}]},
    }
    name = argo("POST", namespace, {"workflow": manifest})["metadata"]["name"]
    eventually(lambda: phase(namespace, name), "a workflow is looked at")
    found = phase(namespace, name)
    kubectl("delete", "workflow", name, "-n", namespace)
    return bool(found == "Error")


def _set_data(configmap: str, namespace: str, data: dict[str, str | None]) -> None:
    kubectl("patch", "configmap", configmap, "-n", namespace, "--type", "merge", "-p", json.dumps({"data": data}))


def _workflows(namespace: str) -> list[dict[str, Any]]:
    return list(kubectl_json("get", "workflows", "-n", namespace)["items"])


def _is_of_study(workflow: dict[str, Any], study: str) -> bool:
    parameters = workflow["spec"].get("arguments", {}).get("parameters", [])
    return {"name": "name", "value": study} in parameters


def _message(namespace: str, workflow: str) -> str:
    return str(kubectl_json("get", "workflow", workflow, "-n", namespace).get("status", {}).get("message", ""))


def _seconds(namespace: str, answer: dict[str, Any]) -> float:
    """Return how long the program in a node's pod took, without the pod's start."""
    pods = kubectl_json("get", "pods", "-n", namespace)["items"]
    (pod,) = (pod for pod in pods if pod["metadata"].get("annotations", {}).get(NODE_ID) == answer["id"])
    (main,) = (status for status in pod["status"]["containerStatuses"] if status["name"] == "main")
    ended = main["state"]["terminated"]
    began, over = (datetime.fromisoformat(ended[field]) for field in ("startedAt", "finishedAt"))
    return (over - began).total_seconds()
