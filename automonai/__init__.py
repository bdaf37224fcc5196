"""AutoMONAI: searches a U-Net pipeline for medical image segmentation by BOHB within a compute budget.

The public functions and records; each is loaded when it is first used, so that `import automonai` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from automonai.api import check as check_dataset
    from automonai.api import evaluate, predict, train
    from automonai.api import init as init_spec
    from automonai.api import phantom as write_phantom
    from automonai.api import report as write_report
    from automonai.api import runs as list_runs
    from automonai.api import search as run_search
    from automonai.api import summary as summarise_study
    from automonai.domain.configuration import Configuration
    from automonai.errors import (
        AutoMonaiError,
        DatasetError,
        SpecError,
        StudyLockedError,
        StudyNotFoundError,
        UserError,
    )
    from automonai.spec import StudySpec, load_spec

# Verbs of the command line whose names are taken by packages (search, report) get a longer one; so do their neighbours.
_PLACES = {
    "AutoMonaiError": ("automonai.errors", "AutoMonaiError"),
    "Configuration": ("automonai.domain.configuration", "Configuration"),
    "DatasetError": ("automonai.errors", "DatasetError"),
    "SpecError": ("automonai.errors", "SpecError"),
    "StudyLockedError": ("automonai.errors", "StudyLockedError"),
    "StudyNotFoundError": ("automonai.errors", "StudyNotFoundError"),
    "StudySpec": ("automonai.spec", "StudySpec"),
    "UserError": ("automonai.errors", "UserError"),
    "check_dataset": ("automonai.api", "check"),
    "evaluate": ("automonai.api", "evaluate"),
    "init_spec": ("automonai.api", "init"),
    "list_runs": ("automonai.api", "runs"),
    "load_spec": ("automonai.spec", "load_spec"),
    "predict": ("automonai.api", "predict"),
    "run_search": ("automonai.api", "search"),
    "summarise_study": ("automonai.api", "summary"),
    "train": ("automonai.api", "train"),
    "write_phantom": ("automonai.api", "phantom"),
    "write_report": ("automonai.api", "report"),
}

__all__ = [
    "AutoMonaiError",
    "Configuration",
    "DatasetError",
    "SpecError",
    "StudyLockedError",
    "StudyNotFoundError",
    "StudySpec",
    "UserError",
    "check_dataset",
    "evaluate",
    "init_spec",
    "list_runs",
    "load_spec",
    "predict",
    "run_search",
    "summarise_study",
    "train",
    "write_phantom",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'automonai' has no attribute '{name}'")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))
