"""The report's figures. Each returns inline SVG, or an empty text when there is nothing to draw yet."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from automonai.domain.run import CurvePoint, Origin, RunState
from automonai.domain.study import OWN_FAULTS, Study
from automonai.report.drawing import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    RULE,
    SKY,
    VERMILLION,
    draw_points,
    draw_svg,
    label_of,
    log_seconds_axis,
    range_of_the_best,
    seconds_axis,
    style_grid,
)
from automonai.report.summarising import longest_curves
from automonai.report.summary import HeldOutScores, Importance, Summary, TrialSummary
from automonai.report.words import HYPERPARAMETER_WORDS, ORIGIN_WORDS, value_words
from automonai.spec import Choice, IntegerRange, Ordered, RealRange, SamplerName

_RANKS = LinearSegmentedColormap.from_list("ranks", ["#004a7c", "#2f8fc4", "#b3c3d1"])
"""Best to worst, by lightness, so that it survives grey printing."""
_BEST = ((VERMILLION, "-", "o"), (ORANGE, "--", "s"), (PURPLE, "-.", "D"))
"""Colour, line and marker of the first three."""
_AXES_PER_ROW = 5
_TELLING_POINTS = 3
"""So many points make a curve, and so many ticks a scale."""


class Moment(NamedTuple):
    """A run of the search that completed, or failed by its own fault, and the best Dice once it was there."""

    seconds: float
    dice: float | None
    """None if it failed."""
    best: float
    budget_epochs: int


def learning_curves(summary: Summary, study: Study) -> str:
    """Draw mean validation Dice against epochs, a line per configuration."""
    curves = {trial: curve for trial, curve in longest_curves(study).items() if curve}
    if len(curves) < 2 and max(map(len, curves.values()), default=0) < _TELLING_POINTS:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _dice_axis(axes, [point.mean_dice for curve in curves.values() for point in curve])
        ranked = [trial for trial in summary.trials if trial.trial in curves]
        for trial in reversed(ranked):
            _draw_curve(axes, trial, curves[trial.trial], len(ranked))
        _epochs_axis(axes, curves.values(), summary.rungs)
        style_grid(axes)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=5, handlelength=2.4)

    return draw_svg(
        "curves",
        draw,
        height_inches=4.3,
        description=f"Learning curves of {len(curves)} configurations: mean validation Dice against epochs.",
    )


def _draw_curve(axes: Axes, trial: TrialSummary, curve: Sequence[CurvePoint], ranks: int) -> None:
    epochs, dice = [p.epoch for p in curve], [p.mean_dice for p in curve]
    last = [(epochs[-1], dice[-1])]
    if trial.rank is not None and trial.rank <= len(_BEST):
        colour, line, marker = _BEST[trial.rank - 1]
        label = f"{_ordinal(trial.rank)}: trial {trial.trial}"
        axes.plot(epochs, dice, line, color=colour, linewidth=2, zorder=5 - trial.rank / 10, label=label)
        draw_points(axes, last, marker, color=colour, markersize=6, zorder=5)
        return
    shade = _rank_colour(ranks if trial.rank is None else trial.rank, ranks)
    entry = {len(_BEST) + 1: "next ranks: dark", ranks: "last ranks: pale"}.get(trial.rank or 0)
    axes.plot(epochs, dice, color=shade, linewidth=1, zorder=2, label=entry)
    end = "x" if trial.failure is not None else "."
    draw_points(axes, last, end, color=shade, markersize=5, zorder=2)


def _ordinal(rank: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(rank, f"{rank}th")


def _rank_colour(rank: int, ranks: int) -> tuple[float, float, float, float]:
    red, green, blue, alpha = _RANKS((rank - 1) / max(1, ranks - 1))
    return (red, green, blue, alpha)


def _epochs_axis(axes: Axes, curves: Collection[Sequence[CurvePoint]], rungs: Sequence[int]) -> None:
    """Make x logarithmic with the rungs as ticks, since each rung is a multiple of the last.

    Where these are few the first validations are ticks as well, for one or two alone tell no scale.
    """
    firsts, last = sorted({curve[0].epoch for curve in curves}), max(curve[-1].epoch for curve in curves)
    axes.set_xscale("log")
    axes.set_xlim(min(*firsts, *rungs) / 1.08, last * 1.08)
    ticks = {epoch: "the budgets of the search" for epoch in rungs if epoch <= last * 1.08}
    if len(ticks) < _TELLING_POINTS:
        ticks = dict.fromkeys(firsts[:_TELLING_POINTS], "first validations") | ticks
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(tick) for tick in ticks])
    for tick in ticks:
        axes.axvline(tick, color=RULE, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    axes.set_xlabel(f"Epochs trained (ticks: {' and '.join(sorted(set(ticks.values()), reverse=True))})")


def _dice_axis(axes: Axes, values: Sequence[float]) -> None:
    """Scale y so that the best can be told apart."""
    low, high = range_of_the_best(values)
    margin = max(0.01, 0.05 * (high - low))
    axes.set_ylim(max(-0.02, low - margin), min(1.02, high + margin))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_ylabel("Mean Dice on validation cases")


def incumbent_over_time(summary: Summary, study: Study) -> str:
    """Draw the best Dice so far against the time that the study had spent."""
    moments = incumbent_moments(study)
    if sum(trial.rank is not None for trial in summary.trials) < 2:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        seconds = [moment.seconds for moment in moments]
        end = summary.budget.search_seconds or seconds[-1]
        points = [(m.seconds, m.dice, m.budget_epochs) for m in moments if m.dice is not None]
        _dice_axis(axes, [dice for _, dice, _ in points])
        _scatter_by_budget(axes, points)
        steps = [*moments, moments[-1]._replace(seconds=max(end, seconds[-1]))]
        axes.step(
            [m.seconds for m in steps],
            [m.best for m in steps],
            where="post",
            color=VERMILLION,
            linewidth=2,
            label="best so far",
        )
        axes.set_xlim(0, steps[-1].seconds * 1.02 or 1)
        seconds_axis(axes, steps[-1].seconds)
        axes.set_xlabel("Time since the study started (pauses left out)")
        style_grid(axes)
        figure.legend(loc="outside lower center", ncols=6)

    return draw_svg(
        "incumbent",
        draw,
        height_inches=3.7,
        description=f"Best mean Dice so far over time, from {moments[0].best:.3f} to {moments[-1].best:.3f}.",
    )


def incumbent_moments(study: Study) -> list[Moment]:
    """Return what changed the ranking in its order, each time with the incumbent's Dice from then on.

    A trial counts by its last rung, and one that fails in a longer training stands behind those that did not, as in the
    study's ranking: so the best may fall.
    """
    last: dict[int, tuple[bool, float, float]] = {}
    moments = []
    search = {record.run.id: record for record in study.search_records()}
    for run_id in study.finished:
        record = search.get(run_id)
        if record is None or record.result is None or record.finished_at is None:
            continue
        trial, dice, loss = record.run.trial, record.result.mean_dice, record.result.loss
        if record.state is RunState.COMPLETE and dice is not None and loss is not None:
            last[trial] = (False, loss, dice)
        elif record.result.reason in OWN_FAULTS and trial in last:
            last[trial], dice = (True, *last[trial][1:]), None
        else:
            continue
        _, _, best = min(last.values())
        moments.append(Moment(study.elapsed_at(record.finished_at), dice, best, record.run.budget_epochs))
    return moments


_MARKERS = (
    *((SKY, "o"), (BLUE, "^"), (GREEN, "s"), (INK, "D"), (PURPLE, "v"), (MUTED, "P")),
    *((SKY, "*"), (GREEN, ">"), (BLUE, "X"), (PURPLE, "<"), (INK, "p")),
)


def _scatter_by_budget(axes: Axes, points: Sequence[tuple[float, float, int]]) -> None:
    for position, budget in enumerate(sorted({budget for _, _, budget in points})):
        colour, marker = _MARKERS[position % len(_MARKERS)]
        chosen = [(x, y) for x, y, of in points if of == budget]
        style: dict[str, Any] = {"color": colour, "markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.5}
        draw_points(axes, chosen, marker, **style)
        axes.plot([], [], marker, label=f"{budget} epochs" if budget != 1 else "1 epoch", **style)


def importance_bars(importance: Importance) -> str:
    """Draw the importance of each hyperparameter as a bar with its scatter over shuffles."""
    if importance.missing:
        return ""
    shares = importance.shares[::-1]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = range(len(shares))
        axes.barh(places, [share.mean for share in shares], color=BLUE, height=0.6)
        axes.errorbar(
            [share.mean for share in shares],
            places,
            xerr=[share.std for share in shares],
            fmt="none",
            ecolor=INK,
            elinewidth=1,
            capsize=3,
        )
        axes.set_yticks(places, [HYPERPARAMETER_WORDS.get(share.name, share.name) for share in shares])
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.set_xlabel("Share of the differences between results no longer predicted when the values are shuffled")
        style_grid(axes, "x")

    return draw_svg(
        "importance",
        draw,
        height_inches=0.8 + 0.28 * len(shares),
        description="Importance of each hyperparameter, the most important on top: "
        + ", ".join(f"{share.name} {share.mean:.2f}" for share in importance.shares),
    )


def parallel_coordinates(summary: Summary, study: Study) -> str:
    """Draw every configuration as a line through its values, coloured by rank."""
    ranked = [trial for trial in summary.trials if trial.dice is not None]
    if len(ranked) < 2 or not summary.searched:
        return ""
    count = -(-len(summary.searched) // _AXES_PER_ROW)
    size = -(-len(summary.searched) // count)
    rows = [summary.searched[k : k + size] for k in range(0, len(summary.searched), size)]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(rows), squeeze=False)[:, 0]
        for axes, names in zip(panels, rows, strict=True):
            _draw_coordinates(axes, names, size, ranked, study)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=5, handlelength=2.4)

    return draw_svg(
        "parallel",
        draw,
        height_inches=0.5 + 2.75 * len(rows),
        description=f"Parallel coordinates of {len(ranked)} configurations over {', '.join(summary.searched)}.",
    )


def _draw_coordinates(
    axes: Axes, names: Sequence[str], size: int, ranked: Sequence[TrialSummary], study: Study
) -> None:
    scales = [_scale(study, name, ranked) for name in names]
    worst, best = range_of_the_best([trial.dice or 0.0 for trial in ranked])
    worst = min(worst, best - 0.01)
    for trial in ranked[::-1]:
        shift = 0.05 * (((trial.trial * 7) % 11) / 10 - 0.5)  # keeps lines through one value apart
        heights = [scale.height(getattr(trial.configuration, scale.name)) for scale in scales]
        heights = [h + shift if s.is_discrete else h for h, s in zip(heights, scales, strict=True)]
        heights.append(min(1.0, max(0.0, ((trial.dice or 0) - worst) / (best - worst))))
        _draw_line(axes, [*range(len(names)), size], heights, trial, len(ranked))
    for place, scale in enumerate(scales):
        _draw_axis(axes, place, label_of(HYPERPARAMETER_WORDS.get(scale.name, scale.name), width=16), scale.ticks)
    ticks = [(k / 4, f"{worst + (best - worst) * k / 4:.3f}") for k in range(5)]
    ticks[0] = (0, f"{'≤ ' if min(trial.dice or 0.0 for trial in ranked) < worst else ''}{worst:.3f}")
    _draw_axis(axes, size, "Mean Dice\nin the search", ticks)
    axes.set_xlim(-0.15, size + 0.5)
    axes.set_ylim(-0.08, 1.3)
    axes.axis("off")


def _draw_line(axes: Axes, places: Sequence[int], heights: Sequence[float], trial: TrialSummary, ranks: int) -> None:
    rank = trial.rank or ranks
    if rank <= len(_BEST):
        colour, line, _ = _BEST[rank - 1]
        label = f"{_ordinal(rank)}: trial {trial.trial}"
        axes.plot(places, heights, line, color=colour, linewidth=2.2, zorder=10 - rank, label=label)
        return
    axes.plot(places, heights, color=_rank_colour(rank, ranks), linewidth=0.9, alpha=0.8, zorder=2)


def _draw_axis(axes: Axes, place: int, title: str, ticks: Sequence[tuple[float, str]]) -> None:
    axes.plot([place, place], [-0.04, 1.04], color=INK, linewidth=1, zorder=20)
    axes.text(place, 1.1, title, ha="center", va="bottom", fontsize=8.5, fontweight="bold", linespacing=1.1)
    for height, text in ticks:
        axes.text(
            place + 0.04,
            height,
            text,
            va="center",
            fontsize=7.8,
            zorder=21,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8},
        )


class _Scale(NamedTuple):
    """Where a hyperparameter's values lie between 0 and 1."""

    name: str
    low: float
    high: float
    is_log: bool
    order: tuple[object, ...]
    """The values themselves where there are few; empty for ranges."""

    @property
    def is_discrete(self) -> bool:
        return bool(self.order)

    def height(self, value: object) -> float:
        if self.order:
            place = self.order.index(value) if value in self.order else 0
            return place / max(1, len(self.order) - 1)
        number = float(value) if isinstance(value, int | float) else self.low
        if self.is_log:
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        if self.order:
            return [(self.height(value), value_words(self.name, value)) for value in self.order]
        steps = [k / 4 for k in range(5)]
        if self.is_log:
            return [(s, value_words(self.name, self.low * (self.high / self.low) ** s)) for s in steps]
        round_values = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        within = [value for value in round_values if self.low <= value <= self.high]
        return [(self.height(float(value)), value_words(self.name, float(value))) for value in within]


