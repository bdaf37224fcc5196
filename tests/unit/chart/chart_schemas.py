"""Checks objects against the classes that the Kubernetes and Hera clients generate from the APIs' own schemas."""

from __future__ import annotations

import re
from typing import Any

from hera.workflows import models as argo
from kubernetes import client

KINDS = {
    "CronJob": client.V1CronJob,
    "Job": client.V1Job,
    "ConfigMap": client.V1ConfigMap,
    "Secret": client.V1Secret,
    "Service": client.V1Service,
    "ServiceAccount": client.V1ServiceAccount,
    "StatefulSet": client.V1StatefulSet,
    "PersistentVolumeClaim": client.V1PersistentVolumeClaim,
    "NetworkPolicy": client.V1NetworkPolicy,
    "Role": client.V1Role,
    "RoleBinding": client.V1RoleBinding,
    "Pod": client.V1Pod,
}
_META = {"name": {}, "namespace": {}, "labels": {}, "annotations": {}}
_SELECTOR = {"matchLabels": {}, "matchExpressions": {"key": {}, "operator": {}, "values": {}}}
_RELABELING = dict.fromkeys(
    ("sourceLabels", "separator", "targetLabel", "regex", "modulus", "replacement", "action"), {}
)
_ENDPOINT: dict[str, Any] = {
    **dict.fromkeys(("port", "path", "scheme", "interval", "scrapeTimeout", "honorLabels", "honorTimestamps"), {}),
    "relabelings": _RELABELING,
    "metricRelabelings": _RELABELING,
}
_RULE = dict.fromkeys(("record", "alert", "expr", "for", "keep_firing_for", "labels", "annotations"), {})
OPERATOR_KINDS: dict[str, dict[str, Any]] = {
    "PodMonitor": {"selector": _SELECTOR, "namespaceSelector": {}, "podMetricsEndpoints": _ENDPOINT},
    "PrometheusRule": {"groups": {"name": {}, "interval": {}, "limit": {}, "rules": _RULE}},
}
"""Fields of Prometheus' operator's monitoring.coreos.com/v1 (its docs/api-reference/api.md), as far as we may use them.
Empty: whatever stands there.
"""


def unknown_fields(document: dict[str, Any]) -> list[str]:
    """Return the path of every field that the object's kind does not have."""
    if document["kind"] == "WorkflowTemplate":
        parsed = argo.WorkflowTemplate.model_validate(document)
        kept = parsed.model_dump(by_alias=True, exclude_none=True, mode="json")
        return sorted(_missing(document, kept, document["kind"]))
    if document["kind"] in OPERATOR_KINDS:
        known = {"apiVersion": {}, "kind": {}, "metadata": _META, "spec": OPERATOR_KINDS[document["kind"]]}
        return sorted(_beyond(document, known, document["kind"]))
    return sorted(_unknown(document, KINDS[document["kind"]].__name__, document["kind"]))


def _unknown(value: Any, type_name: str, path: str) -> list[str]:
    listed = re.fullmatch(r"list\[(.*)\]", type_name)
    if listed:
        assert isinstance(value, list), f"{path} is no list"
        return [found for item in value for found in _unknown(item, listed[1], f"{path}[]")]
    mapped = re.fullmatch(r"dict\(\w+, (.*)\)|dict\[\w+, (.*)\]", type_name)
    if mapped:
        assert isinstance(value, dict), f"{path} is no mapping"
        inner = mapped[1] or mapped[2]
        return [found for key, item in value.items() for found in _unknown(item, inner, f"{path}.{key}")]
    model = getattr(client, type_name, None)
    if model is None:
        if type_name == "str":
            assert isinstance(value, str), f"{path} is {value!r}, expected text"
        return []
    assert isinstance(value, dict), f"{path} is no mapping"
    names = {alias: name for name, alias in model.attribute_map.items()}
    found = [f"{path}.{key}" for key in value if key not in names]
    for key, item in value.items():
        if key in names:
            found += _unknown(item, model.openapi_types[names[key]], f"{path}.{key}")
    return found


def _beyond(value: Any, known: dict[str, Any], path: str) -> list[str]:
    if isinstance(value, list):
        return [found for item in value for found in _beyond(item, known, f"{path}[]")]
    if not known or not isinstance(value, dict):
        return []
    found = [f"{path}.{key}" for key in value if key not in known]
    return found + [one for key in value if key in known for one in _beyond(value[key], known[key], f"{path}.{key}")]


def _missing(value: Any, kept: Any, path: str) -> list[str]:
    if isinstance(value, dict) and isinstance(kept, dict):
        lost = [f"{path}.{key}" for key in value if key not in kept and value[key] not in ({}, [], None)]
        return lost + [
            found for key in value if key in kept for found in _missing(value[key], kept[key], f"{path}.{key}")
        ]
    if isinstance(value, list) and isinstance(kept, list):
        return [found for item, other in zip(value, kept, strict=True) for found in _missing(item, other, f"{path}[]")]
    return []
