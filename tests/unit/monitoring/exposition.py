"""The names of the metrics that the code exposes."""

from __future__ import annotations

from automonai.observability.gpu import GPU_METRICS
from automonai.observability.storage_metrics import STORAGE_METRICS
from automonai.observability.study_metrics import STUDY_METRICS
from automonai.observability.training_metrics import TRAINING_METRICS

SUFFIXES = {"counter": ("",), "gauge": ("",), "summary": ("_sum", "_count"), "histogram": ("_sum", "_count", "_bucket")}
"""Of the series of each kind of metric."""


def exposed_names() -> set[str]:
    """Return every name that an expression may use."""
    definitions = (*STUDY_METRICS, *STORAGE_METRICS, *TRAINING_METRICS, *GPU_METRICS)
    return {f"{one.name}{suffix}" for one in definitions for suffix in SUFFIXES[one.kind]}