def _scale(study: Study, name: str, ranked: Sequence[TrialSummary]) -> _Scale:
    """Return the scale of a hyperparameter: its range in the spec, widened to the values that were tried."""
    entry = study.spec.search.space[name]
    tried = [getattr(trial.configuration, name) for trial in ranked]
    match entry:
        case Choice(values=values) | Ordered(values=values):
            return _Scale(name, 0, 1, is_log=False, order=(*values, *_others(tried, values)))
        case IntegerRange(low=low, high=high) if high - low < 10:
            whole = tuple(range(low, high + 1))
            return _Scale(name, 0, 1, is_log=False, order=(*whole, *_others(tried, whole)))
        case IntegerRange() | RealRange():
            numbers = [float(value) for value in tried if isinstance(value, int | float)]
            lowest, highest = min([entry.low, *numbers]), max([entry.high, *numbers])
            return _Scale(name, lowest, highest, is_log=entry.log and lowest > 0, order=())
        case _:
            return _Scale(name, 0, 1, is_log=False, order=(entry,))


def _others(tried: Sequence[object], values: Sequence[object]) -> list[object]:
    """Return what was tried outside the space: the standard configuration may lie there."""
    return list(dict.fromkeys(value for value in tried if value not in values))


def dice_against_cost(summary: Summary) -> str:
    """Draw each configuration's Dice against the seconds that it took, and the Pareto front."""
    tried = [trial for trial in summary.trials if trial.dice is not None and trial.seconds > 0]
    if len(tried) < 2:
        return ""
    front = pareto_front(tried)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _dice_axis(axes, [t.dice or 0 for t in tried])
        _scatter_by_budget(axes, [(t.seconds, t.dice or 0, t.budget_epochs) for t in tried])
        seconds, dice = [t.seconds for t in front], [t.dice or 0 for t in front]
        last = max(t.seconds for t in tried)
        axes.step([*seconds, last], [*dice, dice[-1]], where="post", color=VERMILLION, linewidth=1.5, zorder=1)
        ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": VERMILLION, "markersize": 10}
        draw_points(axes, list(zip(seconds, dice, strict=True)), "o", **ring)
        axes.plot([], [], "o", label="Pareto front", **ring)
        log_seconds_axis(axes, min(t.seconds for t in tried), last)
        axes.set_xlabel("Time spent on the configuration in the search (logarithmic)")
        style_grid(axes)
        figure.legend(loc="outside lower center", ncols=6)

    return draw_svg(
        "pareto",
        draw,
        height_inches=3.9,
        description=f"Mean Dice against seconds of {len(tried)} configurations; {len(front)} are on the Pareto front.",
    )


