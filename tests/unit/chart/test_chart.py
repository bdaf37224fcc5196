from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_objects import (
    READERS,
    by_name,
    egress,
    job_template,
    parameters,
    patch_of,
    pods,
    pods_with_the_cache,
    template_named,
    template_of,
    training_job,
)
from chart_rendering import CHART, VALUES, Helm, Object, Render
from chart_schemas import unknown_fields
from pydantic import ValidationError

GOLDEN = Path(__file__).parents[2] / "golden" / "chart"
NAMES = sorted(path.stem for path in VALUES.glob("*.yaml"))
"""The values files: each renders to a golden file."""


@pytest.mark.parametrize("name", NAMES)
def test_a_values_file_renders_to_its_golden_file(name: str, render: Render, is_renewed: bool) -> None:
    objects = [without_bulk(without_keys(document)) for document in render(name)]
    path = GOLDEN / f"{name}.yaml"
    if is_renewed:
        path.write_text(yaml.safe_dump_all(objects, sort_keys=True, width=120))
    assert by_name(objects) == by_name(list(yaml.safe_load_all(path.read_text())))


@pytest.mark.parametrize("name", NAMES)
def test_every_object_has_only_fields_of_its_kind(name: str, render: Render) -> None:
    objects = render(name)
    assert [field for document in [*objects, training_job(objects)] for field in unknown_fields(document)] == []


def test_a_field_that_is_unknown_missing_or_of_a_wrong_type_would_be_seen(render: Render) -> None:
    job = next(document for document in render("minio") if document["kind"] == "Job")
    assert unknown_fields(altered(job, "retries", 1)) == ["Job.spec.retries"]
    with pytest.raises(ValidationError, match="backoffLimit"):
        unknown_fields(altered(job, "backoffLimit", "2"))
    with pytest.raises(ValidationError, match="template"):
        unknown_fields(altered(job, "template", None))
    study = template_named(render("minio"), "automonai-study")
    assert unknown_fields(altered(study, "entry", "main")) == ["WorkflowTemplate.spec.entry"]
    with pytest.raises(ValidationError, match="templates"):
        unknown_fields(altered(study, "templates", "main"))
    check = template_of(render("minio"), "automonai-study", "check")
    patch = json.dumps({**json.loads(check["podSpecPatch"]), "priorityKlass": "high"})
    assert unknown_fields(altered(study, "templates", [{**check, "podSpecPatch": patch}])) == ["Pod.spec.priorityKlass"]


