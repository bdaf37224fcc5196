"""The Job of a run, as a golden file and rule by rule. AUTOMONAI_RENEW_GOLDEN=1 writes the golden file anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from automonai.domain.configuration import Configuration
from automonai.domain.request import EnsembleRequest, Member, TrainRequest
from automonai.domain.run import Purpose, Run
from automonai.errors import SpecError
from automonai.execution.jobs import (
    JobTemplate,
    StudyHandle,
    Toleration,
    WorkflowOwner,
    job_manifest,
    job_name,
    load_template,
    study_id,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "cluster"
STUDY = StudyHandle(name="hippocampus", id="0123456789", location="s3://automonai/studies/hippocampus")
OWNER = WorkflowOwner(name="hippocampus-x7k2p", uid="5f0c")
FULL = JobTemplate(
    image="registry.example/automonai-trainer@sha256:00",
    image_pull_secrets=("registry",),
    service_account="trial",
    user_id=65532,
    labels={"team": "radiology"},
    annotations={"example.org/cost-centre": "7"},
    requests={"cpu": "4", "memory": "16Gi"},
    limits={"memory": "32Gi"},
    gpus_per_run=2,
    scratch="20Gi",
    cache={"persistentVolumeClaim": {"claimName": "automonai-cache"}},
    node_selector={"gpu": "a100"},
    tolerations=(Toleration(key="spot", operator="Exists", effect="NoSchedule"),),
    affinity={"nodeAffinity": {}},
    priority_class="low",
    runtime_class="nvidia",
    kueue_queue="research",
    env={"OMP_NUM_THREADS": "4"},
    more_env=({"name": "NODE_ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},),
    env_from_secrets=("automonai-s3",),
    ca_secret="store-ca",
    metrics_port=9109,
    active_deadline_seconds=86400,
)


def request(trial: int = 7, attempt: int = 0, **run: object) -> TrainRequest:
    return TrainRequest(
        run=Run.model_validate({"trial": trial, "budget_epochs": 9, **run}),
        configuration=Configuration(),
        seed=1,
        attempt=attempt,
    )


def manifest(template: JobTemplate, owner: WorkflowOwner | None = OWNER) -> dict[str, Any]:
    return job_manifest(request(), template, study=STUDY, owner=owner)


@pytest.mark.parametrize(("gpus", "hidden"), [(0, True), (1, False), (4, False)])
def test_a_run_that_asks_for_no_gpu_sees_none(gpus: int, hidden: bool) -> None:
    made = manifest(FULL.model_copy(update={"gpus_per_run": gpus}))
    (container,) = made["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert ("NVIDIA_VISIBLE_DEVICES" in environment) is hidden
    assert (environment.get("CUDA_VISIBLE_DEVICES") == "") is hidden


@pytest.mark.parametrize(("name", "template"), [("full", FULL), ("least", JobTemplate(image="trainer:1"))])
def test_a_job_is_the_golden_file(name: str, template: JobTemplate) -> None:
    path = GOLDEN / f"job-{name}.yaml"
    made = manifest(template)
    if os.environ.get("AUTOMONAI_RENEW_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(made, sort_keys=False))
    assert made == yaml.safe_load(path.read_text())


def test_a_name_is_the_same_for_the_same_study_run_and_attempt_and_for_nothing_else() -> None:
    other = STUDY.model_copy(update={"id": "9876543210"})
    requests = [request(), request(attempt=1), request(trial=8), request(fold=1), request(budget_epochs=27)]
    requests.append(request(purpose=Purpose.REFIT))
    names = [job_name(STUDY, one) for one in requests] + [job_name(other, request())]
    assert len(set(names)) == len(names)
    assert job_name(STUDY, request()) == names[0]
    assert names[0].startswith("hippocampus-t0007-e0009-f0-a0-")


def test_names_fit_whatever_the_study_is_called() -> None:
    study = STUDY.model_copy(update={"name": "a" * 19 + "-" + "b" * 20})
    member = Member(run_id="x", trial=0, fold=0, checkpoint="x")
    ensemble = EnsembleRequest(candidates=(member,), attempt=12)
    for one in (request(trial=123456, attempt=12, budget_epochs=10000), ensemble):
        name = job_name(study, one)
        assert len(name) <= 63
        assert "--" not in name


def test_a_study_begun_anew_has_another_id() -> None:
    assert study_id("hippocampus", 1.0) == study_id("hippocampus", 1.0) != study_id("hippocampus", 2.0)


def test_without_a_user_id_the_platform_gives_one_and_the_rest_stays() -> None:
    context = manifest(JobTemplate(image="trainer:1"))["spec"]["template"]["spec"]["securityContext"]
    assert context.keys() == {"runAsNonRoot", "fsGroupChangePolicy", "seccompProfile"}
    with pytest.raises(ValidationError, match="user_id"):
        JobTemplate(image="trainer:1", user_id=0)


def test_further_environment_comes_last_as_it_is() -> None:
    (container,) = manifest(FULL)["spec"]["template"]["spec"]["containers"]
    assert container["env"][-1] == FULL.more_env[0]


def test_no_gpu_is_asked_for_on_a_cpu() -> None:
    container = manifest(JobTemplate(image="trainer:1", gpus_per_run=0))["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"] == {}


def test_the_choice_of_the_ensemble_holds_one_gpu_and_says_so() -> None:
    ensemble = EnsembleRequest(candidates=(Member(run_id="x", trial=0, fold=0, checkpoint="x"),))
    for one, held in ((request(), "2"), (ensemble, "1")):
        made: dict[str, Any] = job_manifest(one, FULL, study=STUDY, owner=OWNER)
        container = made["spec"]["template"]["spec"]["containers"][0]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == held
        assert {"name": "AUTOMONAI_GPUS", "value": held} in container["env"]


def test_kueue_labels_the_job_and_not_its_pod() -> None:
    made = manifest(FULL)
    label = "kueue.x-k8s.io/queue-name"
    assert made["metadata"]["labels"][label] == "research"
    assert label not in made["spec"]["template"]["metadata"]["labels"]


@pytest.mark.parametrize(
    ("one", "rung"),
    [
        (request(), "9"),
        (request(purpose=Purpose.REFIT), "refit"),
        (EnsembleRequest(candidates=(Member(run_id="x", trial=0, fold=0, checkpoint="x"),)), "ensemble"),
    ],
)
def test_a_pod_says_on_which_rung_it_is(one: TrainRequest | EnsembleRequest, rung: str) -> None:
    made: dict[str, Any] = job_manifest(one, FULL, study=STUDY, owner=OWNER)
    assert made["spec"]["template"]["metadata"]["labels"]["automonai/rung"] == rung


def test_prometheus_finds_a_pod_by_its_port_or_by_annotations_and_not_where_metrics_are_off() -> None:
    pod = manifest(FULL)["spec"]["template"]
    assert pod["spec"]["containers"][0]["ports"] == [{"name": "metrics", "containerPort": 9109}]
    assert pod["spec"]["containers"][0]["args"][-2:] == ["--metrics-port", "9109"]
    assert pod["metadata"]["annotations"]["prometheus.io/scrape"] == "true"
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == "9109"
    silent = manifest(JobTemplate(image="trainer:1"))["spec"]["template"]
    assert silent["metadata"]["annotations"] == {}
    assert "ports" not in silent["spec"]["containers"][0]


def test_a_job_without_a_workflow_has_no_owner() -> None:
    made = manifest(FULL, owner=None)
    assert "ownerReferences" not in made["metadata"]
    assert "workflows.argoproj.io/workflow" not in made["metadata"]["labels"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (JobTemplate(image="x", gpus_per_run=0, limits={"memory": "2Gi"}), 2 * 2**30),
        (JobTemplate(image="x", gpus_per_run=0, limits={"memory": "1.5G"}), 1_500_000_000),
        (JobTemplate(image="x", gpus_per_run=0), None),
        (JobTemplate(image="x", gpu_memory_gib=40, limits={"memory": "2Gi"}), 40 * 2**30),
        (JobTemplate(image="x", limits={"memory": "2Gi"}), None),
    ],
)
def test_a_run_may_use_the_memory_of_its_gpu_else_of_its_container(template: JobTemplate, expected: int | None) -> None:
    assert template.memory_bytes == expected


def test_a_faulty_template_names_its_file_and_field(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("image: trainer:1\ngpus_per_run: -1\n")
    with pytest.raises(SpecError, match=r"job\.yaml: the job template is invalid: gpus_per_run"):
        load_template(path)
    path.write_text("image: [")
    with pytest.raises(SpecError, match="not valid YAML"):
        load_template(path)
    with pytest.raises(SpecError, match="cannot be read"):
        load_template(tmp_path / "missing.yaml")


def test_a_template_round_trips_through_yaml(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(FULL.model_dump(mode="json")))
    assert load_template(path) == FULL
