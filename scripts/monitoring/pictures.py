"""Draw the dashboards' panels from what a Prometheus answers, for the documents: Grafana's panels, but not by Grafana.

    python -m scripts.monitoring.pictures http://127.0.0.1:9090 --study NAME --minutes 20

Every panel's own query is asked, with the interval of the rates at a minute; units are Grafana's names.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter, date2num

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "charts" / "automonai" / "files" / "dashboards"
PICTURES = ROOT / "docs" / "images"
COLUMN_INCHES, ROW_INCHES = 0.62, 0.42
LINES_IN_LEGEND = 6
BYTES = ("B", "KiB", "MiB", "GiB", "TiB")

Series = tuple[str, list[tuple[float, float]]]
"""Name, and values at Unix seconds."""


def main() -> None:
    """Draw every dashboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prometheus", help="its URL")
    parser.add_argument("--study", required=True)
    parser.add_argument("--minutes", type=float, required=True, help="how far back")
    parser.add_argument("--until", type=float, default=time.time(), help="Unix seconds; now unless stated")
    options = parser.parse_args()
    mpl.use("Agg")
    for path in sorted(DASHBOARDS.glob("*.json")):
        draw(json.loads(path.read_text()), options, PICTURES / f"dashboard-{path.stem}.png")


def draw(dashboard: dict[str, Any], options: argparse.Namespace, path: Path) -> None:
    """Draw one dashboard into a file, each panel but tables where its grid has it."""
    panels = [panel for panel in dashboard["panels"] if panel["type"] in ("stat", "bargauge", "timeseries")]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(24 * COLUMN_INCHES, rows * ROW_INCHES), layout="none")
    for panel in panels:
        place = panel["gridPos"]
        left, width = place["x"] / 24, place["w"] / 24
        bottom, height = 1 - (place["y"] + place["h"]) / rows, place["h"] / rows
        box = (left + 0.058, bottom + 0.9 / rows, width - 0.066, height - 2.0 / rows)
        axes = figure.add_axes(box)
        series = [one for target in panel["targets"] for one in ask(options, target)]
        draw_panel(axes, panel, series)
    figure.savefig(path, dpi=70)
    plt.close(figure)


def draw_panel(axes: Axes, panel: dict[str, Any], series: list[Series]) -> None:
    """Draw lines, bars or one number, as the panel's type says."""
    unit = panel["fieldConfig"]["defaults"].get("unit", "none")
    axes.set_title(panel["title"], fontsize=9, loc="left", pad=3)
    axes.tick_params(labelsize=7)
    if not series:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", color="0.6", transform=axes.transAxes)
        axes.set_axis_off()
        axes.title.set_visible(True)
    elif panel["type"] == "stat":
        axes.set_axis_off()
        axes.title.set_visible(True)
        axes.text(0.5, 0.45, words(series[0][1][-1][1], unit), ha="center", va="center", fontsize=17, color="#2a7f3f")
    elif panel["type"] == "bargauge":
        draw_bars(axes, series, unit)
    else:
        draw_lines(axes, series, unit)


def draw_bars(axes: Axes, series: list[Series], unit: str) -> None:
    """Draw the last value of each series."""
    names = [label for label, _ in series]
    values = [points[-1][1] for _, points in series]
    axes.barh(range(len(values)), values, color="#4878a8")
    axes.set_yticks(range(len(values)), names, fontsize=7)
    axes.invert_yaxis()
    for row, value in enumerate(values):
        axes.text(value, row, f" {words(value, unit)}", va="center", fontsize=7)
    axes.set_xticks([])
    axes.set_xlim(0, max(values) * 1.3 or 1)


def draw_lines(axes: Axes, series: list[Series], unit: str) -> None:
    """Draw each series over the minutes and seconds of the hour."""
    for label, points in series:
        times = [date2num(datetime.fromtimestamp(at)) for at, _ in points]  # type: ignore[no-untyped-call]
        marker = "o" if len(points) < 3 else None
        axes.plot(times, [value for _, value in points], linewidth=1, marker=marker, markersize=2, label=label)
    axes.yaxis.set_major_formatter(lambda value, _: words(value, unit))
    axes.xaxis.set_major_formatter(DateFormatter("%M:%S"))  # type: ignore[no-untyped-call]
    axes.grid(visible=True, linewidth=0.3)
    if 1 < len(series) <= LINES_IN_LEGEND:
        axes.legend(fontsize=6, loc="best", framealpha=0.6)


def ask(options: argparse.Namespace, target: dict[str, Any]) -> list[Series]:
    """Return what Prometheus has for a target over the time asked for; NaN is left out."""
    query = target["expr"].replace("$__rate_interval", "1m").replace("$study", options.study)
    for variable in ("$namespace", "$workflow", "$pod", "$trial", "$rung"):
        query = query.replace(variable, ".*")
    end = options.until
    asked = {"query": query, "start": end - 60 * options.minutes, "end": end, "step": max(5.0, options.minutes / 4)}
    url = f"{options.prometheus}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - the caller's own address
        found = json.load(answer)["data"]["result"]
    return [
        (name(one["metric"], target["legendFormat"]), points)
        for one in found
        if (points := [(float(at), float(value)) for at, value in one["values"] if value not in ("NaN", "+Inf")])
    ]


def name(labels: dict[str, str], legend: str) -> str:
    """Return what tells a series from the others, as the panel's legend has it."""
    text = re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), legend)
    return labels.get("__name__", "") if legend == "__auto" else text.strip()


def words(value: float, unit: str) -> str:
    """Return a value in its unit."""
    if unit.startswith("bytes") or unit == "Bps":
        exponent = min(len(BYTES) - 1, max(0, int(max(value, 1)).bit_length() - 1) // 10)
        return f"{value / 1024**exponent:.3g} {BYTES[exponent]}{'/s' if unit == 'Bps' else ''}"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    return f"{value:.3g} {'' if unit in ('none', 'short') else unit.removeprefix('suffix: ')}".rstrip()


if __name__ == "__main__":
    main()
