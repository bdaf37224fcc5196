"""Names in PromQL, and what Grafana puts in place of its variables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

INTERVAL = "5m"
"""In place of $__rate_interval."""


def expressions(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each panel's title and expressions."""
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def filled(expression: str, **variables: str) -> str:
    """Return the expression as Grafana sends it; a variable that is not named matches everything."""
    text = expression.replace("$__rate_interval", INTERVAL)
    return re.sub(r"\$(\w+)", lambda match: variables.get(match[1], ".*"), text)


def metric_names(expression: str) -> set[str]:
    """Return the names of our own metrics; recorded series have colons and are left out."""
    plain = re.sub(r'"[^"]*"', '""', expression)
    return set(re.findall(r"(?<![\w:])automonai_\w+", plain))
