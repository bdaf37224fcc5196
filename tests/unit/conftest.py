import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from automonai.observability import logs

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def logging_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a command that ran in this process has set up."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    root, package = logging.getLogger(), logging.getLogger("automonai")
    handlers, level = list(root.handlers), package.level
    yield
    logging.captureWarnings(False)
    logs._ids_of_process.clear()
    package.setLevel(level)
    for handler in [added for added in root.handlers if added not in handlers]:
        root.removeHandler(handler)
