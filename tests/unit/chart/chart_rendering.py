"""Where the chart and its values files lie, and what helm gives back."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHART = Path(__file__).parents[3] / "charts" / "automonai"
VALUES = Path(__file__).parent / "values"
APIS = ("argoproj.io/v1alpha1/WorkflowTemplate", "kueue.x-k8s.io/v1beta1", "monitoring.coreos.com/v1")

Object = dict[str, Any]
Helm = Callable[..., subprocess.CompletedProcess[str]]
Render = Callable[..., list[Object]]
