"""Finds in what helm renders what a test asks about."""

from __future__ import annotations

import json
from collections.abc import Iterator

import yaml
from chart_rendering import Object

from automonai.domain.configuration import Configuration
from automonai.domain.request import TrainRequest
from automonai.domain.run import Run
from automonai.execution.jobs import JobTemplate, StudyHandle, job_manifest

READERS = (("study", "check"), ("predict", "predict"), ("train", "train"))
"""Workflows' steps that read a dataset."""


def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
    return {(document["kind"], document["metadata"]["name"]): document for document in objects}


def template_named(objects: list[Object], name: str) -> Object:
    return by_name(objects)["WorkflowTemplate", name]


def job_template(objects: list[Object]) -> JobTemplate:
    settings = next(d for d in objects if "job-template.yaml" in d.get("data", {}))
    return JobTemplate.model_validate(yaml.safe_load(settings["data"]["job-template.yaml"]))


def training_job(objects: list[Object]) -> Object:
    """Return the Job of a training that the release's settings make."""
    request = TrainRequest(run=Run(trial=1, budget_epochs=1), configuration=Configuration(), seed=1)
    study = StudyHandle(name="test", id="0123456789", location="s3://bucket/studies/test")
    job: Object = job_manifest(request, job_template(objects), study=study, owner=None)
    return job


def template_of(objects: list[Object], workflow: str, step: str) -> Object:
    templates = by_name(objects)["WorkflowTemplate", workflow]["spec"]["templates"]
    return next(template for template in templates if template["name"] == step)


def parameters(objects: list[Object], workflow: str) -> dict[str, Object]:
    arguments = by_name(objects)["WorkflowTemplate", workflow]["spec"]["arguments"]["parameters"]
    return {parameter["name"]: parameter for parameter in arguments}


def patch_of(objects: list[Object], workflow: str, step: str) -> Object:
    patch: Object = json.loads(template_of(objects, workflow, step)["podSpecPatch"])
    return patch


def egress(objects: list[Object], policy: str) -> list[Object]:
    rules: list[Object] | None = by_name(objects)["NetworkPolicy", policy]["spec"]["egress"]
    return rules or []


def pods_with_the_cache(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Yield name, labels and affinity of every pod that mounts the cache's claim, if there is one."""
    training = job_template(objects)
    yield "training", training.labels, training.affinity
    for workflow, step in READERS:
        labels = template_of(objects, f"automonai-{workflow}", step)["metadata"]["labels"]
        yield step, labels, patch_of(objects, f"automonai-{workflow}", step).get("affinity", {})
    for document in objects:
        if document["kind"] == "Job" and document["metadata"]["labels"]["app.kubernetes.io/component"] == "cache":
            pod = document["spec"]["template"]
            yield "first pod", pod["metadata"]["labels"], pod["spec"].get("affinity", {})


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Yield every pod's spec, those of workflow steps with Argo's own containers as the patch leaves them."""
    for document in objects:
        where, spec = f"{document['kind']} {document['metadata']['name']}", document.get("spec", {})
        if document["kind"] == "Pod":
            yield where, spec
        elif document["kind"] in ("Job", "StatefulSet"):
            yield where, spec["template"]["spec"]
        elif document["kind"] == "CronJob":
            yield where, spec["jobTemplate"]["spec"]["template"]["spec"]
        elif document["kind"] == "WorkflowTemplate":
            for template in (template for template in spec["templates"] if "container" in template):
                yield f"{where} {template['name']}", _patched(spec, template)


def _patched(spec: Object, template: Object) -> Object:
    patch = json.loads(template["podSpecPatch"])
    containers = {container["name"]: container for container in patch["containers"]}
    containers["main"] = {**containers["main"], **template["container"]}
    return {
        "securityContext": spec["securityContext"],
        "initContainers": patch["initContainers"],
        "containers": list(containers.values()),
        "volumes": [*template["volumes"], *patch["volumes"]],
    }
