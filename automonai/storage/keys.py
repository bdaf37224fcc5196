"""The layout of a study's folder: every key that anybody reads or writes."""

from __future__ import annotations

SPEC = "study.yaml"
DATA = "data.json"
SPLIT = "split.json"
ENSEMBLE = "ensemble/ensemble.json"
ENSEMBLE_RUN = "ensemble"
"""The run id of the last step."""
REPORT_HTML = "report.html"
REPORT_JSON = "report.json"
JOURNAL = "journal/"
RUNS = "runs/"


def journal_entry(number: int) -> str:
    """Return the key of the journal's entry of that number."""
    return f"{JOURNAL}{number:08d}.json"


def request(run_id: str) -> str:
    """Return the key of a run's request."""
    return f"{RUNS}{run_id}/request.json"


def result(run_id: str) -> str:
    """Return the key of a run's result."""
    return f"{RUNS}{run_id}/result.json"


def answer(run_id: str) -> str:
    """Return the key of what ends a request: a run's result, or the ensemble."""
    return ENSEMBLE if run_id == ENSEMBLE_RUN else result(run_id)


def checkpoint_manifest(run_id: str) -> str:
    """Return the key of the manifest that commits a run's checkpoint."""
    return f"{RUNS}{run_id}/checkpoint/manifest.json"


def run_of_checkpoint(key: str) -> str | None:
    """Return whose checkpoint a key is part of; None if it is part of none."""
    folder, _, part = key.removeprefix(RUNS).partition("/checkpoint/")
    return folder if part else None


def log(run_id: str) -> str:
    """Return the key of a run's log."""
    return f"{RUNS}{run_id}/log.txt"
