"""Small pieces of HTML; every text that comes from outside is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from automonai.report.intervals import Interval

_SHORT_ROWS = 20
"""A table of up to so many rows is not divided between two sheets of paper."""


class Cell(str):
    """Text of a table's cell that is a number and stands to the right."""

    __slots__ = ()


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    total: Sequence[str] | None = None,
) -> str:
    """Return a table whose first column names the rows; `Cell` texts stand to the right.

    Args:
        head: Column titles.
        rows: Their cells as plain text.
        caption: One line above.
        total: A last row, set off from the others.
    """
    body = [_row("tr", row) for row in rows]
    if total is not None:
        body.append(_row('tr class="total"', total))
    titles = "".join(f'<th scope="col"{_side(title)}>{escape(title)}</th>' for title in head)
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    kind = ' class="short"' if len(body) <= _SHORT_ROWS else ""
    return f"<table{kind}>{above}<thead><tr>{titles}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    first, *others = cells
    rest = "".join(f"<td{_side(cell)}>{escape(cell)}</td>" for cell in others)
    return f'<{tag}><th scope="row"{_side(first)}>{escape(first)}</th>{rest}</tr>'


def _side(text: str) -> str:
    return ' class="number"' if isinstance(text, Cell) else ""


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and what they are."""
    body = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f'<table class="facts"><tbody>{body}</tbody></table>'


def section(anchor: str, title: str, *content: str, is_first: bool = False) -> str:
    """Return a section; its content is HTML."""
    kind = ' class="first"' if is_first else ""
    return f'<section id="{anchor}"{kind}><h2>{escape(title)}</h2>{"".join(content)}</section>\n'


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def notice(*texts: str, is_bad: bool = False) -> str:
    """Return a box that says something plainly."""
    kind = "notice bad" if is_bad else "notice"
    return f'<div class="{kind}">{"".join(paragraph(text) for text in texts)}</div>'


def figure(svg: str, caption: str, *, otherwise: str) -> str:
    """Return a figure with the sentence that says how to read it, or a notice when there is nothing to draw."""
    if not svg:
        return notice(otherwise)
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def tile(name: str, value: str, more: str = "", *, is_main: bool = False, is_words: bool = False) -> str:
    """Return a box with one figure."""
    kind = "tile main" if is_main else "tile"
    words = "value words" if is_words else "value"
    below = f'<div class="more">{escape(more)}</div>' if more else ""
    return (
        f'<div class="{kind}"><div class="name">{escape(name)}</div>'
        f'<div class="{words}">{escape(value)}</div>{below}</div>'
    )


def decimal(value: float | None, digits: int = 3) -> Cell:
    """Return a number for a table; a dash where there is none."""
    return Cell("–" if value is None else f"{value:.{digits}f}")


def span(interval: Interval, digits: int = 3) -> Cell:
    """Return a confidence interval for a table; a dash where there is none."""
    return Cell(bounds(interval.low, interval.high, digits))


def bounds(low: float | None, high: float | None, digits: int = 3) -> str:
    """Return `low to high`; a dash where there is none."""
    return "–" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"
