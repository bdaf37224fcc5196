"""Write the chart's dashboards and rules: `python -m scripts.monitoring`, after every change of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from scripts.monitoring.capacity import CAPACITY
from scripts.monitoring.grafana import to_json
from scripts.monitoring.rules import to_groups
from scripts.monitoring.runs import RUNS
from scripts.monitoring.studies import STUDIES

FILES = Path(__file__).resolve().parents[2] / "charts" / "automonai" / "files"
NOTICE = "# Written by 'python -m scripts.monitoring'; change that package, then run it again.\n"
DASHBOARDS = {"studies": STUDIES, "runs": RUNS, "capacity": CAPACITY}


def documents() -> Mapping[Path, str]:
    """Return file to content of everything that is written."""
    written = {
        FILES / "dashboards" / f"{name}.json": json.dumps(to_json(dashboard), indent=2) + "\n"
        for name, dashboard in DASHBOARDS.items()
    }
    rules = yaml.safe_dump(to_groups(), sort_keys=False, width=120, allow_unicode=True)
    return {**written, FILES / "rules.yaml": NOTICE + rules}


def main() -> None:
    """Write every file."""
    for path, text in documents().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