@pytest.mark.parametrize("name", NAMES)
def test_argo_lint_accepts_the_templates(name: str, render: Render, tmp_path: Path) -> None:
    argo = shutil.which("argo")
    if argo is None:
        pytest.skip("argo is not on PATH")
    path = tmp_path / "templates.yaml"
    path.write_text(yaml.safe_dump_all(d for d in render(name) if d["kind"] == "WorkflowTemplate"))
    command = [argo, "lint", "--offline", "--no-color", "--kinds=workflowtemplates", str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("name", NAMES)
def test_helm_lint_has_nothing_to_say(name: str, helm: Helm) -> None:
    answer = helm("lint", "--strict", str(CHART), "-f", str(VALUES / f"{name}.yaml"))
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_lint_accepts_the_defaults(helm: Helm) -> None:
    assert helm("lint", str(CHART)).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_job_template_is_what_the_executor_reads(name: str, render: Render) -> None:
    template = job_template(render(name))
    assert template.service_account is not None
    assert template.labels["app.kubernetes.io/instance"] == "automonai"
    assert template.env["AWS_ENDPOINT_URL_S3"].startswith("http")


def test_gpu_values_reach_jobs_and_form(render: Render) -> None:
    objects = render("gpus")
    template = job_template(objects)
    assert (template.gpus_per_run, template.kueue_queue, template.runtime_class) == (2, "research", "nvidia")
    assert template.requests == {"cpu": "8", "memory": "32Gi"}
    assert [toleration.key for toleration in template.tolerations] == ["nvidia.com/gpu", "spot"]
    assert template.env_from_secrets == ()
    assert parameters(objects, "automonai-study")["gpus-per-run"]["value"] == "2"
    assert patch_of(objects, "automonai-predict", "predict")["containers"][1]["resources"]["limits"] == {
        "memory": "64Gi",
        "nvidia.com/gpu": "{{=asInt(workflow.parameters.gpus)}}",
    }


@pytest.mark.parametrize(("who", "workflow"), [("controller", "study"), ("trial", "train"), ("trial", "predict")])
def test_pods_of_workflows_have_your_labels_and_annotations_beside_those_that_policies_go_by(
    who: str, workflow: str, render: Render
) -> None:
    yours = f"{who}.labels.team=a,{who}.labels.app\\.kubernetes\\.io/component=b,{who}.annotations.karpenter=c"
    (template,) = (
        document
        for document in render("minio", "--set", yours)
        if document["kind"] == "WorkflowTemplate" and document["metadata"]["name"] == f"automonai-{workflow}"
    )
    metadata = template["spec"]["podMetadata"]
    assert metadata["annotations"] == {"karpenter": "c"}
    assert (metadata["labels"]["team"], metadata["labels"]["app.kubernetes.io/component"]) == ("a", "step")


def test_images_by_digest_go_before_the_tag(render: Render) -> None:
    images = set(re.findall(r"registry\.example\.org/imaging/[\w@:-]+", json.dumps(render("digest"))))
    assert images == {f"registry.example.org/imaging/automonai-controller@sha256:{'1' * 64}"} | {
        f"registry.example.org/imaging/automonai-trainer@sha256:{'2' * 64}"
    }


def test_registry_and_tag_name_both_images(render: Render) -> None:
    objects = render("minio", "--set", "image.registry=localhost", "--set", "image.tag=T")
    assert job_template(objects).image == "localhost/automonai-trainer:T"
    check = template_of(objects, "automonai-study", "check")
    assert check["container"]["image"] == "localhost/automonai-controller:T"


@pytest.mark.parametrize("name", NAMES)
def test_every_pod_satisfies_pod_security_restricted(name: str, render: Render) -> None:
    for path, pod in pods(render(name)):
        assert pod["securityContext"]["runAsNonRoot"] is True, path
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, path
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, path
            assert context["capabilities"] == {"drop": ["ALL"]}, path
        assert not [volume for volume in pod.get("volumes", []) if "hostPath" in volume], path


@pytest.mark.parametrize("name", NAMES)
def test_nobody_may_read_secrets_or_use_a_wildcard(name: str, render: Render) -> None:
    objects = render(name)
    assert not [document for document in objects if document["kind"].startswith("Cluster")]
    rules = [rule for document in objects if document["kind"] == "Role" for rule in document["rules"]]
    named = [entry for rule in rules for part in ("apiGroups", "resources", "verbs") for entry in rule[part]]
    assert "*" not in named
    assert "secrets" not in named


def test_the_roles_are_the_table_that_helm_test_asks_about(render: Render) -> None:
    source = (CHART / "files" / "tests" / "permissions.py").read_text()
    table: dict[str, Any] = {}
    exec(re.search(r"^ALLOWED = \{.*?^\}", source, re.MULTILINE | re.DOTALL).group(), table)  # type: ignore[union-attr]
    roles = {
        document["metadata"]["name"]: document["rules"] for document in render("minio") if document["kind"] == "Role"
    }
    for account, allowed in table["ALLOWED"].items():
        found = {
            (rule["apiGroups"][0], rule["resources"][0]): set(rule["verbs"]) for rule in roles[f"automonai-{account}"]
        }
        assert found == allowed


@pytest.mark.parametrize("name", NAMES)
def test_no_key_of_the_store_is_outside_its_secret(name: str, render: Render) -> None:
    objects = render(name)
    secrets = [document for document in objects if document["kind"] == "Secret"]
    others = json.dumps([document for document in objects if document["kind"] != "Secret"])
    for secret in secrets:
        for value in secret["data"].values():
            assert value not in others


def test_argos_braces_survive(render: Render) -> None:
    study = next(d for d in render("minio") if d["metadata"]["name"] == "automonai-study")
    assert study["spec"]["synchronization"]["mutexes"] == [{"name": "automonai-study-{{workflow.parameters.name}}"}]
    assert "@@" not in json.dumps(study)


def test_a_trial_has_no_way_to_the_api_server(render: Render) -> None:
    policies = {d["metadata"]["name"]: d["spec"] for d in render("external-s3") if d["kind"] == "NetworkPolicy"}
    allowed = policies["automonai-api-server"]["podSelector"]["matchExpressions"][0]["values"]
    assert "trial" not in allowed
    assert policies["automonai-store"]["egress"][0]["ports"] == [{"protocol": "TCP", "port": 9443}]


ANYWHERE = [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]
TENANT = {"kubernetes.io/metadata.name": "minio-tenant"}
IN_THE_CLUSTER = (
    "--set",
    "networkPolicy.s3Ports={9000,9001}",
    "--set-json",
    f"networkPolicy.s3NamespaceSelector={json.dumps(TENANT)}",
)
NO_ADDRESS = ("--set-json", "networkPolicy.s3Cidrs=[]")


@pytest.mark.parametrize(
    ("settings", "to", "ports"),
    [
        ((), ANYWHERE, [9443]),
        (IN_THE_CLUSTER, [*ANYWHERE, {"namespaceSelector": {"matchLabels": TENANT}}], [9000, 9001]),
        ((*IN_THE_CLUSTER, *NO_ADDRESS), [{"namespaceSelector": {"matchLabels": TENANT}}], [9000, 9001]),
    ],
)
def test_pods_reach_an_external_store_at_its_own_ports(
    settings: tuple[str, ...], to: list[Object], ports: list[int], render: Render
) -> None:
    (rule,) = egress(render("external-s3", *settings), "automonai-store")
    assert rule == {"to": to, "ports": [{"protocol": "TCP", "port": port} for port in ports]}


def test_a_store_without_address_and_namespace_is_nowhere_not_everywhere(render: Render) -> None:
    assert not egress(render("external-s3", *NO_ADDRESS), "automonai-store")


def test_the_api_server_may_have_addresses_of_both_families(render: Render) -> None:
    (rule,) = egress(render("external-s3"), "automonai-api-server")
    assert rule["to"] == ANYWHERE


def test_dns_is_where_the_cluster_has_it(render: Render) -> None:
    (usual,) = egress(render("minio"), "automonai-dns")
    assert usual == {
        "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
        "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
    }
    (other,) = egress(render("everything"), "segmentation-dns")
    assert other == {
        "to": [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "openshift-dns"}}},
            {"ipBlock": {"cidr": "169.254.20.10/32"}},
        ],
        "ports": [{"protocol": "UDP", "port": 5353}, {"protocol": "TCP", "port": 5353}],
    }


