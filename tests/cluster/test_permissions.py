"""Who may do what in a release's namespace, asked of the API server itself, and where its keys must not turn up."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import yaml
from real_cluster import (
    DATASET,
    SPEC,
    TRIALS,
    eventually,
    helm,
    kubectl,
    kubectl_json,
    phase,
    store_on_this_machine,
    submit,
    wait_for_end,
)

from automonai.storage import keys
from automonai.storage.opening import open_store

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

Cell = tuple[str, str, str]
"""API group, resource (or resource/subresource), verb."""

REPORTS = {("argoproj.io", "workflowtaskresults"): "create patch"}
ALLOWED = {
    "controller": {
        ("batch", "jobs"): "create get list watch delete",
        ("", "pods"): "list watch",
        ("", "pods/log"): "get",
        ("argoproj.io", "workflows"): "get",
        **REPORTS,
        ("coordination.k8s.io", "leases"): "create get update",
    },
    "janitor": {("batch", "jobs"): "list delete", ("argoproj.io", "workflows"): "list"},
    "step": REPORTS,
    "trial": {},
    "test": {("argoproj.io", "workflowtemplates"): "get"},
}
"""The table of docs/security.md, written down once more."""
EVERYBODY = {
    ("authentication.k8s.io", "selfsubjectreviews", "create"),
    ("authorization.k8s.io", "selfsubjectaccessreviews", "create"),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "create"),
}
"""Kubernetes lets every account ask who it is and what it may do (ClusterRole system:basic-user)."""
VERBS = ("create", "get", "list", "watch", "update", "patch", "delete", "deletecollection")
SPECIAL = {
    ("", "users", "impersonate"),
    ("", "serviceaccounts", "impersonate"),
    ("rbac.authorization.k8s.io", "roles", "bind"),
    ("rbac.authorization.k8s.io", "roles", "escalate"),
    *(("", "nodes/proxy", verb) for verb in VERBS),
}
"""Ways to more rights than one has."""
STUDY = "confidential"


@pytest.fixture(scope="module")
def cells() -> set[Cell]:
    """Give everything that this API server can be asked to do."""
    versions = ["/api/v1"] + [f"/apis/{group['preferredVersion']['groupVersion']}" for group in raw("/apis")["groups"]]
    resources = {(group_of(path), resource["name"]) for path in versions for resource in raw(path)["resources"]}
    return {(group, name, verb) for group, name in resources for verb in VERBS} | SPECIAL


@pytest.mark.parametrize("account", ALLOWED)
def test_an_account_may_do_what_the_table_says_and_nothing_else(
    account: str, release: str, cells: set[Cell], kubernetes_client: ApiClient
) -> None:
    assert allowed(account) <= cells
    for refused in (("", "secrets", "get"), ("", "pods/exec", "create"), ("", "pods", "create")):
        assert refused in cells  # so that it is asked about
    answers = may(kubernetes_client, release, account, cells, where=release)
    assert answers == allowed(account) | EVERYBODY


@pytest.mark.parametrize("account", ALLOWED)
@pytest.mark.parametrize("where", ["default", "kube-system", ""], ids=["another", "the system's", "all"])
def test_an_account_may_do_nothing_in_another_namespace(
    account: str, where: str, release: str, kubernetes_client: ApiClient
) -> None:
    asked = {cell for table in ALLOWED for cell in allowed(table)} | {("", "secrets", "get"), ("", "pods", "create")}
    assert may(kubernetes_client, release, account, asked, where=where) == set()


@pytest.fixture(scope="module")
def trial_pod(release: str) -> tuple[dict[str, Any], str]:
    """Run a study, and give one of its trainings' pods and what its container has mounted, once the study has ended.

    Beside it a submission fails, so that there is an error's text, too.
    """
    spec = SPEC.replace("iterations: 2", "iterations: 1").replace("max_epochs: 3", "max_epochs: 1")
    workflow = submit(release, {"dataset": DATASET, "name": STUDY, "gpus-per-run": "1", "spec": spec})
    failing = submit(release, {"dataset": f"{DATASET}-that-is-not-there", "name": f"{STUDY}-2"})
    seen: list[tuple[dict[str, Any], str]] = []

    def look() -> bool:
        if not seen:
            seen.extend(running_trial(release))
        return bool(seen) or phase(release, workflow) in ("Succeeded", "Failed", "Error")

    eventually(look, "a training runs", seconds=300)
    assert wait_for_end(release, workflow, seconds=600) == "Succeeded"
    assert wait_for_end(release, failing, seconds=300) == "Failed"
    assert seen, "no training's container could be looked into while it ran"
    return seen[0]


def test_a_trial_pod_has_no_token(trial_pod: tuple[dict[str, Any], str]) -> None:
    pod, mounts = trial_pod
    assert pod["spec"]["serviceAccountName"] == "automonai-trial"
    assert pod["spec"]["automountServiceAccountToken"] is False
    kinds = {kind for volume in pod["spec"]["volumes"] for kind in volume if kind != "name"}
    assert kinds == {"emptyDir", "persistentVolumeClaim"}
    assert " /cache " in mounts
    assert "serviceaccount" not in mounts


def test_no_key_of_the_store_is_in_any_object_of_the_namespace(release: str, trial_pod: object) -> None:
    values = secret_values(release)
    assert found(values, kubectl("get", "secret", "-n", release, "-o", "json"))  # it would be found
    names = kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
    objects = kubectl_json("get", ",".join(sorted(set(names) - {"secrets"})), "-n", release)["items"]
    kinds = {document["kind"] for document in objects}
    assert kinds >= {"Workflow", "Job", "Pod", "Event", "ConfigMap", "Lease", "WorkflowTemplate"}
    assert [name_of(document) for document in objects if found(values, json.dumps(document))] == []


def test_no_key_of_the_store_is_in_a_log(release: str, trial_pod: object) -> None:
    values = secret_values(release)
    pods = kubectl_json("get", "pods", "-n", release)["items"]
    components = {pod["metadata"]["labels"].get("app.kubernetes.io/component") for pod in pods}
    assert components >= {"trial", "step", "minio"}
    logs = {pod["metadata"]["name"]: log(release, pod["metadata"]["name"]) for pod in pods}
    assert any(f"{STUDY}-2" in text or "that-is-not-there" in text for text in logs.values())
    assert [pod for pod, text in logs.items() if found(values, text)] == []


def test_no_key_of_the_store_is_in_what_helm_shows_of_the_release(release: str, trial_pod: object) -> None:
    values = secret_values(release)
    manifest = yaml.safe_load_all(helm("get", "manifest", "automonai", "-n", release))
    others = [document for document in manifest if document and document["kind"] != "Secret"]
    assert len(others) > 10
    texts = [helm("get", part, "automonai", "-n", release) for part in ("hooks", "notes", "values")]
    assert not found(values, json.dumps(others) + "".join(texts))


def test_no_key_of_the_store_is_in_journal_report_logs_or_checkpoints(
    release: str, trial_pod: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = secret_values(release)
    with store_on_this_machine(release, monkeypatch):
        study = contents(f"s3://automonai/studies/{STUDY}")
        argos = contents("s3://automonai/workflows")
    assert any(key.startswith(keys.JOURNAL) for key in study)
    assert {keys.DATA, keys.REPORT_HTML, keys.ENSEMBLE} <= set(study)
    assert any(key.endswith("main.log") for key in argos)
    both = study | {f"workflows/{key}": content for key, content in argos.items()}
    assert [key for key, content in both.items() if found(values, content.decode("latin-1"))] == []


def raw(path: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(kubectl("get", "--raw", path))
    return document


def group_of(path: str) -> str:
    return "" if path == "/api/v1" else path.split("/")[2]


def allowed(account: str) -> set[Cell]:
    return {(*resource, verb) for resource, verbs in ALLOWED[account].items() for verb in verbs.split()}


def may(client: ApiClient, namespace: str, account: str, asked: set[Cell], *, where: str) -> set[Cell]:
    """Return what of `asked` the API server lets an account of the release do in a namespace, "" being all of them."""
    from kubernetes.client import ApiClient as Client
    from kubernetes.client import AuthorizationV1Api

    user = f"system:serviceaccount:{namespace}:automonai-{account}"
    api = AuthorizationV1Api(Client(client.configuration, "Impersonate-User", user))

    def is_allowed(cell: Cell) -> bool:
        group, resource, verb = cell
        name, _, sub = resource.partition("/")
        attributes = {"namespace": where, "group": group, "resource": name, "subresource": sub, "verb": verb}
        review = {"spec": {"resourceAttributes": attributes}}
        return bool(api.create_self_subject_access_review(review).status.allowed)

    listed = sorted(asked)
    with ThreadPoolExecutor(4) as pool:
        return {cell for cell, answer in zip(listed, pool.map(is_allowed, listed), strict=True) if answer}


def running_trial(namespace: str) -> list[tuple[dict[str, Any], str]]:
    """Return a running training's pod and its container's mounts; nothing if there is none, or if it ends meanwhile."""
    select = ("-l", f"{TRIALS},automonai/study={STUDY}", "--field-selector=status.phase=Running")
    for pod in kubectl_json("get", "pods", "-n", namespace, *select)["items"]:
        try:
            return [(pod, kubectl("exec", pod["metadata"]["name"], "-n", namespace, "--", "cat", "/proc/self/mounts"))]
        except AssertionError:
            continue
    return []


def secret_values(namespace: str) -> set[str]:
    """Return every value of the namespace's Secrets but helm's own, which hold whole releases."""
    secrets = kubectl_json("get", "secrets", "-n", namespace)["items"]
    encoded = {value for secret in secrets if secret["type"] == "Opaque" for value in secret["data"].values()}
    values = {base64.b64decode(value).decode() for value in encoded}
    assert values
    assert all(len(value) >= 12 for value in values)  # shorter ones might be found by chance
    return values


def found(values: set[str], text: str) -> bool:
    """Whether a text holds one of the values, as it is, quoted for a URL, or somewhere inside of base64."""
    return any(form in text for value in values for form in (value, quote(value, ""), *encodings(value)))


def encodings(value: str) -> Iterator[str]:
    """Yield what base64 makes of a value after 0, 1 and 2 other characters, without its neighbours' part."""
    for shift in range(3):
        text = base64.b64encode(b" " * shift + value.encode()).decode()
        yield text[4 if shift else 0 : -4]


def name_of(document: dict[str, Any]) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def log(namespace: str, pod: str) -> str:
    return kubectl("logs", pod, "-n", namespace, "--all-containers", "--ignore-errors")


def contents(location: str) -> dict[str, bytes]:
    store = open_store(location)
    return {key: store.get(key) for key in store.list()}
