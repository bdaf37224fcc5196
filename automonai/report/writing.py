"""Writes a study's report into its store."""

from __future__ import annotations

import json

from automonai.domain.request import StudyData
from automonai.domain.study import Study
from automonai.report.summarising import summarise
from automonai.report.summary import Summary
from automonai.storage import keys
from automonai.storage.store import Store


def write_report(study: Study, data: StudyData, store: Store) -> Summary:
    """Write `report.json` and `report.html` of a study, whatever it has reached, and return what they say.

    The same study gives the same bytes.
    """
    # Imported here: `status` needs only the summary, and these load matplotlib and scikit-learn.
    from automonai.report.importance import measure_importance
    from automonai.report.page import render_page

    summary = summarise(study, data).model_copy(update={"importance": measure_importance(study)})
    page = render_page(summary, study, store)
    store.put(keys.REPORT_JSON, _json(summary).encode())
    store.put(keys.REPORT_HTML, page.encode())
    return summary


def _json(summary: Summary) -> str:
    return json.dumps(summary.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
