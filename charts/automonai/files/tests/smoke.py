"""Search a synthetic dataset by a workflow of its own, from the dataset's push to the report; then delete it all."""

import os
import time
from tempfile import TemporaryDirectory

from kubernetes import client, config

from automonai import api
from automonai.storage import keys
from automonai.storage.opening import open_store
from automonai.storage.store import Store

NAME = "helm-test"
LEASE = f"automonai-{NAME}"
PLACE = f"{os.environ['AUTOMONAI_STORE']}/helm-test/phantom"
STUDY = f"{os.environ['AUTOMONAI_STORE']}/studies/{NAME}"
NAMESPACE = os.environ["AUTOMONAI_NAMESPACE"]
ARGO = ("argoproj.io", "v1alpha1", NAMESPACE)
WORKFLOWS = (*ARGO, "workflows")
TEMPLATE = "automonai-study"
INSTANCE_LABEL = "workflows.argoproj.io/controller-instanceid"
SPEC = """
split: {test: 0.25, folds: 2}
search: {sampler: random, space: {depth: 2, channels: 4, loss: {type: categorical, values: [dice, dice_ce]}}}
budget: {iterations: 1, min_epochs: 1, max_epochs: 1}
training: {max_patch_voxels: 4096, validation_every_epochs: 1}
"""
LOOK_SECONDS = 2.0


def main() -> None:
    """Fail if no report comes out of it."""
    config.load_incluster_config()
    objects = client.CustomObjectsApi()
    dataset, study = open_store(PLACE), open_store(STUDY)
    _empty(study)
    with TemporaryDirectory() as folder:
        api.push_data(api.phantom(folder, cases=8, shape=(24, 24, 20)), PLACE)
    template = objects.get_namespaced_custom_object(*ARGO, "workflowtemplates", TEMPLATE)
    workflow = objects.create_namespaced_custom_object(*WORKFLOWS, _workflow(template["metadata"]))["metadata"]["name"]
    try:
        _wait_for_end(objects, workflow)
        assert study.exists(keys.REPORT_HTML), f"workflow {workflow} has written no report"
    finally:
        objects.delete_namespaced_custom_object(*WORKFLOWS, workflow)
    _empty(study)
    _empty(dataset)
    _delete_lease()
    print(f"workflow {workflow} searched, trained and reported")


def _workflow(template: dict[str, dict[str, str]]) -> dict[str, object]:
    """Return what starts the search, by the Argo that takes a template of this metadata."""
    labels = {key: value for key, value in template.get("labels", {}).items() if key == INSTANCE_LABEL}
    form = {"dataset": PLACE, "name": NAME, "parallel-runs": "1", "spec": SPEC}
    parameters = [{"name": name, "value": value} for name, value in form.items()]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": f"{NAME}-", "labels": labels},
        "spec": {"workflowTemplateRef": {"name": TEMPLATE}, "arguments": {"parameters": parameters}},
    }


def _wait_for_end(objects: client.CustomObjectsApi, workflow: str) -> None:
    """Fail with the messages of its steps unless it succeeds; helm ends this pod when its patience is over."""
    while True:
        status = objects.get_namespaced_custom_object(*WORKFLOWS, workflow).get("status", {})
        if status.get("phase") == "Succeeded":
            return
        if status.get("phase") in ("Failed", "Error"):
            nodes = status.get("nodes", {}).values()
            messages = [f"{node['displayName']}: {node['message']}" for node in nodes if node.get("message")]
            raise SystemExit("\n".join([f"workflow {workflow} failed", *messages]))
        time.sleep(LOOK_SECONDS)


def _empty(store: Store) -> None:
    for key in list(store.list()):
        store.delete(key)


def _delete_lease() -> None:
    try:
        client.CoordinationV1Api().delete_namespaced_lease(LEASE, NAMESPACE)
    except client.ApiException as error:
        if error.status != 404:
            raise


if __name__ == "__main__":
    main()
