"""A dashboard as records, and the JSON that Grafana 11 and later load (schema version 39)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]

SCHEMA_VERSION = 39
ARGO_URL = "https://127.0.0.1:2746"
"""What `kubectl port-forward service/argo-server 2746` gives; the chart replaces it by metrics.argoUrl."""
STUDY = 'namespace=~"$namespace", study=~"$study"'
"""Selects the series of the chosen study; on one machine they have no namespace, and the variable is empty."""
WIDTH = 24
_DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    """One PromQL expression of a panel."""

    expr: str
    legend: str = ""
    """Names each series; empty: Grafana's own name."""


@dataclass(frozen=True)
class Panel:
    """One question that a dashboard answers."""

    title: str
    description: str
    """What is shown, and what to make of it."""
    unit: str
    """Grafana's name of it, such as `s`, `bytes`, `percentunit`; `none` for counts."""
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat", "bargauge", "table"] = "timeseries"
    thresholds: tuple[tuple[float, str], ...] = ()
    """Value from which on a colour holds, ascending."""
    base_color: str = "green"
    """Below the first threshold."""
    is_stacked: bool = False
    highest: float | None = None
    """End of the axis; None: as the data has it."""
    width: int = 8
    height: int = 8


@dataclass(frozen=True)
class Variable:
    """A drop-down above the panels whose choices are a label's values."""

    name: str
    series: str
    """Selector of the series that have the label."""
    label: str
    has_all: bool = False
    """Offers `All`, and starts with it."""
    is_hidden: bool = False


@dataclass(frozen=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...]
    variables: tuple[Variable, ...] = ()
    """Beside those that every page has."""


COMMON_VARIABLES = (
    Variable("namespace", "automonai_study_info", "namespace"),
    Variable("workflow", 'automonai_study_info{namespace=~"$namespace"}', "workflow", has_all=True),
    Variable("study", 'automonai_study_info{namespace=~"$namespace", workflow=~"$workflow"}', "study"),
    Variable("owner", f"automonai_study_info{{{STUDY}}}", "workflow", is_hidden=True),
)
"""`workflow` is how Argo's UI asks for a study, whose name it does not know; `owner` is the way back."""


def to_json(dashboard: Dashboard) -> Json:
    """Return what Grafana loads."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["automonai"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "",
        "links": _links(),
        "templating": {"list": [_datasource(), *map(_variable, (*COMMON_VARIABLES, *dashboard.variables))]},
        "annotations": {"list": []},
        "panels": list(_placed(dashboard.panels)),
    }


def _links() -> list[Json]:
    return [
        {
            "type": "dashboards",
            "title": "AutoMONAI",
            "tags": ["automonai"],
            "asDropdown": False,
            "includeVars": True,
            "keepTime": True,
            "targetBlank": False,
        },
        {
            "type": "link",
            "title": "Workflow in Argo",
            "icon": "external link",
            "tooltip": "The study's workflow: its steps, logs and report",
            "url": f"{ARGO_URL}/workflows/${{namespace}}/${{owner}}",
            "targetBlank": True,
        },
    ]


def _datasource() -> Json:
    return {
        "name": "datasource",
        "label": "data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
    }


def _variable(variable: Variable) -> Json:
    query = f"label_values({variable.series}, {variable.label})"
    made: Json = {
        "name": variable.name,
        "label": variable.name,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": variable.name},
        "definition": query,
        "refresh": 2,  # when the time range changes: a study that is over has series in the past only
        "sort": 1,
        "hide": 2 if variable.is_hidden else 0,
        "multi": False,
        "includeAll": variable.has_all,
    }
    if variable.has_all:
        made |= {"allValue": ".*", "current": {"text": "All", "value": "$__all", "selected": True}}
    return made


def _placed(panels: tuple[Panel, ...]) -> Iterator[Json]:
    """Yield the panels in reading order, each line as high as its highest."""
    x = y = line_height = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > WIDTH:
            x, y, line_height = 0, y + line_height, 0
        yield {"id": number, **_panel(panel), "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height}}
        x, line_height = x + panel.width, max(line_height, panel.height)


def _panel(panel: Panel) -> Json:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "targets": [_target(panel, index, query) for index, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
        # Several queries of a table become one line for each study.
        "transformations": [{"id": "merge", "options": {}}] if panel.kind == "table" else [],
    }


def _target(panel: Panel, index: int, query: Query) -> Json:
    is_range = panel.kind == "timeseries"
    return {
        "refId": chr(ord("A") + index),
        "datasource": _DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "range": is_range,
        "instant": not is_range,
        "format": "table" if panel.kind == "table" else "time_series",
    }


def _defaults(panel: Panel) -> Json:
    steps: list[Json] = [{"color": panel.base_color, "value": None}]
    steps += [{"color": color, "value": value} for value, color in panel.thresholds]
    made: Json = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.highest is not None:
        made |= {"min": 0, "max": panel.highest}
    if panel.kind == "timeseries":
        made["color"] = {"mode": "palette-classic"}
        made["custom"] = {
            "drawStyle": "line",
            "lineWidth": 2,
            "fillOpacity": 30 if panel.is_stacked else 0,
            "showPoints": "auto",
            "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.thresholds else "off"},
        }
    else:
        made["color"] = {"mode": "thresholds"}
    return made


_REDUCED: Json = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: dict[str, Json] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": _REDUCED,
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "auto",
        "justifyMode": "auto",
        "orientation": "auto",
    },
    "bargauge": {
        "reduceOptions": _REDUCED,
        "orientation": "horizontal",
        "displayMode": "basic",
        "valueMode": "text",
        "showUnfilled": True,
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
}
