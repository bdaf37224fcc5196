import os
import subprocess
import sys
from pathlib import Path

import pytest

from automonai.errors import StoreAccessError, StudyLockedError
from automonai.execution import lock
from automonai.execution.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from automonai.execution.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_controller_is_refused_and_told_who_holds_the_study(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StudyLockedError, match=str(holder.pid)), locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with locked(tmp_path):
        pass


def test_a_dead_controllers_workers_are_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "ORPHANS_SECONDS", 0.3)
    with locked(tmp_path) as descriptor:
        orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(descriptor,))
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        os.pwrite(descriptor, f"{dead.pid}      ".encode(), 0)
        os.ftruncate(descriptor, len(str(dead.pid)))
    try:
        with pytest.raises(StudyLockedError, match="still used by workers"), locked(tmp_path):
            pass
    finally:
        orphan.kill()
        orphan.wait()


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = pytest.raises(StoreAccessError, match=r"file/study: cannot be written to \(Not a directory\)")
    with refused, locked(tmp_path / "file" / "study"):
        pass
