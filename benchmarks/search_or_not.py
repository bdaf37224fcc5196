"""What a search is worth: a study within a time budget, beside the same time without a search.

Both start from the spec that `automonai init` writes. Without a search the standard configuration is trained for two
epochs, which tells its speed, and then refitted for all the rest of the time, its ensemble and test included. One after
the other, on a machine that does nothing else:

    python benchmarks/search_or_not.py DATASET --budget 1h --output FOLDER

Prints a table in Markdown; a study that is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

WITHOUT_SEARCH = (
    "search.sampler=random",
    "budget.iterations=1",
    "budget.min_epochs=2",
    "budget.max_epochs=2",
)


def main() -> None:
    """Run both studies and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--budget", default="1h")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    spec = options.output / "study.yaml"
    if not spec.exists():
        spec.write_text(_automonai("init", str(options.dataset), "--budget", options.budget))
    store = options.output / "studies"
    studies = {"search": (), "no-search": WITHOUT_SEARCH}
    for name, overrides in studies.items():
        settings = (f"name={name}", f"store={store}", *overrides)
        _automonai("search", str(spec), *(word for setting in settings for word in ("--set", setting)))
    print(_table({name: json.loads((store / name / "report.json").read_text()) for name in studies}))


def _automonai(*arguments: str) -> str:
    command = [sys.executable, "-m", "automonai.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _table(reports: dict[str, dict]) -> str:
    lines = [
        "| study | test Dice (95 % interval) | configurations | networks | epochs: search + refit | time |",
        "|---|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        test, budget = report["test"], report["budget"]
        tried = sum(report["proposals"][origin] for origin in ("standard", "model", "random", "fallback"))
        lines.append(
            f"| {name} | {test['mean_dice']:.4f} ({test['mean_dice_low']:.4f} to {test['mean_dice_high']:.4f})"
            f" | {tried} | {len(report['ensemble']['members'])}"
            f" | {budget['epochs']} + {budget['refit_epochs']} | {budget['seconds'] / 60:.1f} min |"
        )
        for label, dice in test["dice"].items():
            lines.append(
                f"| &nbsp;&nbsp;{label} | {dice['mean']:.4f} ({dice['low']:.4f} to {dice['high']:.4f}) | | | | |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
