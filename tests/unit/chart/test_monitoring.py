from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import yaml
from chart_rendering import CHART, Object

from automonai.execution.jobs import METRICS_PORT_NAME, RUNG_LABEL, STUDY_LABEL, TRIAL_LABEL, JobTemplate

Render = Callable[..., list[Object]]
DASHBOARDS = ("studies", "runs", "capacity")
CONTROLLERS = ("search", "refit")


def named(objects: list[Object], kind: str, name: str) -> Object:
    return next(d for d in objects if d["kind"] == kind and d["metadata"]["name"] == name)


def controller_step(objects: list[Object], name: str) -> Object:
    templates = named(objects, "WorkflowTemplate", "automonai-study")["spec"]["templates"]
    step: Object = next(template for template in templates if template["name"] == name)
    return step


def environment(step: Object) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in step["container"]["env"]}


def job_template(objects: list[Object], name: str = "automonai") -> JobTemplate:
    data = named(objects, "ConfigMap", f"{name}-job-template")["data"]
    return JobTemplate.model_validate(yaml.safe_load(data["job-template.yaml"]))


def pod_label(label: str) -> str:
    """Return how Prometheus names a pod's label."""
    return "__meta_kubernetes_pod_label_" + label.replace("/", "_").replace(".", "_").replace("-", "_")


def test_controllers_and_trainings_show_metrics_by_default(render: Render) -> None:
    objects = render("minio")
    for step in (controller_step(objects, name) for name in CONTROLLERS):
        assert step["container"]["ports"] == [{"name": METRICS_PORT_NAME, "containerPort": 9109}]
        assert environment(step)["AUTOMONAI_METRICS_PORT"] == "9109"
        assert step["metadata"]["annotations"]["prometheus.io/scrape"] == "true"
    assert job_template(objects).metrics_port == 9109


def test_nothing_shows_metrics_where_they_are_off(render: Render) -> None:
    objects = render("digest")
    for step in (controller_step(objects, name) for name in CONTROLLERS):
        assert environment(step)["AUTOMONAI_METRICS_PORT"] == ""
        assert step["metadata"]["annotations"]["prometheus.io/scrape"] == "false"
    assert job_template(objects).metrics_port is None


def test_a_plain_installation_has_nothing_of_the_operators(render: Render) -> None:
    kinds = {document["kind"] for document in render("minio", apis=("argoproj.io/v1alpha1/WorkflowTemplate",))}
    assert not {"PodMonitor", "PrometheusRule"} & kinds


def test_the_monitor_takes_study_trial_and_rung_from_the_pods_labels(render: Render) -> None:
    (endpoint,) = named(render("everything"), "PodMonitor", "segmentation")["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["honorLabels"], endpoint["interval"]) == (METRICS_PORT_NAME, True, "30s")
    assert {entry["targetLabel"]: entry["sourceLabels"] for entry in endpoint["relabelings"]} == {
        "study": [pod_label(STUDY_LABEL)],
        "trial": [pod_label(TRIAL_LABEL)],
        "rung": [pod_label(RUNG_LABEL)],
        "workflow": [pod_label("workflows.argoproj.io/workflow")],
    }


@pytest.mark.parametrize("step", CONTROLLERS)
def test_the_monitor_finds_the_controller(step: str, render: Render) -> None:
    objects = render("everything")
    selector = named(objects, "PodMonitor", "segmentation")["spec"]["selector"]
    pod = named(objects, "WorkflowTemplate", "automonai-study")["spec"]["podMetadata"]["labels"]
    labels = {**pod, **controller_step(objects, step)["metadata"]["labels"]}
    assert selector["matchLabels"].items() <= labels.items()
    assert [expression["key"] for expression in selector["matchExpressions"]] == [STUDY_LABEL]
    assert STUDY_LABEL in labels


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_a_dashboard_is_the_file_with_the_address_of_argo(dashboard: str, render: Render) -> None:
    made = named(render("everything"), "ConfigMap", f"segmentation-dashboard-{dashboard}")
    text = (CHART / "files" / "dashboards" / f"{dashboard}.json").read_text()
    expected = json.loads(text.replace("https://127.0.0.1:2746", "https://argo.example.org"))
    assert json.loads(made["data"][f"automonai-{dashboard}.json"]) == expected
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert made["metadata"]["annotations"] == {"grafana_folder": "Imaging"}
    assert "https://argo.example.org/workflows/" in expected["links"][1]["url"]


def test_the_rules_are_the_file_with_links_to_the_published_pages(render: Render) -> None:
    groups = named(render("everything"), "PrometheusRule", "segmentation")["spec"]["groups"]
    links = [rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"] if "alert" in rule]
    assert links
    assert all(link.startswith("https://wiki.example.org/automonai/Automonai") for link in links)
    file = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())["groups"]
    expressions = [[rule["expr"] for rule in group["rules"]] for group in groups]
    assert expressions == [[rule["expr"] for rule in group["rules"]] for group in file]


@pytest.mark.parametrize(("setting", "origin"), [("monitoring", "monitoring"), ("", None)])
def test_only_prometheus_reaches_the_metrics(setting: str, origin: str | None, render: Render) -> None:
    objects = render("minio", "--set", f"metrics.namespace={setting}")
    (rule,) = named(objects, "NetworkPolicy", "automonai-metrics")["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 9109}]
    selector = {"matchLabels": {"kubernetes.io/metadata.name": origin}}
    assert rule.get("from") == (None if origin is None else [{"namespaceSelector": selector}])
