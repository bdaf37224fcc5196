"""What clusters differ in: who pods run as, which Argo runs them, network plugin, environment, who applies it."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from chart_objects import by_name, egress, job_template, patch_of, pods, template_named, template_of, training_job
from chart_rendering import APIS, CHART, VALUES, Helm, Object, Render
from chart_schemas import unknown_fields

CILIUM = "cilium.io/v2/CiliumNetworkPolicy"
IDS = ("runAsUser", "runAsGroup", "fsGroup")
INSTANCE_LABEL = "workflows.argoproj.io/controller-instanceid"
TEMPLATES = ("automonai-study", "automonai-predict", "automonai-train")
PODS = [("study", step) for step in ("check", "search", "refit", "report", "finish")] + [
    ("predict", "predict"),
    ("train", "train"),
]


def training(objects: list[Object]) -> Object:
    """Return the pod's spec of a training."""
    pod: Object = training_job(objects)["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize(("name", "user"), [("minio", 65532), ("everything", 1000680000), ("openshift", None)])
def test_all_pods_run_as_the_one_user_or_as_the_platform_says(name: str, user: int | None, render: Render) -> None:
    objects = render(name)
    seen = dict(pods(objects)) | {"training": training(objects)}
    assert len(seen) > 10
    for where, pod in seen.items():
        context = pod["securityContext"]
        assert [context.get(field) for field in IDS] == [user] * 3, where
        assert context["runAsNonRoot"] is True, where
        assert not [field for container in pod["containers"] for field in IDS if field in container["securityContext"]]


def test_templates_carry_the_id_of_the_argo_that_is_to_run_them(render: Render) -> None:
    for template in TEMPLATES:
        assert template_named(render("everything"), template)["metadata"]["labels"][INSTANCE_LABEL] == "imaging"
        assert INSTANCE_LABEL not in template_named(render("minio"), template)["metadata"]["labels"]


def test_the_notes_submit_to_the_argo_that_is_to_run_it() -> None:
    command = (CHART / "templates" / "NOTES.txt").read_text().rstrip().splitlines()[-1]
    assert "{{ with .Values.workflow.instanceId }} --instanceid {{ . }}{{ end }}" in command


def test_environment_reaches_steps_trainings_and_predictions(render: Render) -> None:
    objects = render("everything")
    theirs = [
        {"name": "NCCL_DEBUG", "value": "INFO"},
        {"name": "NODE_ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
    ]
    for workflow, step in PODS:
        expected = [{"name": "TZ", "value": "Europe/Berlin"}] if workflow == "study" else theirs
        assert main_of(patch_of(objects, f"automonai-{workflow}", step))["env"] == expected
    assert training(objects)["containers"][0]["env"][-2:] == theirs
    for test, further in (("storage", theirs), ("smoke-search", theirs), ("controller", [])):
        (container,) = by_name(objects)["Pod", f"segmentation-test-{test}"]["spec"]["containers"]
        assert container["env"][2:] == further


def test_a_proxy_is_that_of_argos_own_container_too(render: Render) -> None:
    """It is that one which stores the logs and the report."""
    proxies = [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}, {"name": "no_proxy", "value": "10.0.0.1"}]
    env = json.dumps([*proxies, {"name": "PROXY_OF_OTHERS", "value": "x"}])
    objects = render("external-s3", "--set-json", f"controller.env={env}", "--set-json", f"trial.env={env}")
    for workflow, step in PODS:
        containers = {c["name"]: c for c in patch_of(objects, f"automonai-{workflow}", step)["containers"]}
        assert containers["wait"]["env"][1:] == proxies


def test_what_bounds_a_training_bounds_those_without_a_job(render: Render) -> None:
    objects = render("minio", "--set", "trial.scratch=5Gi", "--set", "trial.activeDeadlineSeconds=3600")
    assert training_job(objects)["spec"]["activeDeadlineSeconds"] == 3600
    for name in ("predict", "train"):
        template = template_of(objects, f"automonai-{name}", name)
        patch = patch_of(objects, f"automonai-{name}", name)
        folders = {volume["name"] for volume in template["volumes"] if "emptyDir" in volume}
        bounded = {v["name"]: v["emptyDir"]["sizeLimit"] for v in patch["volumes"] if v["name"] in folders}
        assert bounded == dict.fromkeys(folders, "5Gi")
        assert patch["activeDeadlineSeconds"] == 3600
    assert "activeDeadlineSeconds" not in patch_of(render("minio"), "automonai-train", "train")


def test_no_parameter_is_part_of_a_pods_patch_but_as_a_number(render: Render) -> None:
    """A patch is JSON in a text: what a submitter writes could end the text and go on as part of the pod."""
    found = set()
    for workflow, step in PODS:
        found |= set(re.findall("{{.*?}}", json.dumps(patch_of(render("gpus"), f"automonai-{workflow}", step))))
    assert found == {"{{=asInt(workflow.parameters.gpus)}}"}


def test_the_charts_address_of_the_store_counts_whatever_else_a_secret_holds(render: Render) -> None:
    objects = render("external-s3")
    sources = [template_of(objects, f"automonai-{workflow}", step)["container"]["envFrom"] for workflow, step in PODS]
    sources += [
        container["envFrom"] for _, pod in pods(objects) for container in pod["containers"] if "envFrom" in container
    ]
    assert len(sources) > len(PODS)
    assert {tuple(next(iter(source)) for source in each)[-1] for each in sources} == {"configMapRef"}


@pytest.mark.parametrize(("release", "is_allowed"), [("seg.v2", False), ("7seg", False), ("seg-v2", True)])
def test_a_release_whose_minio_could_have_no_service_is_refused(release: str, is_allowed: bool, helm: Helm) -> None:
    known = [argument for api in APIS for argument in ("--api-versions", api)]
    answer = helm("template", release, str(CHART), "-f", str(VALUES / "minio.yaml"), *known)
    assert (answer.returncode == 0) is is_allowed
    assert ("--set fullnameOverride=automonai" in answer.stderr) is not is_allowed
    named = helm(
        "template", release, str(CHART), "-f", str(VALUES / "minio.yaml"), *known, "--set", "fullnameOverride=a"
    )
    assert named.returncode == 0


def test_without_further_environment_nothing_is_said_about_it(render: Render) -> None:
    objects = render("minio")
    assert not [step for workflow, step in PODS if "env" in main_of(patch_of(objects, f"automonai-{workflow}", step))]
    assert job_template(objects).more_env == ()


@pytest.mark.parametrize("name", ["everything", "gpus", "external-s3"])
def test_every_name_that_the_chart_sets_itself_is_refused(name: str, render: Render) -> None:
    objects = render(name, "--set", "trial.threads=2")
    containers = [template_of(objects, f"automonai-{workflow}", step)["container"] for workflow, step in PODS]
    containers += [
        training(render(name, "--set", f"trial.threads=2,trial.gpu.count={gpus}"))["containers"][0] for gpus in (0, 1)
    ]
    settings = next(d["data"] for d in objects if d["kind"] == "ConfigMap" and "AUTOMONAI_STORE" in d["data"])
    keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    further = {"NCCL_DEBUG", "NODE_ADDRESS"}
    names = {entry["name"] for container in containers for entry in container["env"]} | set(settings) | keys
    source = (CHART / "templates" / "prerequisites.yaml").read_text()
    own = re.compile(re.search(r'\$own := "(.*)"', source)[1])  # type: ignore[index]
    assert sorted(name for name in names - further if not own.match(name)) == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ('controller.env=[{"name": "HOME", "value": "/tmp"}]', "controller.env names HOME, which the chart sets"),
        ('trial.env=[{"name": "AWS_REGION", "value": "x"}]', "trial.env names AWS_REGION, which the chart"),
        ('trial.env=[{"name": "AUTOMONAI_GPUS", "value": "1"}]', "trial.env names AUTOMONAI_GPUS"),
        ('trial.env=[{"name": "OMP_NUM_THREADS", "value": "1"}]', "trial.env names OMP_NUM_THREADS"),
        ('trial.env=[{"name": "NCCL_DEBUG"}]', "/trial/env/0"),
        ('trial.env=[{"name": "NCCL_DEBUG", "value": "x", "valueFrom": {}}]', "/trial/env/0"),
        ('trial.env=[{"name": "NCCL_DEBUG", "value": 1}]', "/trial/env/0/value"),
        ('trial.env=[{"name": "NCCL DEBUG", "value": "1"}]', "/trial/env/0/name"),
        ('janitor.schedule="5 minutes"', "/janitor/schedule"),
        ('podSecurity.userId=0', "/podSecurity/userId"),
        ('cache.size="1Zi"', "/cache/size"),
        ('workflow.instanceId="-"', "/workflow/instanceId"),
    ],
)  # fmt: skip
def test_a_faulty_value_is_refused(setting: str, words: str, helm: Helm) -> None:
    assert words in refusal(helm, setting)