@pytest.mark.parametrize(("name", "claim"), [("minio", "automonai-cache"), ("everything", "scratch")])
def test_all_pods_that_mount_a_volume_of_one_node_stay_together(name: str, claim: str, render: Render) -> None:
    label = {"automonai/cache": claim}
    together = [{"labelSelector": {"matchLabels": label}, "topologyKey": "kubernetes.io/hostname"}]
    for where, labels, affinity in pods_with_the_cache(render(name)):
        assert label.items() <= labels.items(), where
        assert affinity["podAffinity"] == {"requiredDuringSchedulingIgnoredDuringExecution": together}, where


@pytest.mark.parametrize("step", ["search", "refit", "report", "finish"])
def test_a_step_without_the_cache_goes_anywhere(step: str, render: Render) -> None:
    objects = render("minio")
    assert "automonai/cache" not in template_of(objects, "automonai-study", step).get("metadata", {}).get("labels", {})
    assert "affinity" not in patch_of(objects, "automonai-study", step)


@pytest.mark.parametrize("name", ["external-s3", "gpus"])
def test_pods_go_anywhere_where_many_nodes_have_the_cache_or_each_its_own(name: str, render: Render) -> None:
    for where, labels, affinity in pods_with_the_cache(render(name)):
        assert not labels.get("automonai/cache"), where
        assert not affinity, where


