"""Write the chart's templates and the example: `python -m pipelines`, after every change of this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml
from hera.workflows import WorkflowTemplate

from pipelines import nightly_study, predict_template, study_template, train_template
from pipelines.release import KEEP_SECONDS, POD_SECURITY, STEP_METADATA, TRIAL_METADATA
from pipelines.study import STUDY

ROOT = Path(__file__).resolve().parents[1]
NOTICE = "# Written by 'python -m pipelines' from the folder pipelines; change that, then run it again.\n"


def documents() -> Mapping[Path, str]:
    """Return file to content of everything that is written."""
    chart = ROOT / "charts" / "automonai" / "files"
    templates = (study_template(), predict_template(), train_template())
    written = {chart / f"{template.name}.yaml": _text(_released(template)) for template in templates}
    written[ROOT / "examples" / "cron-study.yaml"] = _text(nightly_study().to_dict())
    return written


def _released(template: WorkflowTemplate) -> dict[str, object]:
    """Return the template with the marks that Hera would not let stand for a number or an object."""
    document: dict[str, object] = template.to_dict()
    spec = document["spec"]
    assert isinstance(spec, dict)
    spec["securityContext"] = POD_SECURITY
    spec["podMetadata"] = STEP_METADATA if template.name == STUDY else TRIAL_METADATA
    spec["ttlStrategy"] = {"secondsAfterCompletion": KEEP_SECONDS}
    return document


def _text(document: dict[str, object]) -> str:
    return NOTICE + yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=True)


def main() -> None:
    """Write every file."""
    for path, text in documents().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