@pytest.mark.parametrize(
    "setting",
    [
        'trial.env=[{"name": "HTTPS_PROXY", "value": ""}, {"name": "AWS_PROFILE", "value": "x"}]',
        'janitor.schedule="@hourly"',
        'janitor.schedule="@every 10m"',
        'janitor.schedule="0 6-20/2 * * MON-FRI"',
        'minio.resources={"requests": {"cpu": "0.5", "memory": "1Pi"}, "limits": {"memory": "1E"}}',
        'cache.size="1Ei"',
        "trial.scratch=null",
    ],
)
def test_an_unusual_value_is_accepted(setting: str, helm: Helm) -> None:
    assert refusal(helm, setting) == ""


def test_cilium_lets_the_same_pods_reach_the_api_server_and_nothing_else(render: Render) -> None:
    objects = by_name(render("external-s3", apis=(*APIS, CILIUM)))
    policy, usual = objects["CiliumNetworkPolicy", "automonai-api-server"], by_name(render("external-s3"))
    assert unknown_fields(policy) == []
    assert policy["spec"]["endpointSelector"] == usual["NetworkPolicy", "automonai-api-server"]["spec"]["podSelector"]
    ports = [{"port": port, "protocol": "TCP"} for port in ("443", "6443")]
    assert policy["spec"]["egress"] == [{"toEntities": ["kube-apiserver"], "toPorts": [{"ports": ports}]}]
    assert {key: value for key, value in objects.items() if key[0] != "CiliumNetworkPolicy"} == usual