def pareto_front(trials: Sequence[TrialSummary]) -> list[TrialSummary]:
    """Return the trials than which no cheaper one has at least their Dice, cheapest first."""
    front: list[TrialSummary] = []
    for trial in sorted(trials, key=lambda t: (t.seconds, -(t.dice or 0), t.trial)):
        if not front or (trial.dice or 0) > (front[-1].dice or 0):
            front.append(trial)
    return front


def class_boxes(test: HeldOutScores) -> str:
    """Draw the test Dice of each class as a box plot with a point per case."""
    names = [name for name, interval in test.dice.items() if interval.cases][::-1]
    if not names:
        return ""
    values = [[d for case in test.cases if (d := case.dice[name]) is not None] for name in names]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = list(range(len(names)))
        axes.boxplot(
            values,
            positions=places,
            orientation="horizontal",
            widths=0.5,
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": "#dcebf5", "edgecolor": BLUE},
            whiskerprops={"color": BLUE},
            capprops={"color": BLUE},
            medianprops={"color": INK, "linewidth": 1.6},
        )
        for place, dice in zip(places, values, strict=True):
            offsets = [place + 0.3 * (((k * 7) % 13) / 12 - 0.5) for k in range(len(dice))]
            axes.plot(dice, offsets, "o", color=BLUE, markersize=3, alpha=0.55, markeredgewidth=0, zorder=3)
            axes.plot(np.mean(dice), place, "D", mfc=VERMILLION, mec="white", markersize=7, zorder=4)
        axes.set_yticks(places, [label_of(name) for name in names])
        axes.set_ylim(-0.6, len(names) - 0.4)
        lowest = min(min(dice) for dice in values)
        axes.set_xlim(max(-0.02, lowest - 0.03), 1.0)
        axes.set_xlabel("Dice on the test cases (1 is perfect agreement)")
        style_grid(axes, "x")

    return draw_svg(
        "classes",
        draw,
        height_inches=0.8 + 0.55 * len(names),
        description="Box plots of the test Dice of "
        + ", ".join(f"{name} (mean {test.dice[name].mean:.3f})" for name in names[::-1]),
    )


def proposal_bars(summary: Summary) -> str:
    """Draw how many configurations came from where."""
    counts = [(origin, sum(t.origin is origin for t in summary.trials)) for origin in Origin]
    always = (Origin.MODEL, Origin.FALLBACK) if summary.sampler == SamplerName.BOHB else ()
    shown = [(origin, count) for origin, count in counts if count or origin in always]
    if not summary.trials:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = range(len(shown))[::-1]
        colours = [VERMILLION if origin is Origin.FALLBACK else BLUE for origin, _ in shown]
        bars = axes.barh(places, [count for _, count in shown], color=colours, height=0.6)
        axes.bar_label(bars, padding=4)
        axes.set_yticks(places, [label_of(ORIGIN_WORDS[origin], width=30) for origin, _ in shown])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.margins(x=0.08)
        axes.set_xlabel("Configurations")
        style_grid(axes, "x")

    return draw_svg(
        "proposals",
        draw,
        height_inches=0.7 + 0.4 * len(shown),
        description="Configurations by origin: "
        + ", ".join(f"{ORIGIN_WORDS[origin]} {count}" for origin, count in shown),
    )
