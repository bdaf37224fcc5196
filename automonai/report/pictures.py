"""The worst cases as pictures inside the page."""

from __future__ import annotations

from base64 import b64encode
from html import escape

from automonai.errors import ObjectNotFoundError
from automonai.report.markup import notice, paragraph, section
from automonai.report.summary import CaseSummary, Summary
from automonai.storage.store import Store

_MOST_CLASSES = 4
_PNG = b"\x89PNG\r\n\x1a\n"


def pictures_section(summary: Summary, store: Store) -> str:
    """Return the pictures of the worst test cases, each with its scores."""
    title = "The worst cases"
    cases = [case for case in summary.test.cases if case.overlay] if summary.test else []
    if not cases:
        return section("worst", title, notice(_why_none(summary)))
    text = (
        "The test cases on which the ensemble does worst, worst first, each in the axial slice with the most wrong "
        "voxels, seen from the feet: the patient's right is on the left, the front on top. The reference is the solid "
        "blue outline, the prediction the dashed orange one, in these colours for every structure. Where no orange is "
        "to be seen nothing was found in that slice. Look for a pattern: one scanner, one pathology, or a questionable "
        "reference."
    )
    shown = "".join(_picture(case, store) for case in cases)
    return section("worst", title, paragraph(text), f'<div class="pictures">{shown}</div>')


def _why_none(summary: Summary) -> str:
    if summary.test is None:
        return "There are pictures only once test cases have been scored."
    return "No pictures were drawn."


def _picture(case: CaseSummary, store: Store) -> str:
    caption = (
        f"<figcaption><strong>{escape(case.case)}</strong>, mean Dice {_dice(case.mean_dice)}. "
        f"{escape(_by_class(case))}.</figcaption>"
    )
    content = _content(case.overlay or "", store)
    if content is None:
        return f"<figure>{notice('The picture is not in the store.', is_bad=True)}{caption}</figure>"
    alternative = escape(f"Image, reference and prediction of {case.case}", quote=True)
    address = f"data:image/png;base64,{b64encode(content).decode()}"
    return f'<figure><img src="{address}" alt="{alternative}">{caption}</figure>'


def _by_class(case: CaseSummary) -> str:
    """Return the Dice of each class, or of the lowest ones where there are many."""
    if len(case.dice) <= _MOST_CLASSES:
        return ", ".join(f"{name}: {_class_words(case, name)}" for name in case.dice)
    lowest = sorted((dice, name) for name, dice in case.dice.items() if dice is not None)[:_MOST_CLASSES]
    return "Lowest: " + ", ".join(f"{name}: {_class_words(case, name)}" for _, name in lowest)


def _class_words(case: CaseSummary, name: str) -> str:
    words = _dice(case.dice[name])
    if case.dice[name] == 0:
        words += " (no overlap)" if case.hd95_mm[name] is not None else " (missed altogether, or not in the reference)"
    return words


def _dice(value: float | None) -> str:
    return "not present" if value is None else f"{value:.3f}"


def _content(key: str, store: Store) -> bytes | None:
    try:
        content = store.get(key)
    except ObjectNotFoundError:
        return None
    return content if content.startswith(_PNG) else None