def test_ciliums_policy_only_adds_to_a_denial_that_is_there_without_it(render: Render) -> None:
    objects = by_name(render("external-s3", apis=(*APIS, CILIUM)))
    denied = objects["NetworkPolicy", "automonai-deny"]["spec"]
    assert denied["policyTypes"] == ["Ingress", "Egress"]
    chosen = objects["CiliumNetworkPolicy", "automonai-api-server"]["spec"]["endpointSelector"]["matchLabels"]
    assert denied["podSelector"]["matchLabels"].items() <= chosen.items()


def test_without_cilium_or_without_policies_there_is_none_of_ciliums(render: Render) -> None:
    for objects in (render("external-s3"), render("digest", apis=(*APIS, CILIUM))):
        assert not [document for document in objects if document["kind"] == "CiliumNetworkPolicy"]


def test_minio_takes_keys_that_somebody_else_keeps(render: Render) -> None:
    """Who applies `helm template`, as Argo CD does, would generate other keys each time."""
    objects = render("minio", "--set", "s3.existingSecret=own-keys")
    assert not [document for document in objects if document["kind"] == "Secret"]
    assert objects == render("minio", "--set", "s3.existingSecret=own-keys", "--set", "tests.smokeSearch=false")
    server = by_name(objects)["StatefulSet", "automonai-minio"]["spec"]["template"]["spec"]["containers"][0]
    (bucket,) = by_name(objects)["Job", "automonai-bucket"]["spec"]["template"]["spec"]["containers"]
    artifacts = yaml.safe_load(by_name(objects)["ConfigMap", "automonai-artifacts"]["data"]["automonai"])
    named = [entry["valueFrom"]["secretKeyRef"]["name"] for entry in server["env"] if "valueFrom" in entry]
    named += [source["secretRef"]["name"] for source in bucket["envFrom"] if "secretRef" in source]
    named += [artifacts["s3"]["accessKeySecret"]["name"], *job_template(objects).env_from_secrets]
    named += [
        source["secretRef"]["name"]
        for workflow, step in PODS
        for source in template_of(objects, f"automonai-{workflow}", step)["container"]["envFrom"]
        if "secretRef" in source
    ]
    assert named == ["own-keys"] * (5 + len(PODS))


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ((), "2024-5"),
        (("--set", "minio.enabled=true,s3.endpoint=", "--set-string", "fullnameOverride=on"), "on"),
    ],
    ids=["external", "minio"],
)
def test_what_looks_like_no_text_stays_text(more: tuple[str, ...], name: str, render: Render) -> None:
    """The classes of `unknown_fields` take no number for a text."""
    objects = render("numbers", *more, apis=(*APIS, CILIUM), release="2024", namespace="123")
    assert [field for document in objects for field in unknown_fields(document)] == []
    for document in objects:
        labels = document["metadata"]["labels"]
        assert {type(text) for text in [*labels, *labels.values()]} == {str}
        assert labels["app.kubernetes.io/instance"] == "2024"
    template = job_template(objects)  # whose record takes no number for a text either
    assert template.labels["7"] == "on"
    assert (template.priority_class, template.runtime_class, template.kueue_queue) == ("007", "on", "no")
    assert template.env_from_secrets == ("123",)
    artifacts = yaml.safe_load(by_name(objects)["ConfigMap", f"{name}-artifacts"]["data"]["automonai"])["s3"]
    assert (artifacts["bucket"], artifacts["region"]) == ("2024", "1.5")
    assert artifacts["accessKeySecret"] == {"name": "123", "key": "AWS_ACCESS_KEY_ID"}
    for workflow, step in PODS:
        patch = patch_of(objects, f"automonai-{workflow}", step)
        assert patch["imagePullSecrets"] == [{"name": "123"}]
        assert patch["priorityClassName"] == "007"
        assert {"name": "ca", "secret": {"secretName": "0x10"}} in patch["volumes"]
    (dns,) = egress(objects, f"{name}-dns")
    assert dns["to"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "53"}


