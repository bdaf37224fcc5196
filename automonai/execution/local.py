"""Runs as subprocesses of this machine, kept warm between runs: importing torch and MONAI costs seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from automonai.domain.request import EnsembleRequest, TrainRequest
from automonai.domain.run import LossCause
from automonai.errors import RunOutOfMemoryError
from automonai.execution.executor import Notice, Report, left_without_answer, pause_before
from automonai.execution.machine import memory_kills
from automonai.host import THREADS_ALONE
from automonai.storage import keys
from automonai.storage.opening import is_remote, open_store, place_on_this_machine

WORKER_COMMAND = (sys.executable, "-P", "-m", "automonai.worker")
"""Without the current folder, whose files may bear the names of modules."""
POLL_SECONDS = 0.05
REMOTE_POLL_SECONDS = 1.0
"""Between looks for a run's answer in a store that is not on this machine: each look is a request."""
CLOSE_SECONDS = 30.0
"""How long workers may take to commit a checkpoint when they are told to leave."""


@dataclass
class _Slot:
    """One worker process, started when it is first needed, and what it is doing."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    run_id: str | None = None
    log: IO[bytes] | None = field(default=None, repr=False)
    begins_at: float | None = None
    """When its run is handed to the worker; None: it was."""
    looked_at: float = 0.0
    """When its answer was last looked for."""
    kills_before: int = 0
    """How many processes the kernel had ended for lack of memory when the worker was started."""


class LocalExecutor:
    """One worker process per slot; each has its share of the cores and, where there are any, its GPU.

    A request goes to the store, its id to the worker's standard input; the answer is looked for in the store. A worker
    whose input ends (because the controller died) commits its checkpoint and leaves.
    """

    def __init__(
        self,
        location: str | Path,
        *,
        slots: int,
        threads: int,
        cache_folder: Path,
        gpus: tuple[str, ...] = (),
        inherited_lock: int | None = None,
        command: tuple[str, ...] = WORKER_COMMAND,
        metrics: bool = False,
    ) -> None:
        """Remember the settings; no process starts before the first submit.

        Args:
            location: The study's folder, or `s3://bucket/studies/NAME`.
            slots: Most runs at once.
            threads: CPU threads of each run.
            cache_folder: Where preprocessed cases are kept.
            gpus: CUDA device ids, given to the slots in turn.
            inherited_lock: A file descriptor that workers keep open, so that the study stays locked while any lives.
            command: What a worker is; it gets the study's location, `--cache` and `--last-words`.
            metrics: Whether each worker leaves its metrics beside its log, in `worker-N.prom`.
        """
        self._location = location
        self._store = open_store(location)
        self._look_seconds = REMOTE_POLL_SECONDS if is_remote(location) else 0.0
        self._cache_folder = cache_folder
        self._threads = threads
        self._command = command
        self._gpus = gpus
        self._inherited_lock = inherited_lock
        self._metrics = metrics
        self._slots = [_Slot(number) for number in range(slots)]
        self._waiting: list[tuple[str, int]] = []
        """Run ids and strikes beyond the slots: a study that is taken up with fewer of them has more open runs."""
        self._notices: list[Notice] = []

    def free_slots(self) -> int:
        return max(0, sum(slot.run_id is None for slot in self._slots) - len(self._waiting))

    def submit(self, request: TrainRequest | EnsembleRequest) -> None:
        known = {slot.run_id for slot in self._slots} | {run_id for run_id, _ in self._waiting}
        if request.run_id in known:
            return
        self._store.put(keys.request(request.run_id), request.model_dump_json().encode())
        self._waiting.append((request.run_id, request.strikes))
        self._fill_slots()

    def poll(self, timeout_seconds: float) -> list[Report]:
        deadline = time.monotonic() + timeout_seconds
        while True:
            reports = [report for slot in self._slots if (report := self._report_of(slot)) is not None]
            self._fill_slots()
            if reports or time.monotonic() >= deadline:
                return reports
            time.sleep(POLL_SECONDS)

    def notices(self) -> list[Notice]:
        notices, self._notices = self._notices, []
        return notices

    def cancel(self, run_id: str) -> None:
        self._waiting = [waiting for waiting in self._waiting if waiting[0] != run_id]
        for slot in self._slots:
            if slot.run_id == run_id:
                self._stop([slot])

    def close(self) -> None:
        self._waiting.clear()
        self._stop(self._slots)

    def _fill_slots(self) -> None:
        """Start what waits, as far as there are slots; what has its answer already only takes one until it is told."""
        for slot in self._slots:
            if slot.run_id is None and self._waiting:
                slot.run_id, strikes = self._waiting.pop(0)
                if not self._store.exists(keys.answer(slot.run_id)):
                    # One loss may have been a kill, and is made up for at once.
                    slot.begins_at = time.monotonic() + (pause_before(strikes) if strikes > 1 else 0.0)
            if slot.run_id is not None and slot.begins_at is not None and time.monotonic() >= slot.begins_at:
                slot.begins_at = None
                self._hand_over(slot, slot.run_id)
                self._notices.append(Notice(run_id=slot.run_id))

    def _report_of(self, slot: _Slot) -> Report | None:
        if slot.run_id is None or slot.begins_at is not None:
            return None
        ended = None if slot.process is None else slot.process.poll()
        if ended is None and time.monotonic() - slot.looked_at < self._look_seconds:
            return None
        slot.looked_at = time.monotonic()
        if self._store.exists(keys.answer(slot.run_id)):
            report = Report(run_id=slot.run_id)
        elif ended == RunOutOfMemoryError.exit_code:
            self._hand_over(slot, slot.run_id)  # it left after it had answered the run before, and never saw this one
            return None
        elif ended is not None:
            why, cause = self._describe_exit(slot, ended)
            report = Report(run_id=slot.run_id, lost=why, cause=cause)
        else:
            return None
        slot.run_id = None
        return report

    def _hand_over(self, slot: _Slot, run_id: str) -> None:
        if slot.process is None or slot.process.poll() is not None:
            self._start(slot)
        assert slot.process is not None
        assert slot.process.stdin is not None
        try:
            slot.process.stdin.write(f"{run_id}\n".encode())
            slot.process.stdin.flush()
        except BrokenPipeError:
            slot.process.wait()  # poll() then finds it gone and reports the run as lost

    def _start(self, slot: _Slot) -> None:
        log, last_words = self._file(slot, "log"), self._file(slot, "last-words")
        log.parent.mkdir(parents=True, exist_ok=True)
        last_words.unlink(missing_ok=True)
        _release(slot)
        slot.kills_before = memory_kills()
        slot.log = log.open("ab")
        inherited = () if self._inherited_lock is None else (self._inherited_lock,)
        metrics = ("--metrics-file", str(self._file(slot, "prom"))) if self._metrics else ()
        slot.process = subprocess.Popen(
            [
                *self._command,
                str(self._location),
                *("--cache", str(self._cache_folder)),
                *("--last-words", str(last_words)),
                *metrics,
            ],
            stdin=subprocess.PIPE,
            stdout=slot.log,
            stderr=slot.log,
            env=self._environment(slot),
            start_new_session=True,  # Ctrl-C reaches the controller alone, which then ends the workers in order
            pass_fds=inherited,
        )

    def _file(self, slot: _Slot, kind: str) -> Path:
        """Return where a slot's workers leave their log, metrics or last words."""
        return workers_folder(self._location) / f"worker-{slot.number}.{kind}"

    def _describe_exit(self, slot: _Slot, code: int) -> tuple[str, LossCause]:
        """Return why a run is lost whose worker has ended, in words and by its kind."""
        if code >= 0:
            last_words = self._file(slot, "last-words")
            words = last_words.read_text().strip() if last_words.is_file() else ""
            return left_without_answer(code, words), LossCause.CRASH
        why = f"its worker was ended by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL and memory_kills() > slot.kills_before:
            advice = "fewer parallel runs (execution.max_parallel_runs), or a lower execution.memory_gib"
            return f"{why}: the machine ran out of memory; {advice}", LossCause.OUT_OF_MEMORY
        return why, LossCause.CRASH

    def _environment(self, slot: _Slot) -> dict[str, str]:
        threads = str(self._threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment[THREADS_ALONE] = str(self._threads * len(self._slots))
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot.number % len(self._gpus)]
        return environment

    def _stop(self, slots: list[_Slot]) -> None:
        """End workers: SIGTERM, so that they commit what they have, and SIGKILL for those that do not leave."""
        running = [slot for slot in slots if slot.process is not None]
        for slot in running:
            assert slot.process is not None
            if slot.process.poll() is None:
                slot.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + CLOSE_SECONDS
        for slot in running:
            assert slot.process is not None
            try:
                slot.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                slot.process.kill()
                slot.process.wait()
        for slot in slots:
            _release(slot)
            slot.run_id = slot.begins_at = slot.process = None


def workers_folder(location: str | Path) -> Path:
    """Return where the workers of a study leave their logs, metrics and last words on this machine."""
    return place_on_this_machine(location) / "workers"


def _release(slot: _Slot) -> None:
    """Close a slot's pipe and log; what was still to be written to a dead worker is of no use."""
    if slot.process is not None and slot.process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            slot.process.stdin.close()
    if slot.log is not None:
        slot.log.close()
        slot.log = None
