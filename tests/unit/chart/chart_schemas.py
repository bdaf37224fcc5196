"""Checks objects against the classes that the Kubernetes and Hera clients generate from the APIs' own schemas."""

from __future__ import annotations

import json
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
_TO = {"toEntities": {}, "toPorts": {"ports": {"port": {}, "protocol": {}}}}
OPERATOR_KINDS: dict[str, dict[str, Any]] = {
    "PodMonitor": {"selector": _SELECTOR, "namespaceSelector": {}, "podMetricsEndpoints": _ENDPOINT},
    "PrometheusRule": {"groups": {"name": {}, "interval": {}, "limit": {}, "rules": _RULE}},
    "CiliumNetworkPolicy": {"endpointSelector": _SELECTOR, "egress": _TO},
}
"""Fields of Prometheus' operator's monitoring.coreos.com/v1 (its docs/api-reference/api.md) and of
Cilium's cilium.io/v2 (its Documentation/security/policy), as far as we may use them. Empty: whatever stands there.
"""


def unknown_fields(document: dict[str, Any]) -> list[str]:
    """Return the path of every field that the object's kind does not have.

    Raises:
        ValidationError: If a field is missing or of a wrong type.
    """
    kind, in_patches = document["kind"], list[str]()
    if kind == "WorkflowTemplate":
        parsed = argo.WorkflowTemplate.model_validate(document)
        in_patches = [field for template in document["spec"]["templates"] for field in _unknown_in_patch(template)]
    elif kind in OPERATOR_KINDS:
        known = {"apiVersion": {}, "kind": {}, "metadata": _META, "spec": OPERATOR_KINDS[kind]}
        return sorted(_beyond(document, known, kind))
    else:
        parsed = KINDS[kind].from_dict(document)
    kept = parsed.model_dump(by_alias=True, exclude_none=True, mode="json")
    return sorted([*_missing(document, kept, kind), *in_patches])


def _unknown_in_patch(template: dict[str, Any]) -> list[str]:
    """Return the fields of a workflow's pod patch, JSON in a text, that pods do not have."""
    if "podSpecPatch" not in template:
        return []
    return unknown_fields({"kind": "Pod", "metadata": {}, "spec": json.loads(template["podSpecPatch"])})


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