CLAIM: Object = {"persistentVolumeClaim": {"claimName": "automonai-cache"}}
FOLDER: Object = {"hostPath": {"path": "/raid/automonai", "type": "Directory"}}
OWN: Object = {"emptyDir": {"sizeLimit": "20Gi"}}


@pytest.mark.parametrize(
    ("name", "more", "volume"),
    [
        ("external-s3", (), CLAIM),
        ("gpus", (), OWN),
        ("gpus", ("--set", "cache.type=node,cache.nodeFolder=/raid/automonai"), FOLDER),
    ],
)
def test_what_reads_datasets_has_the_cache_and_no_other_step(
    name: str, more: tuple[str, ...], volume: Object, render: Render
) -> None:
    objects = render(name, *more)

    def cache_of(pod: Object) -> Object:
        return next(entry for entry in pod["volumes"] if entry["name"] == "cache")

    pods = [patch_of(objects, f"automonai-{workflow}", step) for workflow, step in READERS]
    for pod in (*pods, training_job(objects)["spec"]["template"]["spec"]):
        assert cache_of(pod) == {"name": "cache", **volume}
    for step in ("search", "refit", "report", "finish"):
        assert cache_of(patch_of(objects, "automonai-study", step)) == {
            "name": "cache",
            "emptyDir": {"sizeLimit": "1Gi"},
        }


