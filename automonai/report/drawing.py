"""Turns matplotlib figures into inline SVG that is the same for the same study, with text as text."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from textwrap import shorten, wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from automonai.report.words import duration

# The colour-blind-safe palette of Okabe and Ito (2008), https://jfly.uni-koeln.de/color/
BLUE, SKY, ORANGE, VERMILLION = "#0072B2", "#56B4E9", "#E69F00", "#D55E00"
GREEN, PURPLE = "#009E73", "#CC79A7"
INK, MUTED, RULE = "#1c2733", "#5b6875", "#d5dce3"

WIDTH_INCHES = 8.6
"""At full width the page shows an inch as 100 pixels, so that 9 points are 12.5 pixels."""

_STYLE: dict[Any, Any] = {  # matplotlib types its settings by one literal of all names
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],  # ships with matplotlib; wider than what the page puts in its place
    "font.size": 9.0,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def draw_svg(name: str, draw: Callable[[Figure], None], *, height_inches: float, description: str) -> str:
    """Return a figure as an `<svg>` element that scales with the page.

    Args:
        name: Unique on the page; it keeps the ids of several figures apart.
        draw: Draws into the empty figure.
        height_inches: Its height, where the width is `WIDTH_INCHES`.
        description: What a screen reader says instead.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA, transparent=True)
    return _inlined(buffer.getvalue(), name, description)


def _inlined(document: str, name: str, description: str) -> str:
    """Return the element alone: no prolog, no size of its own, no namespace addresses, ids with a prefix."""
    body = document[document.index("<svg") :].strip()
    opening, rest = body.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', opening)
    rest = re.sub(r'\bid="', f'id="{name}-', rest)
    rest = re.sub(r'href="#', f'href="#{name}-', rest).replace("url(#", f"url(#{name}-")
    label = html.escape(description, quote=True)
    return f'<svg {view.group(0) if view else ""} role="img" aria-label="{label}">{rest}'


def label_of(name: str, *, width: int = 24, lines: int = 2) -> str:
    """Return a name that fits a label: in lines of at most `width` letters, the rest cut with an ellipsis."""
    broken = wrap(name, width, break_long_words=True, break_on_hyphens=False)
    if len(broken) <= lines:
        return "\n".join(broken)
    last = shorten(" ".join(broken[lines - 1 :]), width, placeholder="…")
    if last == "…":
        last = broken[lines - 1][: width - 1] + "…"
    return "\n".join([*broken[: lines - 1], last])


def style_grid(axes: Axes, which: str = "y") -> None:
    """Draw a light grid along one axis or both, and no tick marks."""
    axes.grid(visible=True, axis="both" if which == "both" else "x" if which == "x" else "y")
    axes.tick_params(length=0)


def draw_points(axes: Axes, points: Sequence[tuple[float, float]], marker: str, **style: Any) -> None:
    """Draw points on an axis whose limits are set, those below it as triangles at its lower edge.

    Args:
        axes: To draw on.
        points: x and y.
        marker: Of those that are not below the axis.
        style: As matplotlib's `plot` takes it.
    """
    low, high = axes.get_ylim()
    edge = low + 0.018 * (high - low)  # keeps triangles off the labels
    above = [(x, y) for x, y in points if y >= low]
    below = [(x, edge) for x, y in points if y < low]
    for shape, shown in ((marker, above), ("v", below)):
        if shown:
            axes.plot(*zip(*shown, strict=True), shape, **style)


def range_of_the_best(values: Sequence[float]) -> tuple[float, float]:
    """Return the range to draw, without the lowest quarter of the values where that would take more than half of it."""
    low, quarter, high = (float(np.quantile(values, share)) for share in (0, 0.25, 1))
    return (quarter, high) if high - low > 2 * (high - quarter) else (low, high)


def seconds_axis(axes: Axes, largest: float) -> None:
    """Label a linear x axis of seconds in the unit that suits it."""
    step = next((s for s in _STEPS if largest / s <= 8), _STEPS[-1] * max(1, round(largest / _STEPS[-1] / 8)))
    ticks = [step * k for k in range(int(largest / step) + 2) if step * k <= largest * 1.02]
    axes.set_xticks(ticks, [short_duration(tick) for tick in ticks])


def log_seconds_axis(axes: Axes, low: float, high: float) -> None:
    """Make x a logarithmic axis of seconds with round durations as ticks; its ends where there are no two of these."""
    axes.set_xscale("log")
    axes.set_xlim(low / 1.15, high * 1.15)
    labels = {step: short_duration(step) for step in _ROUND_SECONDS if low / 1.15 <= step <= high * 1.15}
    if len(labels) < 2:
        labels = (
            {low: duration(low)} if duration(low) == duration(high) else {end: duration(end) for end in (low, high)}
        )
    ticks = list(labels)
    while len(ticks) > 8:
        ticks = ticks[::2]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([labels[tick] for tick in ticks])


def short_duration(seconds: float) -> str:
    """Return a round duration, e.g. `90 s`, `15 min`, `2.5 h`, `3 d`."""
    if seconds == 0:
        return "0"
    for factor, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= factor and seconds % (factor / 2) == 0:
            return f"{seconds / factor:g} {unit}"
    return f"{seconds:g} s" if seconds < 60 else duration(seconds)


_STEPS = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10800, 21600, 43200, 86400, 172800, 432000, 864000),
)
_ROUND_SECONDS = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600),
    *(7200, 14400, 28800, 43200, 86400, 172800, 432000, 864000),
)
