"""How many series Prometheus has to hold; docs/monitoring.md states the limits."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import ProcessCollector

from automonai.observability.gpu import GPU_METRICS
from automonai.observability.storage_metrics import OPERATIONS, REQUEST_SECONDS, REQUESTS, TRANSFERRED_BYTES
from automonai.observability.study_metrics import STUDY_METRICS
from automonai.observability.training_metrics import DICE, STEP_SECONDS, TRAINING_METRICS

MOST_OF_CONTROLLER, MOST_OF_TRAINING, CLASSES, TRAININGS = 512, 128, 3, 64
CODES = ("2xx", "404", "503", "unanswered")
"""A store that answers every operation in more ways than these at once is no use case."""
DOCUMENT = Path(__file__).parents[3] / "docs" / "monitoring.md"


def series_of_training(classes: int) -> int:
    counts = {DICE: classes, STEP_SECONDS: 2}
    training = sum(definition.series(counts.get(definition, 1)) for definition in (*TRAINING_METRICS, *GPU_METRICS))
    storage = REQUESTS.series(len(OPERATIONS) * len(CODES)) + REQUEST_SECONDS.series(len(OPERATIONS))
    process = sum(len(family.samples) for family in ProcessCollector(registry=None).collect())
    return training + storage + TRANSFERRED_BYTES.series(2) + process


def test_a_training_stays_within_its_budget_and_each_class_is_one_series() -> None:
    assert MOST_OF_TRAINING * 0.7 < series_of_training(0) <= MOST_OF_TRAINING
    assert series_of_training(CLASSES) == series_of_training(0) + CLASSES


def test_the_document_states_the_budget_that_the_tests_hold() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    total = MOST_OF_CONTROLLER + TRAININGS * (MOST_OF_TRAINING + CLASSES)
    assert f"{MOST_OF_CONTROLLER} + {TRAININGS} × {MOST_OF_TRAINING + CLASSES} = {total}" in text


def test_no_label_has_values_without_end() -> None:
    known = {
        "code",
        "dataset",
        "device",
        "direction",
        "label",
        "limit",
        "objective",
        "operation",
        "origin",
        "outcome",
        "phase",
        "reason",
        "rung",
        "sampler",
        "state",
        "version",
    }
    definitions = (*STUDY_METRICS, *TRAINING_METRICS, *GPU_METRICS, REQUESTS, REQUEST_SECONDS, TRANSFERRED_BYTES)
    assert {label for definition in definitions for label in definition.labels} == known


def test_names_have_the_prefix_and_the_endings_of_their_types() -> None:
    for definition in (*STUDY_METRICS, *TRAINING_METRICS, *GPU_METRICS, REQUESTS, REQUEST_SECONDS, TRANSFERRED_BYTES):
        assert re.fullmatch(r"automonai_[a-z_]+", definition.name)
        assert definition.name.endswith("_total") == (definition.kind == "counter")
        assert definition.help.endswith(".")