def test_a_required_affinity_of_yours_stays_alone_and_a_preferred_one_stays_beside(render: Render) -> None:
    yours = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "yours"}}}
    required = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [yours]}}
    objects = render("minio", "--set-json", f"trial.affinity={json.dumps(required)}")
    assert job_template(objects).affinity == required
    preferred = [{"weight": 1, "podAffinityTerm": yours}]
    objects = render(
        "minio",
        "--set-json",
        f"trial.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution={json.dumps(preferred)}",
    )
    affinity: Any = job_template(objects).affinity
    assert affinity["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] == preferred
    assert len(affinity["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]) == 1


def test_every_account_that_opens_the_store_may_have_a_clouds_identity(render: Render) -> None:
    accounts = [document["metadata"] for document in render("gpus") if document["kind"] == "ServiceAccount"]
    assert {account["name"].removeprefix("automonai-") for account in accounts if "annotations" in account} == {
        "controller", "step", "trial", "test",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "apis", "words"),
    [
        (["--set", "minio.enabled=true"], [], "kubectl apply --server-side -n argo"),
        ([], ["argoproj.io/v1alpha1/WorkflowTemplate"], "--set minio.enabled=true"),
        (
            ["--set", "minio.enabled=true", "--set", "kueue.queueName=q"],
            ["argoproj.io/v1alpha1/WorkflowTemplate"],
            "helm install kueue",
        ),
        (
            ["--set", "minio.enabled=true", "--set", "metrics.podMonitor.enabled=true"],
            ["argoproj.io/v1alpha1/WorkflowTemplate"],
            "helm install monitoring oci://",
        ),
        (
            ["--set", "minio.enabled=true", "--set", "metrics.rules.enabled=true"],
            ["argoproj.io/v1alpha1/WorkflowTemplate"],
            "helm install monitoring oci://",
        ),
        (
            ["--set", "minio.enabled=true", "--set", "metrics.podMonitor.enabled=true,metrics.enabled=false"],
            ["argoproj.io/v1alpha1/WorkflowTemplate", "monitoring.coreos.com/v1"],
            "metrics.enabled is not",
        ),
        *(
            (
                ["--set", f"minio.enabled=true,cache.existingClaim=scratch,cache.type={kind}"],
                ["argoproj.io/v1alpha1/WorkflowTemplate"],
                f"cache.type={kind} and cache.existingClaim=scratch are set",
            )
            for kind in ("node", "pod")
        ),
        *(
            (
                ["--set", f"minio.enabled=true,cache.type=node,{missing}=null"],
                ["argoproj.io/v1alpha1/WorkflowTemplate"],
                "cache.type=node wants a folder that belongs to the pods' user",
            )
            for missing in ("cache.nodeFolder", "podSecurity.userId")
        ),
        (["--set", "minio.enabled=true,cache.nodeFolder=/var/../etc"], [], "does not match pattern"),
        (["--set", "minio.enabled=true", "--set", "trial.gpus=2"], [], "additional properties 'gpus' not allowed"),
        (["--set", "minio.enabled=true", "--set", "s3.endpoint=store:9000"], [], "does not match pattern"),
    ],
)
def test_a_refused_installation_says_what_to_do(arguments: list[str], apis: list[str], words: str, helm: Helm) -> None:
    known = [argument for api in apis for argument in ("--api-versions", api)]
    answer = helm("template", "automonai", str(CHART), *arguments, *known)
    assert answer.returncode != 0
    assert words in answer.stderr


def test_the_notes_name_the_datas_volume_and_end_with_the_next_command() -> None:
    notes = (CHART / "templates" / "NOTES.txt").read_text()
    assert "delete pvc data-" in notes
    assert "automonai workflow submit study.yaml" in notes
    assert notes.rstrip().splitlines()[-1].lstrip().startswith("argo submit")


def test_the_readme_lists_every_value_with_its_default() -> None:
    table = dict(re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", (CHART / "README.md").read_text(), re.MULTILINE))
    assert {name: json.loads(text) for name, text in table.items()} == dict(leaves(default_values()))


def test_the_schema_knows_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    names = {name for name, _ in schema_leaves(schema, schema["definitions"])} - {"global"}
    assert names == {name for name, _ in leaves(default_values())}
    assert schema["additionalProperties"] is False


def default_values() -> Object:
    values: Object = yaml.safe_load((CHART / "values.yaml").read_text())
    return values


def leaves(values: Object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield every value's dotted name and default; resources are one value, and so are labels."""
    for key, value in values.items():
        if isinstance(value, dict) and value and key not in ("resources", "executorResources", "labels"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def schema_leaves(schema: Object, definitions: Object, prefix: str = "") -> Iterator[tuple[str, Object]]:
    for key, found in schema["properties"].items():
        entry = definitions[found["$ref"].removeprefix("#/definitions/")] if "$ref" in found else found
        if "properties" in entry and key not in ("resources", "executorResources"):
            assert entry["additionalProperties"] is False, f"{prefix}{key}"
            yield from schema_leaves(entry, definitions, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", entry


def without_keys(document: Object) -> Object:
    """Return the object with generated keys replaced: they differ each time."""
    if document["kind"] != "Secret":
        return document
    return {**document, "data": dict.fromkeys(document["data"], "generated")}


def without_bulk(document: Object) -> Object:
    """Return the object without dashboards and rules, which have files and tests of their own."""
    if document["kind"] == "PrometheusRule":
        groups = [{**group, "rules": len(group["rules"])} for group in document["spec"]["groups"]]
        return {**document, "spec": {"groups": groups}}
    if "-dashboard-" in document["metadata"]["name"]:
        return {**document, "data": dict.fromkeys(document["data"], "a dashboard")}
    return document


def altered(document: Object, field: str, value: object) -> Object:
    """Return the object with a field of its spec set."""
    return {**document, "spec": {**document["spec"], field: value}}