def test_every_text_is_quoted_where_it_is_written() -> None:
    texts = [path.read_text() for path in (CHART / "templates").rglob("*") if path.suffix in (".yaml", ".tpl")]
    written = [one for text in texts for one in re.findall(r"(?:: |- |\[|, )\{\{-? (.*?) -?\}\}", text)]
    assert len(written) > 100
    assert [one for one in written if not QUOTED.search(one) and not NO_TEXT.search(one)] == []


QUOTED = re.compile(r"\| quote$|toJson|^include .automonai.cacheAffinity")
NO_TEXT = re.compile(r"^int |^int64 |^hasPrefix |^not |\.token$|memoryGiB$|Seconds$")
"""Numbers and booleans."""


def refusal(helm: Helm, setting: str) -> str:
    """Return what helm says to a value, given as JSON; nothing if it takes it."""
    name, _, value = setting.partition("=")
    known = [argument for api in APIS for argument in ("--api-versions", api)]
    chosen = ("--set-json", f"{name}={json.dumps(json.loads(value))}")
    answer = helm("template", "automonai", str(CHART), "-f", str(VALUES / "minio.yaml"), *known, *chosen)
    return answer.stderr if answer.returncode else ""


def main_of(patch: Object) -> Object:
    return next(container for container in patch["containers"] if container["name"] == "main")
